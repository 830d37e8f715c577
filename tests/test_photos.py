"""Where and when photos were taken: each scored sample beside its own date and place, whatever the file's order."""

import datetime
import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import birder_ray.photos
from birder_ray.commit import Ledger
from birder_ray.errors import ConfigError, RunFailed
from birder_ray.folder import Folder
from birder_ray.photos import ROW, photos
from birder_ray.scores import Scores
from tests.built import build, rewrite

SHARDS = {"a.tar": 25, "b.tar": 12}
SAMPLES = [f"{shard}/{index}" for shard, size in SHARDS.items() for index in range(size)]
HEADER = "sample,date,latitude,longitude"


@pytest.fixture
def scores(tmp_path) -> Scores:
    build(Folder(str(tmp_path / "run")), SHARDS)
    return Scores(str(tmp_path / "run"))


def written(path: Path, *lines: str, header: str = HEADER) -> str:
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)


def of_sample(scores: Scores, file: str, **told) -> dict[str, tuple]:
    """What each scored sample is given."""
    with photos(scores, file, **told) as opened:
        found = {}
        units = iter(scores.recorded({"predictions": ["sample"]}))
        for (name, told_of), (record, (rows,)) in zip(opened.aligned(), units, strict=True):
            assert name == record.unit and told_of.schema == ROW and told_of.num_rows == rows.num_rows
            values = [column.to_pylist() for column in told_of.columns]
            found |= dict(zip(rows["sample"].to_pylist(), zip(*values, strict=True), strict=True))
        return found


def day(text: str) -> datetime.date:
    return datetime.date.fromisoformat(text)


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_each_sample_is_given_its_own(tmp_path, scores, kind):
    days = {name: day("2024-01-01") + datetime.timedelta(at) for at, name in enumerate(SAMPLES)}
    rows = [(name, days[name], at - 15.0, at * 4 - 90.0) for at, name in enumerate(SAMPLES) if at % 5]
    rows = rows[::-1]
    file = tmp_path / f"photos.{kind}"
    if kind == "parquet":
        columns = zip(*rows, strict=True)
        pq.write_table(pa.table(dict(zip(HEADER.split(","), map(list, columns), strict=True))), file)
    else:
        text = "\n".join([HEADER, *(",".join(map(str, row)) for row in rows)])
        file.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    found = of_sample(scores, str(file))
    assert list(found) == [name for name in SAMPLES if not name.endswith("/3")]
    wanted = {name: values for name, *values in rows}
    assert found == {name: tuple(wanted.get(name, (None, None, None))) for name in found}


def test_what_there_is_is_counted(tmp_path, scores):
    file = written(
        tmp_path / "p.csv", "a.tar/0,2024-05-01,1,2", "a.tar/1,,1,2", "a.tar/2,2024-05-01,1,", "a.tar/3,2024-05-01,1,2",
        "nowhere,2024-05-01,1,2", "a.tar/0,2024-05-01,1,2", "a.tar/4,,,",
    )  # fmt: skip
    with photos(scores, file) as opened:
        assert (opened.rows, opened.found, opened.dates, opened.places) == (35, 4, 2, 2)
        assert len(opened.sha256) == 64
        assert [len(rows) for _, rows in opened.aligned()] == [9, 10, 5, 9, 2]
        assert len(list(opened.aligned())) == 5  # as often as one likes


def test_columns_go_by_the_names_of_darwin_core_in_any_case(tmp_path, scores):
    header = "ID,EventDate,DECIMALLATITUDE,decimalLongitude"
    file = written(tmp_path / "p.csv", "a.tar/0,2024-05-01,-10.5,-180", header=header)
    assert of_sample(scores, file, sample_column="ID")["a.tar/0"] == (day("2024-05-01"), -10.5, -180.0)
    spaced = written(tmp_path / "s.csv", "a.tar/0,2024-05-01,1,2", header='sample," Date ",latitude,longitude')
    assert of_sample(scores, spaced)["a.tar/0"] == (day("2024-05-01"), 1.0, 2.0)
    dates = written(tmp_path / "d.csv", "a.tar/0,2024-05-01", header="sample,date")
    assert of_sample(scores, dates)["a.tar/0"] == (day("2024-05-01"), None, None)


@pytest.mark.parametrize(
    "text",
    ["2024-05-01", "2024-05-01T23:59:59Z", "2024-05-01T00:30+13:00", "2024-05-01 08:15:30.25", "2024-05-01T2359-1130"],
)
def test_a_date_is_the_one_written_whatever_its_zone(tmp_path, scores, text):
    file = written(tmp_path / "p.csv", f"a.tar/0,{text},,")
    assert of_sample(scores, file)["a.tar/0"][0] == day("2024-05-01")


@pytest.mark.parametrize("text", ["2024", "2024-05", "2024-05-01/2024-05-03", "2024-05-01/03", ""])
def test_what_says_no_day_is_no_date(tmp_path, scores, text):
    assert of_sample(scores, written(tmp_path / "p.csv", f"a.tar/0,{text},1,2"))["a.tar/0"] == (None, 1.0, 2.0)


def test_times_of_parquet_files_are_dates(tmp_path, scores):
    moment = datetime.datetime(2024, 5, 1, 23, 30)
    for kind in (pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("ms", "UTC"), pa.date64()):
        pq.write_table(pa.table({"sample": ["a.tar/0"], "date": pa.array([moment], kind)}), tmp_path / "p.parquet")
        assert of_sample(scores, str(tmp_path / "p.parquet"))["a.tar/0"][0] == day("2024-05-01")


WRONG = {
    r"sample a.tar/0 has date yesterday; give dates as 2024-05-31": ["a.tar/0,yesterday,1,2"],
    r"sample a.tar/0 has date 2024-02-30": ["a.tar/0,2024-02-30,1,2"],
    r"has date 01.05.2024": ["a.tar/0,01.05.2024,1,2"],
    r"has date 2024:05:01": ["a.tar/0,2024:05:01 10:00:00,1,2"],
    r"sample a.tar/0 has latitude 90.5; .* from -90 to 90": ["a.tar/0,,90.5,2"],
    r"sample a.tar/0 has longitude 200": ["a.tar/0,,1,200"],
    r"has latitude 48°N": ["a.tar/0,,48°N,2"],
    r"has latitude inf": ["a.tar/0,,inf,2"],
    r"a.tar/0 has the dates 2024-05-01 and 2024-05-02; keep one": ["a.tar/0,2024-05-01,,", "a.tar/0,2024-05-02,,"],
    r"a.tar/0 has the longitudes 2.0 and 3.0; keep one": ["a.tar/0,,1,2", "a.tar/0,,1,3"],
    r"none of the samples, which are called as a.tar/0; its own are called as 0; give --sample": ["0,2024-05-01,1,2"],
    r"none of the samples, which are called as a.tar/0; it is empty": [],
}
HEADERS = {
    r"has no column sample, but id, date; give --sample-column": "id,date",
    r"has neither dates nor places, but sample, when; name its columns date, latitude and longitude": "sample,when",
    r"has no column longitude, but sample, latitude; a place needs both": "sample,latitude",
}


@pytest.mark.parametrize("told", WRONG)
def test_a_wrong_value_is_told_with_its_sample(tmp_path, scores, told):
    file = written(tmp_path / "p.csv", *WRONG[told])
    with pytest.raises(ConfigError, match=f"^{file}: .*{told}"), photos(scores, file):
        pass


@pytest.mark.parametrize("told", HEADERS)
def test_a_file_without_its_columns_is_told(tmp_path, scores, told):
    file = written(tmp_path / "p.csv", "a.tar/0,2024-05-01", header=HEADERS[told])
    with pytest.raises(ConfigError, match=f"^{file}: .*{told}"), photos(scores, file):
        pass


def test_a_file_that_is_none_is_told(tmp_path, scores):
    whole = gzip.compress("\n".join([HEADER, *(f"{at},,{at % 90}," for at in range(99_999))]).encode())
    files = {"p.parquet": b"no", "p.csv.gz": b"no", "cut.csv.gz": whole[: len(whole) // 2], "absent.csv": None}
    for name, data in files.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match=f"^{tmp_path}/{name}: [^\n]*$"), photos(scores, str(tmp_path / name)):
            pass


def test_quotes_are_quotes_wherever_they_come_first(tmp_path, scores):
    """Also beyond the lines by which DuckDB guesses what a file is like."""
    many = [f"elsewhere/{at},2024-05-01,," for at in range(30_000)]
    file = written(tmp_path / "p.csv", *many, '"a.tar/0",2024-05-02,,', 'a.tar/1,"2024-05-03","1","2"', '"x,""y""",,,')
    found = of_sample(scores, file)
    assert found["a.tar/0"] == (day("2024-05-02"), None, None) and found["a.tar/1"] == (day("2024-05-03"), 1.0, 2.0)


def test_apostrophes_and_hashes_are_part_of_a_name(tmp_path):
    build(Folder(str(tmp_path / "odd")), {"'a.tar": 2, "#b.tar": 2})
    file = written(tmp_path / "p.csv", "'a.tar/0,2024-05-01", "'a.tar/1',2024-05-02", "#b.tar/0,2024-05-03", "#b.tar/1",
                   header="sample,date")  # fmt: skip
    with pytest.raises(ConfigError, match="has no column sample, but sample,date"):
        of_sample(Scores(str(tmp_path / "odd")), file)  # a line that is too short is told, not taken for a comment
    file = written(tmp_path / "p.csv", *(f"{name},2024-05-01" for name in ("'a.tar/0", "'a.tar/1", "#b.tar/0")),
                   header="sample,date")  # fmt: skip
    found = of_sample(Scores(str(tmp_path / "odd")), file)
    assert {name for name, values in found.items() if values[0]} == {"#b.tar/0", "'a.tar/0", "'a.tar/1"}


def test_the_folder_for_temporary_files_is_no_column(tmp_path, scores, monkeypatch):
    scratch = tmp_path / "sample=7" / "date=2024-05-01" / "it's [a] *"
    scratch.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    pq.write_table(pa.table({"sample": ["a.tar/0"], "latitude": [1.0], "longitude": [2.0]}), tmp_path / "p.parquet")
    for file in (
        written(tmp_path / "p.csv", "a.tar/0,1,2", header="sample,latitude,longitude"),
        str(tmp_path / "p.parquet"),
    ):
        assert of_sample(scores, file)["a.tar/0"] == (None, 1.0, 2.0)


def test_batches_that_cut_units_are_put_together_again(tmp_path, scores, monkeypatch):
    monkeypatch.setattr(birder_ray.database, "_BATCH", 4)
    file = written(tmp_path / "p.csv", *(f"{name},,{at},{at}" for at, name in enumerate(SAMPLES)))
    assert of_sample(scores, file) == {
        name: (None, at, at) for at, name in enumerate(SAMPLES) if not name.endswith("/3")
    }


def test_of_a_destination_that_changes_meanwhile_nothing_is_misaligned(tmp_path, scores):
    """A unit that is taken back is passed over; one that is new or another is told."""
    file = written(tmp_path / "p.csv", *(f"{name},,{at},{at}" for at, name in enumerate(SAMPLES)))
    units = list(scores.units)
    with photos(scores, file) as opened:
        told = {record.unit: rows for record, _, rows in opened.recorded({"predictions": ["sample"]})}
        assert list(told) == units and told[units[1]]["latitude"][0].as_py() == 10
        Ledger(scores.folder).retract(units[0])
        del told[units[0]]
        again = {record.unit: rows for record, _, rows in opened.recorded({"predictions": ["sample"]})}
        assert again == told
        rewrite(scores.folder, "predictions", units[1], lambda table: table.slice(1))
        with pytest.raises(RunFailed, match=f"unit {units[1]} has changed .* a run is at work"):
            list(opened.recorded({"predictions": ["sample"]}))

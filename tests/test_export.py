"""Exports in general: whole or not at all, never over something else, the same again; and the CSV among them."""

import csv
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from birder_ray.commit import Ledger
from birder_ray.errors import ConfigError
from birder_ray.export import FORMATS, Options, export, lines
from birder_ray.export.target import whole_file
from birder_ray.folder import Folder
from birder_ray.rollup import rollup
from tests.built import build, rewrite
from tests.command import birder_ray
from tests.conftest import ACCESS_KEY, REGION, SECRET_KEY
from tests.exported import BAD, HOSTILE, SCORED, SHARDS, expected, made, name_of, renamed


@pytest.fixture
def folder(tmp_path) -> Folder:
    return made(tmp_path)


def options(to: str, place: Path) -> Options:
    """With which every format can be made."""
    if to == "dwca":
        return Options(metadata=str(place / "metadata.yaml"), taxonomy=str(place / "taxa.csv"))
    return Options()


def contents(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return {str(each.relative_to(path)): hashlib.sha256(each.read_bytes()).hexdigest() for each in files}


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


@pytest.mark.parametrize("to", FORMATS)
def test_the_same_again_gives_the_same_bytes(folder, tmp_path, to):
    for name in ("one", "two"):
        done = export(folder.url, to, str(tmp_path / name), options(to, tmp_path))
    assert done.finished and next(iter(done.made.counts.values())) == SCORED + BAD * (to == "megadetector")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("to", FORMATS)
def test_what_is_there_stays_unless_told_otherwise(folder, tmp_path, to):
    out = tmp_path / "deep" / "out"
    export(folder.url, to, str(out), options(to, tmp_path))
    before = contents(out)
    with pytest.raises(ConfigError, match=r"out: is there already; .*--overwrite"):
        export(folder.url, to, str(out), options(to, tmp_path))
    build(folder, {**SHARDS, "c.tar": 7})
    assert contents(out) == before
    export(folder.url, to, str(out), options(to, tmp_path), overwrite=True)
    assert contents(out) != before
    assert [each.name for each in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("gone", [True, False])
def test_a_damaged_destination_leaves_nothing(folder, tmp_path, to, gone):
    unit = max(Ledger(folder).units())
    if gone:
        folder.delete(f"predictions/{unit}.parquet")
    else:
        folder.write(f"predictions/{unit}.parquet", folder.read(f"predictions/{unit}.parquet")[:-9])
    with pytest.raises(ConfigError, match=f"predictions/{unit}.parquet.*birder-ray verify"):
        export(folder.url, to, str(tmp_path / "exports" / "out"), options(to, tmp_path))
    assert list((tmp_path / "exports").iterdir()) == []


@pytest.mark.parametrize(
    ("to", "there"), [("csv", False), ("dwca", True), ("coco", True), ("huggingface", False), ("huggingface", True)]
)
def test_a_killed_export_leaves_nothing_that_looks_finished(folder, tmp_path, to, there):
    """Dies while it opens its third part of predictions, as kill -9 would have it."""
    out = tmp_path / "exports" / "out"
    if there:
        export(folder.url, to, str(out), options(to, tmp_path))
    before = contents(out) if there else {}
    code = f"""
import os
from birder_ray.export import Options, export
from birder_ray.folder import Folder
read, left = Folder.read, iter(range(2))
def dying(self, name):
    if name.startswith("predictions/") and next(left, None) is None:
        os._exit(9)
    return read(self, name)
Folder.read = dying
export({folder.url!r}, {to!r}, {str(out)!r}, {options(to, tmp_path)!r}, overwrite=True)
"""
    here = {**os.environ, "TMPDIR": str(tmp_path)}  # what the killed one leaves there goes with the test
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False, env=here).returncode == 9
    assert out.exists() == there and (not there or contents(out) == before)
    export(folder.url, to, str(out), options(to, tmp_path), overwrite=True)


def test_a_folder_that_is_no_export_is_not_replaced(folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("my own")
    with pytest.raises(ConfigError, match="is no export of birder-ray, and is not replaced"):
        export(folder.url, "huggingface", str(tmp_path / "mine"), overwrite=True)
    assert (tmp_path / "mine" / "README.md").read_text() == "my own"


def test_what_came_there_meanwhile_stays(tmp_path):
    with pytest.raises(ConfigError, match="is there already"), whole_file(str(tmp_path / "out"), {}, False) as path:
        path.write_text("ours")
        (tmp_path / "out").write_text("theirs")
    assert [each.read_text() for each in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize("place", ["scores", "scores/", "scores/manifest.json", "other/../scores/x.csv"])
def test_nothing_is_written_among_the_tables(folder, tmp_path, place):
    before = contents(Path(folder.path))
    for to in ("csv", "huggingface"):
        with pytest.raises(ConfigError, match="inside the destination"):
            export(folder.url, to, str(tmp_path / place), overwrite=True)
    assert contents(Path(folder.path)) == before


def test_the_folder_of_the_tables_is_not_replaced(folder, tmp_path):
    (tmp_path / "README.md").write_text("made with birder-ray")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="a folder above the destination"):
        export(folder.url, "huggingface", str(tmp_path), overwrite=True)
    assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_replaced_stays(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    export(folder.url, "huggingface", str(out))
    before, rename = contents(out), os.rename

    def failing(old, new):
        if str(new) == str(out) and str(old).endswith(".tmp"):
            raise OSError("disk gone")
        rename(old, new)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(ConfigError, match="not written: disk gone"):
        export(folder.url, "huggingface", str(out), overwrite=True)
    assert contents(out) == before and not [each for each in os.listdir(tmp_path) if each.startswith(".out")]


def test_an_export_on_an_object_store_is_begun_again(folder, tmp_path):
    """What fails before the first file leaves the old one as it is; what fails later is marked, and done again."""
    place = f"memory://again-{tmp_path.name}/out"
    there, fs = Folder(place), fsspec.filesystem("memory")
    export(folder.url, "huggingface", place, options("huggingface", tmp_path))
    there.write("data/old.parquet", b"of a unit that is gone")
    old = {name: fs.cat_file(name) for name in fs.find(there.path)}
    with pytest.raises(ConfigError, match="no such metadata file"):
        export(folder.url, "huggingface", place, Options(metadata="/nowhere.yaml"), overwrite=True)
    assert {name: fs.cat_file(name) for name in fs.find(there.path)} == old

    unit = sorted(Ledger(folder).units())[-1]
    part = folder.read(f"predictions/{unit}.parquet")
    folder.write(f"predictions/{unit}.parquet", b"PAR1")
    with pytest.raises(ConfigError, match="missing, or not what was committed"):
        export(folder.url, "huggingface", place, overwrite=True)
    assert there.exists("_unfinished") and not there.exists("README.md")
    folder.write(f"predictions/{unit}.parquet", part)
    export(folder.url, "huggingface", place)
    export(folder.url, "huggingface", str(tmp_path / "local"))
    found = {
        name.removeprefix(f"{there.path}/"): hashlib.sha256(fs.cat_file(name)).hexdigest()
        for name in fs.find(there.path)
    }
    assert found == contents(tmp_path / "local")


def test_nothing_is_no_data_set(tmp_path):
    build(Folder(str(tmp_path / "scores")), {}, finish=False)
    with pytest.raises(ConfigError, match="nothing is committed yet"):
        export(str(tmp_path / "scores"), "huggingface", str(tmp_path / "out"))


@pytest.mark.parametrize("to", FORMATS)
def test_an_object_store_gets_it_too(folder, tmp_path, to):
    place = f"memory://exports-{tmp_path.name}"
    export(folder.url, to, f"{place}/out", options(to, tmp_path))
    local = tmp_path / "out"
    export(folder.url, to, str(local), options(to, tmp_path))
    fs = fsspec.filesystem("memory")
    found = {
        os.path.relpath(name, f"/exports-{tmp_path.name}/out"): hashlib.sha256(fs.cat_file(name)).hexdigest()
        for name in fs.find(place)
    }
    assert found == contents(local)
    with pytest.raises(ConfigError, match="is there already"):
        export(folder.url, to, f"{place}/out", options(to, tmp_path))
    export(folder.url, to, f"{place}/out", options(to, tmp_path), overwrite=True)


@pytest.mark.parametrize("out", ["s3://bucket", "memory://", "..", "/"])
def test_a_place_without_a_name_is_refused(folder, out):
    with pytest.raises(ConfigError, match="--output"):
        export(folder.url, "csv", out)


def test_a_place_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        export(folder.url, "csv", str(tmp_path / "file" / "out.csv"))


@pytest.mark.parametrize(
    ("to", "told", "flag"),
    [
        ("csv", Options(media_url="https://x"), "--media-url"),
        ("csv", Options(blank=("heron",)), "--blank"),
        ("coco", Options(rollup=False), "--no-rollup"),
        ("megadetector", Options(photos="photos.csv"), "--photos"),
        ("huggingface", Options(min_probability=0.5), "--min-probability"),
    ],
)
def test_options_of_other_formats_are_not_ignored(folder, tmp_path, to, told, flag):
    with pytest.raises(ConfigError, match=f"{flag} says nothing to --to {to}, but to .*(dwca|csv)"):
        export(folder.url, to, str(tmp_path / "out"), told)


@pytest.mark.parametrize("told", [Options(sample_column="id"), Options(memory="2GB")])
def test_what_is_said_of_photos_is_not_ignored(folder, tmp_path, told):
    with pytest.raises(ConfigError, match="says nothing without --photos"):
        export(folder.url, "csv", str(tmp_path / "out"), told)


def test_csv_has_every_scored_sample(folder, tmp_path):
    told = Options(taxonomy=str(tmp_path / "taxa.csv"), photos=str(tmp_path / "photos.csv"))
    done = export(folder.url, "csv", str(tmp_path / "out.csv"), told)
    assert (done.made.counts, done.made.left_out, done.made.notes) == ({"samples": SCORED}, {"quarantined": BAD}, [])
    rows = read(tmp_path / "out.csv")
    assert [row["sample"] for row in rows] == [sample for sample, _ in expected()]
    for row, (sample, index) in zip(rows, expected(), strict=True):
        first = name_of(index)
        assert (row["shard"], row["index"], row["prediction"]) == (sample.split("/")[0], str(index), first)
        assert row["top_1_class"] == first and float(row["top_1_probability"]) == pytest.approx(0.5 + index % 40 / 100)
        assert {row[f"top_{place}_class"] for place in (1, 2, 3)} == {"heron", "stork", "ibis"}
        assert row["species"] == {"heron": "Ardea cinerea", "stork": "Ciconia ciconia", "ibis": ""}[first]
        assert row["label"] == "" and row["class"] == "Aves"
        dated = sample.startswith("a.tar")
        assert row["date"] == (f"2025-05-{index + 1:02d}" if dated else "2025-06-01" if index == 0 else "")
        assert row["longitude"] == (str(-index) if dated else "")
        assert row["latitude"] == "" or float(row["latitude"]) == 44 + index / 8


def test_csv_is_rfc_4180_whatever_the_names(folder, tmp_path):
    renamed(folder, HOSTILE)
    done = export(folder.url, "csv", str(tmp_path / "out.csv"))
    data = (tmp_path / "out.csv").read_bytes()
    rows = list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
    assert [row[0] for row in rows[1 : len(HOSTILE) + 1]] == HOSTILE
    assert len(rows) == SCORED + 1 and {len(row) for row in rows} == {len(rows[0])}
    assert data.endswith(b"\r\n") and data.count(b"\r\n") == SCORED + 1 + 1  # one is in a name
    (note,) = done.made.notes
    assert "3 cells (sample) begin as formulas do" in note and "--escape-formulas" in note


def test_formulas_are_escaped_where_that_is_asked_for(folder, tmp_path):
    renamed(folder, HOSTILE)
    done = export(folder.url, "csv", str(tmp_path / "out.csv"), Options(escape_formulas=True))
    found = [row["sample"] for row in read(tmp_path / "out.csv")[: len(HOSTILE)]]
    assert found == [f"'{name}" if name[0] in "=+-" else name for name in HOSTILE]
    assert "3 cells" in done.made.notes[0] and "apostrophe" in done.made.notes[0]


def test_csv_may_be_compressed(folder, tmp_path):
    for name in ("out.csv", "out.csv.gz/"):
        export(folder.url, "csv", f"{tmp_path}/{name}")
    packed = (tmp_path / "out.csv.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "out.csv").read_bytes()
    assert packed[3:8] == bytes(5)  # no name in it, and no time


def test_csv_has_what_was_rolled_up(folder, tmp_path):
    rollup(folder.url, taxonomy=str(tmp_path / "taxa.csv"), confidence=0.6)
    export(folder.url, "csv", str(tmp_path / "out.csv"))
    rows = read(tmp_path / "out.csv")
    found = {row["rollup_rank"] for row in rows}
    assert found == {"", "species", "class"}
    for row in rows:
        assert row["rollup_rank"] != "species" or row["rollup_taxon"] in ("Ardea cinerea", "Ciconia ciconia")
        assert (row["rollup_probability"] == "") == (row["rollup_rank"] == "")
    export(folder.url, "csv", str(tmp_path / "without.csv"), Options(rollup=False))
    assert "rollup_rank" not in read(tmp_path / "without.csv")[0]


@pytest.mark.parametrize("to", ["csv", "dwca", "huggingface"])
@pytest.mark.parametrize("fault", ["stale", "lacking", "damaged", "of another recipe", "damaged about", "no about"])
def test_a_rollup_that_does_not_fit_is_not_used(folder, tmp_path, to, fault):
    rollup(folder.url, taxonomy=str(tmp_path / "taxa.csv"))
    unit = sorted(Ledger(folder).units())[1]
    if fault == "stale":
        rewrite(folder, "predictions", unit, lambda table: table.slice(0, table.num_rows - 1))
    elif fault == "lacking":
        folder.delete(f"rollup/{unit}.parquet")
    elif fault == "no about":
        folder.delete("rollup/_about.json")
    elif fault == "damaged":
        folder.write(f"rollup/{unit}.parquet", b"PAR1")
    elif fault == "of another recipe":
        folder.write_json("rollup/_about.json", {**folder.read_json("rollup/_about.json"), "recipe": "0"})
    else:
        folder.write("rollup/_about.json", b"{")
    with pytest.raises(ConfigError, match=r"rollup.*run birder-ray rollup again, or give --no-rollup"):
        export(folder.url, to, str(tmp_path / "out"), options(to, tmp_path))
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_is_told_as_such(tmp_path):
    build(Folder(str(tmp_path / "scores")), SHARDS, finish=False)
    done = export(str(tmp_path / "scores"), "csv", str(tmp_path / "out.csv"))
    assert any("the run is unfinished" in line for line in lines(done))


def test_the_command(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = birder_ray(monkeypatch, capsys, "export", "scores", "--to", "csv", "-o", "out.csv")
    assert (code, err) == (0, "") and out.splitlines() == ["export   out.csv: 35 samples", "left out 2 quarantined"]
    code, _, err = birder_ray(monkeypatch, capsys, "export", "scores", "--to", "csv", "-o", "out.csv")
    assert code == 2 and "is there already" in err and "Traceback" not in err
    told = ("--metadata", "metadata.yaml", "--taxonomy", "taxa.csv", "--person", "ibis", "--min-probability", "0.6")
    code, out, err = birder_ray(monkeypatch, capsys, "export", "scores", "--to", "dwca", "-o", "out.zip", *told)
    assert code == 0 and "person" in out and "below the probability" in out, err
    code, _, err = birder_ray(monkeypatch, capsys, "export", "scores", "--to", "xlsx", "-o", "out")
    assert code == 2 and "huggingface" in err
    code, _, err = birder_ray(monkeypatch, capsys, "export", "scores", "--to", "coco", "-o", "c", "--blank", "owl")
    assert code == 2 and "--blank owl" in err


@pytest.mark.s3
def test_from_s3_to_s3(seaweed, tmp_path):
    made(tmp_path)
    place = Folder(f"{seaweed.url}/scores", seaweed.options)
    build(place, SHARDS)
    for name in ("taxa.csv", "metadata.yaml", "photos.csv"):
        place.fs.put_file(str(tmp_path / name), f"{seaweed.bucket}/{name}")
    told = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_DEFAULT_REGION": REGION}
    environment = {**os.environ, **told, "AWS_ENDPOINT_URL": seaweed.endpoint}
    command = Path(sys.executable).with_name("birder-ray")
    more = {
        "dwca": ["--metadata", f"{seaweed.url}/metadata.yaml", "--taxonomy", f"{seaweed.url}/taxa.csv"],
        "csv": ["--photos", f"{seaweed.url}/photos.csv"],
    }
    for to, code, again in (("dwca", 0, []), ("csv", 0, []), ("csv", 2, []), ("csv", 0, ["--overwrite"])):
        asked = [command, "export", place.url, "--to", to, "-o", f"{seaweed.url}/exports/{to}", *more[to], *again]
        done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    for to, again in (("megadetector", False), ("huggingface", False), ("huggingface", True)):
        export(place.url, to, f"{seaweed.url}/exports/{to}", None, place.options, place.options, again)
    exports = Folder(f"{seaweed.url}/exports", seaweed.options)
    assert exports.names("") == {"csv", "dwca", "megadetector"} and exports.exists("huggingface/README.md")
    assert exports.read("csv").count(b"2025-05-") == 24
    assert len(json.loads(exports.read("megadetector"))["images"]) == SCORED + BAD

"""Checklists by date and place, by hand: boxes over the antimeridian, seasons over new year, and what is unknown."""

import json
from datetime import date
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from birder_ray.checklist import read_checklist
from birder_ray.cli import app
from birder_ray.errors import ConfigError
from birder_ray.folder import Folder
from birder_ray.rollup import rollup
from birder_ray.schema import ROLLUP_ABOUT as ABOUT
from tests.built import build

CLASSES = pa.table(
    {
        "class_index": pa.array([0, 1, 2, 3], pa.int32()),
        "class_name": ["grey_heron", "purple_heron", "little_egret", "stork"],
        "genus": ["Ardea", "Ardea", "Egretta", None],
        "species": ["Ardea cinerea", "Ardea purpurea", "Egretta garzetta", None],
    }
)
NAME = "name,west,south,east,north,from,to"
PHOTOS = "sample,date,latitude,longitude"
TAXA = "class_name,genus,species\nheron,Ardea,Ardea cinerea\nstork,Ciconia,Ciconia ciconia\n"
TAXA += "ibis,Plegadis,Plegadis falcinellus\n"


def written(path: Path, *lines: str, header: str = NAME) -> str:
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)


def where(*rows: tuple[str | None, float | None, float | None]) -> pa.Table:
    days, latitudes, longitudes = zip(*rows, strict=True)
    return pa.table(
        {
            "date": pa.array([day and date.fromisoformat(day) for day in days], pa.date32()),
            "latitude": pa.array(latitudes, pa.float64()),
            "longitude": pa.array(longitudes, pa.float64()),
        }
    )


def held(file: str, *rows: tuple[str | None, float | None, float | None]) -> list[str]:
    """Of each image, the numbers of the classes that it is held against."""
    allowed, group = read_checklist(file, CLASSES).of(where(*rows), len(rows))
    assert allowed.shape[1] == 4 and len(group) == len(rows)
    return ["".join(map(str, np.flatnonzero(allowed[each]))) for each in group]


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "here.csv"


def test_a_box_has_its_edges_and_nothing_beside_them(file):
    listed = written(file, "grey heron,-10,40.1,20.3,60,,")
    places = [(50, 0), (40.1, -10), (60, 20.3), (40.0, 0), (61, 0), (50, -10.1), (50, 20.4), (50, -180), (50, 180)]
    assert held(listed, *((None, *place) for place in places)) == ["0", "0", "0", "", "", "", "", "", ""]


def test_a_box_over_the_antimeridian(file):
    listed = written(file, "grey heron,170,,-160,,,", "stork,-180,,-170,,,", "little egret,170,,180,,,")
    longitudes = [169.9, 170, 179.9, 180, -180, -170, -169.9, -160, -159.9, 0]
    wanted = ["", "02", "02", "023", "023", "03", "0", "0", "", ""]
    assert held(listed, *((None, 0, longitude) for longitude in longitudes)) == wanted


def test_sides_of_a_box_that_are_empty_are_open(file):
    listed = written(file, "grey heron,,,,0,,", "stork,10,,,,,", "little egret,,,10,,,")
    places = [(-90, -179), (0, 10), (0.1, 179)]
    assert held(listed, *((None, *place) for place in places)) == ["02", "023", "3"]


def test_a_season_may_go_over_new_year(file):
    listed = written(file, "grey heron,,,,,11-15,02-10", "stork,,,,,04-01,09-30", "little egret,,,,,11-15,")
    days = ["2023-11-14", "2023-11-15", "2023-12-31", "2024-01-01", "2024-02-10", "2024-02-11", "2024-02-29"]
    days += ["2024-03-31", "2024-04-01", "2020-09-30", "1999-10-01", "1969-12-31"]
    wanted = ["", "02", "02", "0", "0", "", "", "", "3", "3", "", "02"]
    assert held(listed, *((day, None, None) for day in days)) == wanted


def test_a_leap_day_is_between_its_neighbours(file):
    listed = written(file, "stork,,,,,02-28,03-01", "grey heron,,,,,02-29,02-29", "little egret,,,,,03-01,02-28")
    assert held(listed, *((f"2024-{day}", None, None) for day in ("02-28", "02-29", "03-01"))) == ["23", "03", "23"]


def test_dates_are_of_one_year_alone(file):
    listed = written(
        file, "grey heron,,,,,2023-12-01,2024-01-31", "stork,,,,,2024-05-01,", "little egret,,,,,,1970-01-01"
    )
    days = ["2023-11-30", "2023-12-01", "2024-01-31", "2024-02-01", "2024-12-15", "1970-01-01", "1969-12-31"]
    assert held(listed, *((day, None, None) for day in days)) == ["", "0", "0", "", "3", "2", "2"]


def test_rows_of_one_taxon_are_alternatives_and_box_and_season_hold_together(file):
    listed = written(
        file, "stork,0,0,10,10,05-01,08-31", "stork,0,-35,10,-30,11-01,03-31", "Ardea cinerea,0,0,10,10,,"
    )  # fmt: skip
    summer, winter, north, south = "2024-06-01", "2024-01-01", (5, 5), (-31, 5)
    images = [(summer, *north), (winter, *south), (summer, *south), (winter, *north), (summer, 50, 50)]
    assert held(listed, *images) == ["03", "3", "", "0", ""]


def test_a_genus_stands_for_all_its_species(file):
    """Beside a row of one of them, which it does not take away from."""
    listed = written(file, "Ardea,,,,,01-01,06-30", "ardea_purpurea,,,,,07-01,07-31", "EGRETTA,,,,,,")
    days = ["2024-03-01", "2024-07-01", "2024-08-01"]
    assert held(listed, *((day, None, None) for day in days)) == ["012", "12", "2"]


def test_what_is_unknown_excludes_nothing(file):
    listed = written(file, "stork,0,0,10,10,05-01,08-31", "grey heron,20,0,30,10,11-01,12-31")
    images = [(None, None, None), ("2024-06-01", None, None), (None, 5, 5), ("2024-06-01", 5, 5), ("2024-06-01", 5, 25)]
    assert held(listed, *images) == ["03", "3", "3", "3", ""]
    assert read_checklist(listed, CLASSES).of(None, 3)[0].tolist() == [[True, False, False, True]]


def test_bounds_may_come_from_parquet_and_in_any_order(tmp_path):
    columns = {"species": ["Egretta garzetta", "stork"], "TO": [date(2024, 5, 1), None], "West": [None, 10.5]}
    pq.write_table(pa.table(columns | {"notes": ["x", "y"]}), tmp_path / "here.parquet")
    found = held(str(tmp_path / "here.parquet"), ("2024-05-01", 0, 11), ("2024-05-02", 0, 10))
    assert found == ["23", ""]


def test_a_signed_url_is_of_the_kind_that_its_path_says(monkeypatch):
    text = "scientificName,west\ngrey heron,10\n"
    monkeypatch.setattr("birder_ray.lineages.whole_file", lambda file: text.encode())
    monkeypatch.setattr("birder_ray.checklist.whole_file", lambda file: text.encode())
    url = "https://bucket.example/here.csv?X-Amz-Signature=1"
    assert held(url, (None, 0, 11), (None, 0, 9)) == ["0", ""]


def test_the_header_of_a_gbif_list_is_no_name(file):
    assert read_checklist(written(file, "Ardea cinerea", header="scientificName"), CLASSES).unknown == ()


def test_many_images_against_many_rows_are_as_one_by_one(file):
    dice = np.random.default_rng(0)
    lines, rules = [], []
    for _ in range(60):
        west, east = dice.integers(-180, 181, 2)
        south, north = sorted(dice.integers(-90, 91, 2))
        start, end = (date.fromordinal(730_000 + int(day)) for day in dice.integers(0, 365, 2))
        lines.append(f"{CLASSES['class_name'][len(lines) % 4]},{west},{south},{east},{north},{start:%m-%d},{end:%m-%d}")
        rules.append((west, south, east, north, f"{start:%m-%d}", f"{end:%m-%d}"))
    images = [
        (str(date.fromordinal(735_000 + int(dice.integers(3000)))), *dice.uniform((-90, -180), (90, 180)))
        for _ in range(500)
    ]

    def one(day: str, latitude: float, longitude: float) -> str:
        found = set()
        for at, (west, south, east, north, start, end) in enumerate(rules):
            across = west <= longitude <= east if west <= east else longitude >= west or longitude <= east
            when = start <= day[5:] <= end if start <= end else day[5:] >= start or day[5:] <= end
            if across and south <= latitude <= north and when:
                found.add(at % 4)
        return "".join(map(str, sorted(found)))

    wanted = [one(*image) for image in images]
    assert len(set(wanted)) > 10
    assert held(written(file, *lines), *images) == wanted


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("stork,190,,,,,", "stork: west is 190; give degrees from -180 to 180"),
        ("stork,,,,91,,", "north is 91; give degrees from -90 to 90"),
        ("stork,,x,,,,", "south is x"),
        ("stork,+nan,,,,,", "west is"),
        ("stork,,10,,5,,", "south 10 is north of 5"),
        ("stork,,,,,02-30,03-01", "the season is 02-30 to 03-01; give MM-DD or YYYY-MM-DD"),
        ("stork,,,,,4-1,5-1", "give MM-DD"),
        ("stork,,,,,W04-1,W05-1", "give MM-DD"),
        ("stork,,,,,04-01,2024-05-01", "the season is 04-01 to 2024-05-01"),
        ("stork,,,,,2024-05-01,2024-04-01", "begins on 2024-05-01, after it ends"),
    ],
)
def test_a_bound_that_is_none_is_told(file, line, problem):
    with pytest.raises(ConfigError, match=rf"here\.csv: stork: .*{problem.removeprefix('stork: ')}"):
        read_checklist(written(file, line), CLASSES)


@pytest.fixture
def run(tmp_path) -> Folder:
    """Heron, stork, ibis in turn, which is also by how much each is likely."""
    made = Folder(str(tmp_path / "run"))
    build(made, {"a.tar": 25, "b.tar": 12})
    (tmp_path / "taxa.csv").write_text(TAXA)
    return made


def test_each_image_is_held_against_its_own_list(tmp_path, file, run):
    """Heron in the north, stork in summer; b.tar/* is not in the file of photos."""
    listed = written(file, "Ardea,,0,,,,", "stork,,,,,04-01,09-30")
    photos = [f"a.tar/{n},{'2024-06-01' if n % 2 else '2024-12-01'},{10 if n < 12 else -10},0" for n in range(25)]
    told = written(tmp_path / "photos.csv", *photos, header="id,eventDate,decimalLatitude,decimalLongitude")
    done = rollup(
        run.url, taxonomy=str(tmp_path / "taxa.csv"), checklist=listed, photos=told, sample_column="id"
    )  # fmt: skip
    assert (done.checklist, done.not_classes, done.rows) == (2, (), 35)
    about = json.loads(run.read(ABOUT))
    assert about["photos"] == {"sha256": done.photos.sha256, "images": 24, "dates": 24, "places": 24}
    rows = duckdb.sql(f"FROM '{run.path}/rollup/*.parquet' ORDER BY shard, index").to_arrow_table().to_pylist()
    names = ["heron", "stork", "ibis"]
    for row in rows:
        number, mine = row["index"], row["shard"] == "a.tar"
        here = {"heron"} if not mine or number < 12 else set()
        here |= {"stork"} if not mine or number % 2 else set()
        first = number % 3
        order = [names[first], *(name for name in names if name != names[first])]
        kept = {n: p for n, p in zip(order, [0.5 + number % 40 / 100, 0.06, 0.02], strict=True) if n in here}
        assert row["checklist_prediction"] == (max(kept, key=kept.__getitem__) if kept else None), row
        assert row["checklist_mass"] == pytest.approx(sum(kept.values()), abs=1e-6)
    assert {row["checklist_prediction"] for row in rows} == {"heron", "stork", None}


def test_bounds_and_photos_go_together(tmp_path, file, run):
    taxonomy, photos = str(tmp_path / "taxa.csv"), written(tmp_path / "photos.csv", "a.tar/0,,1,1", header=PHOTOS)
    bounded, free = written(file, "stork,0,,,,,"), written(tmp_path / "free.csv", "stork,,,,,,")
    with pytest.raises(ConfigError, match=r"here\.csv: has bounds .west, .*: give --photos FILE"):
        rollup(run.url, taxonomy=taxonomy, checklist=bounded)
    for told in ({"checklist": free}, {}):
        with pytest.raises(
            ConfigError, match=r"--photos .*photos\.csv: .* no bounds; give a checklist with columns west"
        ):
            rollup(run.url, taxonomy=taxonomy, photos=photos, **told)
    assert rollup(run.url, taxonomy=taxonomy, checklist=free).checklist == 1  # empty cells are no bounds
    assert json.loads(run.read(ABOUT))["photos"] is None


def test_the_command_tells_what_the_photos_had(tmp_path, file, run):
    told = written(tmp_path / "photos.csv", "a.tar/0,2024-05-01,,", header=PHOTOS)
    arguments = ["rollup", run.url, "--taxonomy", str(tmp_path / "taxa.csv"), "--photos", told]
    done = CliRunner().invoke(app, [*arguments, "--checklist", written(file, "stork,0,,,,,")])
    assert done.exit_code == 0 and "photos   1 with a date, 0 with a place, of 35 images" in done.output

"""The report: its numbers are those of the tables, what others wrote stays text, and it needs nothing but itself."""

import base64
import io
import json
import math
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from PIL import Image

from birder_ray.config import SourceConfig
from birder_ray.errors import ConfigError
from birder_ray.folder import Folder
from birder_ray.manifest import MANIFEST
from birder_ray.report import facts, report
from birder_ray.report.thumbnails import MAX_BYTES, SIDE_PX, jpeg
from birder_ray.report.vectors import cloud
from birder_ray.schema import embeddings_schema
from birder_ray.scores import Scores
from birder_ray.source import list_shards
from birder_ray.source.base import Shard
from tests import built
from tests.browser import browsed
from tests.built import NAMES, build

SHARDS = {"a.tar": 25, "b.tar": 12}
RUN = "document.documentElement.dataset.pwned=1"
# Points at the map, and chooses a class, as a reader would
POKE = """<script>
Plotly.Fx.hover("map", [{curveNumber: 0, pointNumber: 0}]);
document.getElementById("group").value = "2";
document.getElementById("group").dispatchEvent(new Event("change"));
</script>"""
HOSTILE = [
    f"<script>{RUN}</script>",
    f"\"'><img src=x onerror={RUN}>&lt;\u2028{{%s}} $body %{{x}}",
    f"</script></title><svg onload='{RUN}'><a href=\"javascript:{RUN}\">\u202e<b>",
]


class Page(HTMLParser):
    """What a browser makes of a page: its elements, its texts, its tables by caption, its charts by name."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.data: dict[str, dict] = {}
        self.text = ""
        self._open: list[str] = []
        self._script = self._caption = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._open.append(tag)
        if tag == "script":
            self._script = dict(attributes).get("id") or ""
        if tag == "caption":
            self._caption = ""
        if tag == "tr":
            self.tables.setdefault(self._caption, []).append([])
        if tag in ("td", "th"):
            self.tables[self._caption][-1].append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        inside = self._open[-1] if self._open else ""
        if inside == "script" and self._script:
            self.data[self._script.removesuffix("-data")] = json.loads(data)
        elif inside == "caption":
            self._caption += data
        elif inside in ("td", "th"):
            self.tables[self._caption][-1][-1] += data
        if inside not in ("script", "style"):
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(folder: Folder, **options) -> Page:
    report(folder.url, **options)
    return Page(folder.read("report.html").decode())


def photo(index: int) -> bytes:
    """A JPEG with what must not reach the page."""
    image = Image.effect_noise((400, 300), 90).convert("RGB")
    exif = Image.Exif()
    exif[0x010E] = f"secret place {index}"
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, comment=b"secret comment", icc_profile=b"secret profile")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Folder:
    """A destination whose source is there."""
    made, photos = Folder(str(tmp_path / "out")), tmp_path / "photos"
    photos.mkdir()
    for name, size in SHARDS.items():
        with tarfile.open(photos / name, "w") as tar:
            for index in range(size):
                data = photo(index)
                member = tarfile.TarInfo(f"{index}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    prints = {shard.name: shard.fingerprint for shard in list_shards(SourceConfig(uri=str(photos)))}
    with monkeypatch.context() as patched:
        patched.setattr(built, "Shard", lambda uri, name, kind, _: Shard(uri, name, kind, prints[name]))
        build(made, SHARDS)
    manifest = made.read_json(MANIFEST)
    manifest["config"]["source"]["uri"] = [str(photos)]
    made.write_json(MANIFEST, manifest)
    return made


@pytest.fixture
def hostile(tmp_path, monkeypatch) -> Folder:
    """A destination where everything that has a name has a bad one."""
    monkeypatch.setattr(built, "NAMES", HOSTILE)
    made = Folder(str(tmp_path / "out"))
    build(made, {f"{HOSTILE[0]}.tar": 14, f"{HOSTILE[1]}.tar": 12, f"{HOSTILE[2]}.tar": 5})
    for unit in Scores(made.url).units:
        for column in ("message", "error_type"):
            if "errors" in made.read_json(f"_commits/{unit}.json")["parts"]:
                built.rewrite(made, "errors", unit, lambda rows, column=column: _replaced(rows, column))
    manifest = made.read_json(MANIFEST)
    manifest["model"]["name"] = manifest["config"]["source"]["uri"][0] = manifest["versions"]["ray"] = HOSTILE[2]
    made.write_json(MANIFEST, manifest)
    made.write_json("evaluation/summary.json", {HOSTILE[0]: {HOSTILE[1]: HOSTILE[2]}})
    return made


def _replaced(rows: pa.Table, column: str) -> pa.Table:
    at = rows.column_names.index(column)
    return rows.set_column(at, rows.schema.field(column), pa.array([HOSTILE[2]] * rows.num_rows, pa.string()))


def test_the_numbers_are_those_of_the_tables(folder):
    found = page(folder)
    rows, errors = (ds.dataset(f"{folder.url}/{table}").to_table() for table in ("predictions", "errors"))
    assert found.tables["Images by outcome"][1:] == [
        ["read", str(rows.num_rows + errors.num_rows)], ["scored", str(rows.num_rows)],
        ["quarantined", str(errors.num_rows)],
    ]  # fmt: skip
    assert "agree with the commit records" in found.text

    counts = Counter(rows["prediction"].to_pylist())
    assert {name: int(count) for name, count, _ in found.tables["Images by class"][1:]} == counts
    assert found.data["classes-chart"]["data"][0]["x"] == sorted(counts.values())
    assert found.data["ranks"]["data"][0]["y"] == sorted(counts.values(), reverse=True)

    for name, column, top in (("probability", "probability", 1.0), ("entropy", "entropy", math.log(3))):
        expected, _ = np.histogram(rows[column].to_numpy(), facts.BINS, (0, top))
        assert found.data[name]["data"][0]["y"] == expected.tolist()

    causes = Counter(f"{row['error_type']}, at {row['step']}" for row in errors.to_pylist())
    assert {cause: int(count) for cause, count in found.tables["Quarantined images by cause"][1:]} == causes

    features = ds.dataset(f"{folder.url}/features").to_table()
    (mean,) = (
        row for row in found.tables["Feature levels; deviations are standard deviations"] if row[0] == "stage1 max"
    )
    values = np.array(features["stage1_max"].to_pylist())
    assert [float(cell) for cell in mean[1:]] == pytest.approx(
        [2, values.mean(), 0, values.std(axis=0).mean(), 0], rel=1e-3, abs=1e-6
    )
    assert sum(len(trace["x"]) for trace in found.data["map"]["data"]) == rows.num_rows


def test_the_images_shown_are_the_extremes(folder):
    found = facts.gather(Scores(folder.url), 8, 100).predicted
    rows = ds.dataset(f"{folder.url}/predictions").to_table().to_pylist()
    ordered = sorted(rows, key=lambda row: (row["probability"], row["sample"]))
    assert [image.sample for image in found.unsure] == [row["sample"] for row in ordered[:2]]
    highest = sorted(rows, key=lambda row: (-row["probability"], row["sample"]))
    assert [image.sample for image in found.certain] == [row["sample"] for row in highest[:2]]
    assert {image.prediction for image in found.best} == set(NAMES)
    for image in found.best:
        assert image.sample == next(row["sample"] for row in highest if row["prediction"] == image.prediction)


def test_thumbnails_are_small_and_bare(folder):
    found = page(folder, thumbnails=12)
    images = found.named("img")
    assert len(images) == 3 + 3 + len(NAMES) and "without a picture" not in found.text
    for image in images:
        data = base64.b64decode(image["src"].removeprefix("data:image/jpeg;base64,"))
        assert len(data) <= MAX_BYTES and b"secret" not in data
        with Image.open(io.BytesIO(data)) as opened:
            assert max(opened.size) <= SIDE_PX and not opened.getexif() and "comment" not in opened.info
        assert image["alt"].startswith(("a.tar/", "b.tar/"))
    assert b"secret" in photo(0)


def test_what_cannot_be_read_again_is_left_out_and_counted(folder, tmp_path):
    (tmp_path / "photos" / "b.tar").write_bytes(b"other")
    changed = page(folder)
    assert "changed since it was scored" in changed.text and changed.named("img")
    shutil.rmtree(tmp_path / "photos")
    gone = page(folder)
    assert not gone.named("img") and "a.tar/24" in gone.text
    assert sum(int(count) for _, count in gone.tables["Images without a picture"][1:]) > 0
    assert not page(folder, thumbnails=0).tables.get("Images without a picture")
    with pytest.raises(OSError):
        jpeg(b"no image")


def test_the_same_destination_gives_the_same_page(folder):
    report(folder.url)
    first = folder.read("report.html")
    report(folder.url)
    assert folder.read("report.html") == first


def test_an_unfinished_run_says_so(tmp_path, folder):
    assert "Unfinished" not in page(folder).text
    half = Folder(str(tmp_path / "half"))
    build(half, SHARDS, finish=False)
    found = page(half)
    assert "Unfinished." in found.text and "not yet" in found.text


def test_a_run_with_nothing_but_errors(tmp_path, monkeypatch):
    real = built.chunks
    monkeypatch.setattr(
        built, "chunks", lambda a, b, size, *_, **more: real(a, b, size, frozenset(range(size)), **more)
    )
    folder = Folder(str(tmp_path))
    build(folder, SHARDS)
    found = page(folder)
    assert "No image was scored" in found.text and ["scored", "0"] in found.tables["Images by outcome"]
    assert [row[1] for row in found.tables["Quarantined images by cause"][1:]] == ["37", "1"]


def test_tables_that_are_not_there_are_told_with_the_remedy(tmp_path):
    for table, more in (("predictions", "predictions,embeddings"), ("embeddings", "predictions,embeddings")):
        folder = Folder(str(tmp_path / table))
        build(folder, SHARDS, outputs={table: {}})
        found = page(folder)
        assert f"--outputs {more} adds it" in found.text
        assert ("map" in found.data) == (table == "embeddings")
        assert ("ranks" in found.data) == (table == "predictions")


def test_what_evaluate_found_is_told(folder):
    metric = {"value": 0.75, "low": 0.5, "high": 1.0}
    folder.write_json("evaluation/summary.json", {"evaluated": 1, "metrics": {"accuracy": metric}, "labels": None})
    rows = page(folder).tables["Evaluation"]
    assert rows[1:] == [["evaluated", "1"], ["metrics.accuracy", "0.75 (0.5 to 1)"], ["labels", "none"]]


def test_the_page_asks_no_server(folder):
    found = page(folder)
    for _, attributes in found.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/jpeg"))
    assert "link" not in {tag for tag, _ in found.tags}
    (policy,) = (tag["content"] for tag in found.named("meta") if "http-equiv" in tag)
    assert policy.startswith("default-src 'none'; img-src data:;") and "script-src 'sha256-" in policy
    ids = [attributes["id"] for _, attributes in found.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert {link["href"].removeprefix("#") for link in found.named("a")} <= set(ids)


def test_whatever_others_wrote_stays_text(hostile):
    found = page(hostile)
    calm = {tag for tag, _ in found.tags}
    assert not {"svg", "b", "iframe"} & calm and not found.named("img")
    assert len(found.named("script")) == len(found.data) + 3
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert HOSTILE[0] in found.text
    shown = {name.replace("\u2028", "\\u2028").replace("\u202e", "\\u202e") for name in HOSTILE}
    assert {row[0] for row in found.tables["Images by class"][1:]} == shown
    raw = hostile.read("report.html").decode()
    for each in HOSTILE:
        assert each not in raw
    for chart in found.data.values():  # Plotly's own kind of HTML
        assert "<script" not in json.dumps(chart) and "<img" not in json.dumps(chart) and "<a " not in json.dumps(chart)


@pytest.mark.browser
@pytest.mark.parametrize("guarded", [True, False], ids=["as it is", "without its content security policy"])
def test_a_browser_draws_it_and_runs_nothing_of_theirs(hostile, tmp_path, guarded):
    file = tmp_path / "shown.html"
    report(hostile.url, to=str(file))
    if not guarded:
        file.write_text(file.read_text().replace("Content-Security-Policy", "x-nothing") + POKE)
    shown = browsed(file)
    assert "data-pwned" not in shown.partition("<head>")[0]
    found, sent = Page(shown), Page(file.read_text())
    drawn = [each for each in found.named("svg") if each.get("class") == "main-svg"]
    assert len(drawn) >= len(sent.data) > 0
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert not [
        each for each in found.named("a") if "javascript:" in (each.get("href") or each.get("xlink:href") or "")
    ]
    assert guarded or f", {HOSTILE[0]}, 0." in found.text  # what is selected on the map is listed


def test_it_needs_neither_torch_nor_ray(folder):
    code = (
        "import sys; from birder_ray.report import report; report(sys.argv[1]); "
        "print(*(name for name in ('torch', 'torchvision', 'ray', 'birder') if name in sys.modules))"
    )
    command = [sys.executable, "-c", code, folder.url]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.split() == []


def test_what_stands_in_the_way_is_told(folder, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="--to another path"):
        report(folder.url, to=str(tmp_path / "no" / "report.html"))
    assert report(folder.url, to=str(tmp_path / "mine.html")) == str(tmp_path / "mine.html")
    assert not folder.exists("report.html")
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ConfigError, match=r"plotly: pip install 'birder-ray\[findings\]'"):
        report(folder.url)


EMBEDDING = embeddings_schema(4, "float32").field("embedding").type


class Many(Scores):
    """A million rows of a destination, made as they are read; `held` is how much Arrow held before each part."""

    def stream(self, table, columns=None):
        for (rows,) in self.aligned({table: columns}):
            yield rows

    def aligned(self, columns):
        self.held = []
        dice = np.random.default_rng(0)
        for unit in range(32):
            size = 1 << 15
            names = [f"{unit}/{row}" for row in range(size)]
            made = {
                "sample": names, "shard": ["a"] * size, "index": np.arange(size),
                "prediction": [NAMES[row % 3] for row in range(size)],
                "probability": pa.array(dice.random(size), pa.float32()),
                "entropy": pa.array(dice.random(size), pa.float32()),
                "embedding": pa.array(dice.random((size, 4)).tolist(), EMBEDDING),
            }  # fmt: skip
            self.held.append(pa.total_allocated_bytes())
            yield tuple(pa.table({name: made[name] for name in names}) for names in columns.values())
            del made


@pytest.mark.parametrize("look", [lambda scores: facts.predicted(scores, 48), lambda scores: cloud(scores, 500)])
def test_memory_does_not_grow_with_the_rows(folder, look):
    scores = Many(folder.url)
    look(scores)
    assert max(scores.held[16:]) <= 1.3 * max(scores.held[4:16])


def test_the_map_holds_the_same_samples_whatever_the_order(folder):
    scores = Scores(folder.url)
    forward = cloud(scores, 7)
    scores = Scores(folder.url)
    scores.__dict__["units"] = [*scores.units][::-1]
    assert sorted(cloud(scores, 7).samples) == sorted(forward.samples) and len(forward.samples) == 7
    assert forward.total == 35

"""The page of a comparison: its numbers are those of the comparison, names stay text, and it needs nothing else."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from birder_ray.cli import app
from birder_ray.compare import Limits, compare, write_html
from birder_ray.compare.charts import shifts
from birder_ray.compare.comparison import ClassShift, Comparison
from birder_ray.errors import ConfigError, LimitExceeded
from birder_ray.folder import Folder
from birder_ray.manifest import MANIFEST
from tests import built
from tests.browser import browsed
from tests.built import build
from tests.test_compare import predict
from tests.test_report import HOSTILE, Page

SHARDS = {"a.tar": 25, "b.tar": 12}
FLIPS = {"a.tar/0": (1, 0.9), "a.tar/6": (1, 0.3), "a.tar/1": (2, 0.75), "a.tar/4": (1, 0.99), "b.tar/0": (2, 0.6)}
DARK = "--blink-settings=preferredColorScheme=0"
# Tells the page around it how wide it is, and what cannot be reached
MEASURE = """<script>addEventListener("load", () => parent.postMessage({
  wide: document.documentElement.scrollWidth - innerWidth, width: innerWidth,
  drawn: document.querySelectorAll("svg.main-svg").length,
}, "*"))</script>"""
PHONE = """<html><head></head><body><script>
addEventListener("message", ({ data }) => Object.assign(document.documentElement.dataset, data));
</script><iframe src="shown.html" width="360" height="800"></iframe></body></html>"""


def pair(path: Path, names: list[str]) -> tuple[Folder, Folder]:
    """Two destinations; in B four samples flipped, and c.tar is there, damaged."""
    a, b = Folder(str(path / "a")), Folder(str(path / "b"))
    build(a, SHARDS)
    build(b, {**SHARDS, "c.tar": 5})
    predict(b, {sample: (names[at], probability) for sample, (at, probability) in FLIPS.items()})
    return a, b


@pytest.fixture
def found(tmp_path) -> Comparison:
    a, b = pair(tmp_path, built.NAMES)
    return compare(a.url, b.url)


@pytest.fixture
def hostile(tmp_path, monkeypatch) -> Comparison:
    """Of destinations where everything that has a name has a bad one."""
    monkeypatch.setattr(built, "NAMES", HOSTILE)
    monkeypatch.setitem(SHARDS, f"{HOSTILE[0]}.tar", 14)
    a, b = pair(tmp_path, HOSTILE)
    manifest = b.read_json(MANIFEST)
    manifest["model"]["name"] = manifest["model"]["network"] = HOSTILE[2]
    b.write_json(MANIFEST, manifest)
    return compare(a.url, b.url)


def page(found: Comparison, tmp_path: Path, **limits: float) -> Page:
    write_html(found, Limits(**limits), str(tmp_path / "shown.html"))
    return Page((tmp_path / "shown.html").read_text())


def test_the_numbers_are_those_of_the_comparison(found, tmp_path):
    shown = page(found, tmp_path)
    told = {name: int(count) for name, count in shown.tables["Samples"][1:]}
    assert told == {
        "scored in both": 35, "scored in A, missing in B": 0, "only in B": 4, "scored in A, quarantined in B": 0,
        "quarantined in A, scored in B": 0, "quarantined in both": 2,
    }  # fmt: skip
    assert shown.tables["Newly damaged shards"][1:] == [["c.tar"]]
    assert "4 of 35" in shown.text and "11.429%" in shown.text
    assert shown.tables["Flips (3)"][1:] == [["heron", "stork", "2"], ["heron", "ibis", "1"], ["stork", "ibis", "1"]]
    (bars,) = shown.data["pairs"]["data"]
    assert bars["x"] == [2, 1, 1] and bars["customdata"] == ["heron → stork", "heron → ibis", "stork → ibis"]
    assert [each["text"] for each in shown.data["pairs"]["layout"]["annotations"]] == bars["customdata"]

    assert [row[:6] for row in shown.tables["Classes (3)"][1:]] == [
        ["heron", "11", "8", "0", "3", "-8.571"], ["ibis", "12", "14", "2", "0", "5.714"],
        ["stork", "12", "13", "2", "1", "2.857"],
    ]  # fmt: skip
    gained, lost = shown.data["shifts"]["data"]
    assert (gained["x"], gained["y"]) == (pytest.approx([200 / 35, 100 / 35]), [1, 2])
    assert (lost["x"], lost["y"]) == (pytest.approx([-300 / 35]), [0])
    heron = found.predictions.classes[0]
    reach = lost["x"][0] + lost["error_x"]["array"][0], lost["x"][0] - lost["error_x"]["arrayminus"][0]
    assert reach == pytest.approx((100 * heron.high, 100 * heron.low), abs=1e-5)
    assert lost["marker"]["symbol"] == ["square-open"] and gained["marker"]["symbol"] == 2 * ["circle-open"]

    every, flipped = shown.data["shift"]["data"]
    assert every["y"] == list(found.predictions.probability.histogram) and sum(every["y"]) == 35
    same = found.predictions.same.histogram
    assert flipped["y"] == [one - other for one, other in zip(every["y"], same, strict=True)] and sum(flipped["y"]) == 4
    assert [row[0] for row in shown.tables["Samples that changed most"][1:]] == [
        each.sample for each in found.predictions.changes
    ]
    assert ["CKA of the two spaces", "1.000000"] in shown.tables["Embeddings"]
    assert "They differ in: scored, quarantined." in shown.text


def test_a_shift_that_is_no_chance_is_a_full_point():
    drawn = json.loads(shifts([ClassShift("x", 9, 4, 0, 5, -5, -0.1, -0.2, -0.01)], {}))["data"]
    assert [(trace["name"], trace["marker"]["symbol"]) for trace in drawn] == [("lost", ["square"])]


def test_newly_failing_and_missing_samples_are_listed(tmp_path, monkeypatch):
    real = built.chunks
    a, b = Folder(str(tmp_path / "a")), Folder(str(tmp_path / "b"))
    build(a, SHARDS)
    monkeypatch.setattr(built, "chunks", lambda p, s, n, _, **more: real(p, s, n, frozenset({3, 5, 7}), **more))
    build(b, {"a.tar": 24, "b.tar": 12})
    shown = page(compare(a.url, b.url), tmp_path)
    assert shown.tables["Missing in B"][1:] == [["a.tar/24"]]
    assert shown.tables["Newly failing, by cause"][1:] == [["EmptyFile", "4"]]
    assert [row[0] for row in shown.tables["Newly failing"][1:]] == ["a.tar/5", "a.tar/7", "b.tar/5", "b.tar/7"]


def test_the_verdict_is_that_of_the_gate(found, tmp_path):
    assert "No limits were given" in page(found, tmp_path).text
    assert "All limits hold." in page(found, tmp_path, max_flip_rate=0.2, min_cosine=0.9).text
    shown = page(found, tmp_path, max_flip_rate=0.01, max_missing=0)
    assert "B changed more than is allowed: flip rate 0.114286 is above --max-flip-rate 0.01." in shown.text
    assert shown.tables["Limits"][1:] == [
        ["--max-flip-rate", "does not hold", "0.114286", "at most 0.01", "flip rate"],
        ["--max-missing", "holds", "0", "at most 0", "missing samples"],
    ]


def test_no_limit_holds_for_what_is_yet_to_be_scored(found, tmp_path):
    build(Folder(str(tmp_path / "half")), SHARDS, finish=False)
    half = compare(str(tmp_path / "a"), str(tmp_path / "half"))
    assert "B changed more than" not in page(half, tmp_path).text
    shown = page(half, tmp_path, max_flip_rate=0.5)
    assert f"than is allowed: {half.b.url} is unfinished, so no limit holds for all of it." in shown.text
    assert "All limits hold. They are held against what is there by now" in shown.text


def test_identical_runs_have_a_page_that_says_so(tmp_path):
    folder = Folder(str(tmp_path / "a"))
    build(folder, SHARDS)
    shown = page(compare(folder.url, folder.url), tmp_path)
    assert "They differ in none of these." in shown.text and "No sample has left its class." in shown.text
    assert shown.data.keys() == {"shift"} and len(shown.data["shift"]["data"]) == 1


def test_what_cannot_be_compared_is_told(tmp_path):
    """A table that one side has not, and no sample in common."""
    a, b, c = (Folder(str(tmp_path / name)) for name in "abc")
    build(a, SHARDS)
    build(b, {"c.tar": 7}, finish=False)
    build(c, SHARDS, outputs={"features": {}})
    apart = page(compare(a.url, b.url), tmp_path, max_flip_rate=0.5)
    assert "B is unfinished" in apart.text and "No sample is scored in both" in apart.text and not apart.data
    assert ["--max-flip-rate", "does not hold", "not measured", "at most 0.5", "flip rate"] in apart.tables["Limits"]
    less = page(compare(a.url, c.url), tmp_path)
    assert "B has no table predictions" in less.text and not less.data


def test_the_same_comparison_gives_the_same_page(found, tmp_path):
    page(found, tmp_path)
    first = (tmp_path / "shown.html").read_bytes()
    page(compare(str(tmp_path / "a"), str(tmp_path / "b")), tmp_path)
    assert (tmp_path / "shown.html").read_bytes() == first


def test_species_are_called_by_their_names(tmp_path, monkeypatch):
    above = "Animalia_Chordata_Aves_Pelecaniformes_Ardeidae_Ardea"
    names = [f"0000{n}_{above}_{each}" for n, each in enumerate(("alba", "cocoi", "ibis"))]
    monkeypatch.setattr(built, "NAMES", names)
    a, b = pair(tmp_path, names)
    shown = page(compare(a.url, b.url), tmp_path)
    assert shown.data["pairs"]["layout"]["annotations"][0]["text"] == "Ardea alba → Ardea cocoi"
    assert shown.tables["Flips (3)"][1] == [names[0], names[1], "2"]


def test_the_page_asks_no_server(found, tmp_path):
    shown = page(found, tmp_path)
    for tag, attributes in shown.tags:
        assert tag not in ("link", "img", "iframe")
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert (attributes.get(name) or "#").startswith("#")
    (policy,) = (tag["content"] for tag in shown.named("meta") if "http-equiv" in tag)
    assert policy.startswith("default-src 'none'; img-src data:;") and policy.count("'sha256-") == 2
    ids = [attributes["id"] for _, attributes in shown.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert {link["href"].removeprefix("#") for link in shown.named("a")} <= set(ids)
    regions = [attributes for _, attributes in shown.tags if attributes.get("role") == "region"]
    assert regions and all(each["tabindex"] == "0" and each["aria-label"] for each in regions)


def test_whatever_others_wrote_stays_text(hostile, tmp_path):
    shown = page(hostile, tmp_path)
    assert not {"svg", "b", "iframe", "img"} & {tag for tag, _ in shown.tags}
    assert len(shown.named("script")) == len(shown.data) + 2 == 5
    assert not [name for _, attributes in shown.tags for name in attributes if name.startswith("on")]
    assert (
        HOSTILE[0] in shown.text
        and ["Model", "tiny", HOSTILE[2].replace("\u202e", "\\u202e")] in shown.tables["The two runs"]
    )
    raw = (tmp_path / "shown.html").read_text()
    assert not [each for each in HOSTILE if each in raw]
    for chart in shown.data.values():  # Plotly's own kind of HTML
        assert not [each for each in ("<script", "<img", "<a ") if each in json.dumps(chart)]


@pytest.mark.browser
@pytest.mark.parametrize("guarded", [True, False], ids=["as it is", "without its content security policy"])
def test_a_browser_draws_it_and_runs_nothing_of_theirs(hostile, tmp_path, guarded):
    sent, file = page(hostile, tmp_path), tmp_path / "shown.html"
    if not guarded:
        file.write_text(file.read_text().replace("Content-Security-Policy", "x-nothing"))
    raw = browsed(file)
    assert "data-pwned" not in raw.partition("<head>")[0]
    shown = Page(raw)
    assert len([each for each in shown.named("svg") if each.get("class") == "main-svg"]) >= len(sent.data) == 3
    assert not [name for _, attributes in shown.tags for name in attributes if name.startswith("on")]
    assert not [each for each in shown.named("a") if "javascript:" in (each.get("xlink:href") or each["href"] or "")]
    assert "<script" in shown.text  # a name, as a label of a chart


@pytest.mark.browser
def test_it_fits_a_phone_and_the_dark(found, tmp_path):
    page(found, tmp_path)
    file = tmp_path / "shown.html"
    assert "fill: rgb(28, 31, 35)" in browsed(file) and "fill: rgb(232, 234, 236)" in browsed(file, DARK)
    file.write_text(file.read_text().replace("Content-Security-Policy", "x-nothing") + MEASURE)
    phone = tmp_path / "phone.html"
    phone.write_text(PHONE)
    (around,) = Page(browsed(phone)).named("html")
    assert around["data-width"] == "360" and int(around["data-wide"]) <= 0 and int(around["data-drawn"]) >= 3


def test_what_stands_in_the_way_is_told(found, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="--html another path"):
        write_html(found, Limits(), str(tmp_path / "no" / "page.html"))
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ConfigError, match=r"--html needs plotly: pip install 'birder-ray\[findings\]'"):
        write_html(found, Limits(), str(tmp_path / "page.html"))


def test_the_command_writes_it_also_where_a_limit_does_not_hold(found, tmp_path):
    file = tmp_path / "page.html"
    arguments = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--html", str(file), "--max-flip-rate", "0.01"]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, LimitExceeded) and "4 of 35" in done.output
    assert "does not hold" in file.read_text()

"""Two destinations compared: known changes are counted as they were made, and numbers agree with their definitions."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from birder_ray.commit import Ledger
from birder_ray.compare import Comparison, Limits, compare, lines, violations
from birder_ray.compare.comparison import Rate
from birder_ray.compare.similarity import cosine, linear_cka
from birder_ray.errors import ConfigError, RunFailed
from birder_ray.folder import Folder
from birder_ray.intervals import Z95, paired, wilson
from birder_ray.parts import part_name
from birder_ray.record import record_name
from birder_ray.schema import embeddings_schema, predictions_schema
from tests import built
from tests.built import build, rewrite

SHARDS = {"a.tar": 25, "b.tar": 12}
SCORED = 35


@pytest.fixture
def a(tmp_path) -> Folder:
    made = Folder(str(tmp_path / "a"))
    build(made, SHARDS)
    return made


@pytest.fixture
def b(tmp_path) -> Folder:
    made = Folder(str(tmp_path / "b"))
    build(made, SHARDS)
    return made


def predict(folder: Folder, told: dict[str, tuple[str, float]]) -> None:
    """Give samples another class and probability."""

    def change(rows: pa.Table) -> pa.Table:
        made = [
            row | dict(zip(("prediction", "probability"), told.get(row["sample"], ()), strict=False))
            for row in rows.to_pylist()
        ]
        return pa.Table.from_pylist(made, rows.schema)

    everywhere(folder, "predictions", change)


def embed(folder: Folder, vectors: Callable[[list[int]], np.ndarray], size: int, dtype: str = "float32") -> None:
    """Give every sample the embedding that follows from its index."""
    schema = embeddings_schema(size, dtype)

    def change(rows: pa.Table) -> pa.Table:
        flat = vectors(rows["index"].to_pylist()).astype(dtype).ravel()
        values = pa.FixedSizeListArray.from_arrays(pa.array(flat, schema.field("embedding").type.value_type), size)
        return pa.table([rows["sample"], rows["shard"], rows["index"], values], schema=schema)

    everywhere(folder, "embeddings", change)


def everywhere(folder: Folder, table: str, change) -> None:
    for unit in Ledger(folder).units():
        rewrite(folder, table, unit, change)


def test_identical_runs_differ_in_nothing(a, b):
    found = compare(a.url, b.url)
    assert found.samples.both == SCORED == found.a.scored and found.samples.missing.count == 0
    assert found.samples.failing_in_both == 2 == found.a.quarantined
    assert found.samples.newly_failing.count == found.samples.recovered == found.samples.added == 0
    assert found.predictions.flips.rate == 0.0 and found.predictions.total_variation == 0.0
    assert found.predictions.pairs == () == found.predictions.changes
    assert found.predictions.probability.samples == found.predictions.probability.histogram[20] == SCORED
    # Sample 0 of each shard has an embedding of zeros, without a direction
    assert (found.embeddings.cosine.mean, found.embeddings.cosine.min) == (1.0, 1.0)
    assert found.embeddings.cosine.samples == SCORED - 2 and found.embeddings.cka == pytest.approx(1.0, abs=1e-12)
    assert found.notes == ()
    assert violations(found, Limits(0, 0, 1.0, 1 - 1e-9, 0, 0)) == []


def test_flips_are_counted_as_they_were_made(a, b):
    # In A, the class is that of index % 3, with 0.5 + index / 100
    predict(
        b, {"a.tar/0": ("stork", 0.9), "a.tar/6": ("stork", 0.3), "a.tar/1": ("ibis", 0.75), "a.tar/4": ("stork", 1)}
    )
    found = compare(a.url, b.url).predictions
    assert (found.flips.count, found.flips.total) == (3, SCORED) and found.flips.rate == 3 / SCORED
    assert [(each.before, each.after, each.count) for each in found.pairs] == [
        ("heron", "stork", 2),
        ("stork", "ibis", 1),
    ]
    assert found.pairs_seen == 2
    told = {each.name: (each.a, each.b, each.gained, each.lost, each.net) for each in found.classes}
    assert told == {"heron": (11, 9, 0, 2, -2), "stork": (12, 13, 2, 1, 1), "ibis": (12, 13, 1, 0, 1)}
    assert [each.name for each in found.classes] == ["heron", "ibis", "stork"]  # by size, then by name
    assert found.largest_shift == 2 / SCORED and found.total_variation == pytest.approx(2 / SCORED)
    moves = np.float32([0.9, 0.3, 0.75, 1]).astype(float) - np.float32([0.5, 0.56, 0.51, 0.54]).astype(float)
    assert found.probability.mean == pytest.approx(moves.sum() / SCORED, abs=1e-9)
    assert found.probability.mean_absolute == pytest.approx(np.abs(moves).sum() / SCORED, abs=1e-9)
    assert (found.probability.min, found.probability.max) == (moves.min(), moves.max())
    assert found.probability.quantiles["0.5"] == 0.0 and found.probability.quantiles["0.99"] == 0.46
    assert found.same.samples == SCORED - 3 and found.same.mean == pytest.approx(moves[3] / (SCORED - 3), abs=1e-9)
    assert found.same.histogram[29] == 1  # 0.46 is in [0.45, 0.5)
    half, nine = found.confident
    assert (half.either.count, half.either.total, half.both.count, half.both.total) == (3, SCORED, 2, SCORED - 1)
    assert (nine.either.count, nine.either.total) == (1, 2) and nine.both.total == 0 and nine.both.rate is None
    # heron of 0.5 to stork of 0.9: in A stork had at most 0.5, in B heron at most 0.1: 0.4 either way
    changes = {each.sample: each.change for each in found.changes}
    assert changes == pytest.approx({"a.tar/4": 0.46, "a.tar/0": 0.4, "a.tar/6": 0.26, "a.tar/1": 0.26}, abs=1e-6)
    assert found.changes[0].sample == "a.tar/4" and found.changes[0].probability_before == pytest.approx(0.54)


def test_no_distributions_with_these_top_classes_are_closer_than_the_change_says(a, b):
    dice = np.random.default_rng(3)
    before, after = dice.dirichlet(np.full(4, 0.3), (2, 30)).astype(np.float32).astype(float)
    names = ["heron", "stork", "ibis", "owl"]
    samples = [f"a.tar/{index}" for index in range(25) if index != 3]
    for folder, rows in ((a, before), (b, after)):
        predict(folder, {s: (names[p.argmax()], float(p.max())) for s, p in zip(samples, rows, strict=False)})
    found = compare(a.url, b.url).predictions.changes
    apart = {s: np.abs(p - q).sum() / 2 for s, p, q in zip(samples, before, after, strict=False)}
    assert len(found) == 20 and all(0 < each.change <= apart[each.sample] + 1e-6 for each in found)
    assert any(each.before != each.after for each in found)


def test_classes_are_compared_by_name(a, tmp_path, monkeypatch):
    monkeypatch.setattr(built, "NAMES", ["ibis", "heron", "owl"])  # the order is another, and stork is now owl
    other = Folder(str(tmp_path / "other"))
    build(other, SHARDS)
    found = compare(a.url, other.url)
    assert found.predictions.names_shared == 2
    assert found.predictions.flips.count == SCORED
    predict(other, {f"{s}/{i}": (["heron", "stork", "ibis"][i % 3], 0.5) for s, n in SHARDS.items() for i in range(n)})
    again = compare(a.url, other.url)
    assert again.predictions.flips.count == 0
    assert again.notes == ("the class lists share 2 names of 3 in A and 3 in B",)


def test_where_samples_went(tmp_path):
    """B lacks a shard, has one more, and scores what A could not; of what A scored, it quarantines three."""
    a, b = Folder(str(tmp_path / "a")), Folder(str(tmp_path / "b"))
    build(a, {"a.tar": 25, "b.tar": 12})
    build(b, {"a.tar": 25, "c.tar": 5})
    failing = {"a.tar/20", "a.tar/22", "a.tar/24"}
    unit = max(unit for unit in Ledger(b).units() if unit.startswith("a"))
    for table in ("predictions", "embeddings", "features"):
        rewrite(
            b, table, unit, lambda rows: rows.filter(pa.array([s not in failing for s in rows["sample"].to_pylist()]))
        )
    first = min(unit for unit in Ledger(b).units() if unit.startswith("a"))
    quarantine(b, unit, [(s, "decode", "TruncatedImage" if s.endswith("2") else "EmptyFile") for s in sorted(failing)])
    for table in ("predictions", "embeddings", "features"):
        rewrite(b, table, first, lambda rows: pa.concat_tables([rows, rows.slice(0, 1).set_column(
            0, rows.schema.field(0), pa.array(["a.tar/3"]))]))  # fmt: skip
    quarantine(b, first, [])
    found = compare(a.url, b.url).samples
    assert found.both == 21 and (found.newly_failing.count, found.newly_failing.total) == (3, SCORED)
    assert found.error_types == {"EmptyFile": 2, "TruncatedImage": 1} and list(found.error_types) == sorted(
        found.error_types
    )
    assert [(each.sample, each.step) for each in found.newly_failing_examples] == [
        (s, "decode") for s in sorted(failing)
    ]
    assert found.missing.count == 11 and set(found.missing_examples) == {f"b.tar/{i}" for i in range(12) if i != 3}
    assert (found.added, found.recovered, found.failing_in_both) == (4, 1, 0)
    assert (found.newly_damaged, found.newly_damaged_shards) == (1, ("c.tar",))


def quarantine(folder: Folder, unit: str, rows: list[tuple[str, str, str]]) -> None:
    """Make these the errors of a unit."""
    donor = next(u for u in sorted(Ledger(folder).units()) if "errors" in folder.read_json(record_name(u))["parts"])
    if donor != unit:
        folder.write(part_name("errors", unit), folder.read(part_name("errors", donor)))
        record = folder.read_json(record_name(unit))
        record["parts"]["errors"] = folder.read_json(record_name(donor))["parts"]["errors"]
        folder.write_json(record_name(unit), record)
    told = [
        {"sample": sample, "shard": "a.tar", "index": int(sample[6:]), "step": step, "error_type": kind}
        | {"message": "cut", "uri": f"/data/{sample}"}
        for sample, step, kind in rows
    ]
    rewrite(folder, "errors", unit, lambda old: pa.Table.from_pylist(told, old.schema))


def test_the_order_of_shards_and_the_size_of_units_do_not_matter(a, tmp_path, monkeypatch):
    monkeypatch.setattr(built, "ROWS", 7)
    other = Folder(str(tmp_path / "other"))
    build(other, dict(reversed(SHARDS.items())))
    assert len(Ledger(other).units()) != len(Ledger(a).units())
    found = compare(a.url, other.url)
    assert found.samples.both == SCORED and found.predictions.flips.count == 0
    assert found.embeddings.cosine.min == 1.0 and found.embeddings.cka == pytest.approx(1.0, abs=1e-12)


def test_embeddings_of_different_sizes_have_a_cka(a, b):
    mix = np.random.default_rng(1).normal(size=(5, 7))
    seeded = {index: np.random.default_rng(index).normal(size=5) for index in range(25)}
    embed(a, lambda indices: np.stack([seeded[i] for i in indices]), 5)
    embed(b, lambda indices: np.stack([seeded[i] @ mix for i in indices]), 7, "float16")
    found = compare(a.url, b.url)
    assert (found.embeddings.size_a, found.embeddings.size_b, found.embeddings.cosine) == (5, 7, None)
    indices = [i for size in SHARDS.values() for i in range(size) if i != 3]
    x = np.stack([seeded[i] for i in indices]).astype(np.float32)
    y = np.stack([seeded[i] @ mix for i in indices]).astype(np.float16)
    assert found.embeddings.cka == pytest.approx(gram_cka(x, y), abs=1e-9)
    assert 0.5 < found.embeddings.cka < 0.999
    assert found.notes == ("embeddings have 5 values in A and 7 in B: no cosine, only CKA",)


def gram_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Debiased linear CKA by U-centred Gram matrices (Székely and Rizzo 2014, definition 2), an inner product each."""

    def u_centred(values: np.ndarray) -> np.ndarray:
        n, gram = len(values), values.astype(float) @ values.astype(float).T
        np.fill_diagonal(gram, 0)
        rows = gram.sum(axis=0)
        gram = gram - rows / (n - 2) - rows[:, None] / (n - 2) + gram.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(gram, 0)
        return gram

    k, l = u_centred(x), u_centred(y)  # noqa: E741
    return float((k * l).sum() / math.sqrt((k * k).sum() * (l * l).sum()))


@pytest.mark.parametrize(("n", "p", "q"), [(4, 3, 2), (50, 8, 30), (3000, 16, 5)])
def test_cka_is_that_of_the_gram_matrices(n, p, q):
    dice = np.random.default_rng(n)
    x = dice.normal(3, 2, (n, p)).astype(np.float32)
    y = (np.tanh(x[:, :1]) + dice.normal(size=(n, q))).astype(np.float32)
    assert linear_cka(x, y) == pytest.approx(gram_cka(x, y), abs=1e-9)


def test_cka_knows_a_rotation_from_noise():
    dice = np.random.default_rng(5)
    x = dice.normal(size=(200, 300)).astype(np.float32)
    rotation, _ = np.linalg.qr(dice.normal(size=(300, 300)))
    assert linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1.0, abs=1e-6)
    noise = dice.normal(size=(200, 300))
    centred = x - x.mean(axis=0), noise - noise.mean(axis=0)
    k, l = (each @ each.T for each in centred)  # noqa: E741
    assert (k * l).sum() / math.sqrt((k * k).sum() * (l * l).sum()) > 0.5  # the plain estimator, of noise
    assert abs(linear_cka(x, noise)) < 0.05


def test_what_has_no_direction_or_spread_has_no_similarity():
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    assert linear_cka(x[:3], x[:3]) is None and linear_cka(x, np.ones((6, 2), np.float32)) is None
    assert cosine(np.zeros_like(x), np.zeros_like(x)) is None
    none = np.arange(6)[:, None] == 2
    found = cosine(np.where(none, 0, x), np.where(none, 0, -x))
    assert (found.samples, found.mean, found.min) == (5, -1.0, -1.0)


def test_embeddings_that_lost_their_direction_are_not_left_out():
    """Else a gate would pass where one of both holds hardly anything but zeros."""
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    found = cosine(x, np.where(np.arange(6)[:, None] == 2, x, 0))
    assert (found.samples, found.min) == (6, 0.0) and found.mean == pytest.approx(1 / 6)


def test_cosine_is_that_of_each_sample(a, b):
    embed(a, lambda indices: np.stack([[1.0, 0.0] for _ in indices]), 2)
    embed(b, lambda indices: np.stack([[math.cos(i / 50), math.sin(i / 50)] for i in indices]), 2)
    found = compare(a.url, b.url).embeddings
    wanted = [math.cos(i / 50) for size in SHARDS.values() for i in range(size) if i != 3]
    assert found.cosine.mean == pytest.approx(np.mean(wanted), abs=1e-6)
    assert found.cosine.min == pytest.approx(min(wanted), abs=1e-6)
    assert found.cosine.quantiles["0.25"] == pytest.approx(np.quantile(wanted, 0.25), abs=1e-6)


def test_the_choice_of_embeddings_is_the_same_each_time(a, b):
    embed(b, lambda indices: np.random.default_rng(indices[0]).normal(size=(len(indices), 4)), 4)
    some = [compare(a.url, b.url, samples=9, seed=seed).embeddings for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2] and some[0].samples == 9


def test_a_table_that_is_absent_is_told(a, tmp_path):
    few, other = Folder(str(tmp_path / "few")), Folder(str(tmp_path / "other"))
    build(few, SHARDS, outputs={"predictions": {}})
    build(other, SHARDS, outputs={"embeddings": {}})
    found = compare(a.url, few.url)
    assert found.embeddings is None and found.predictions.flips.rate == 0.0
    assert found.notes == ("B has no table embeddings: embeddings are not compared",)
    found = compare(other.url, a.url)
    assert found.predictions is None and found.samples.both == SCORED and found.embeddings.cosine.min == 1.0
    assert found.notes == ("A has no table predictions: predictions are not compared",)
    assert violations(found, Limits(max_flip_rate=1.0)) == [
        "flip rate was not measured, so --max-flip-rate 1 does not hold"
    ]


def test_an_unfinished_destination_is_compared_as_far_as_it_is(a, tmp_path):
    part = Folder(str(tmp_path / "part"))
    build(part, SHARDS, finish=False)
    part.delete(record_name(max(Ledger(part).units())))
    found = compare(a.url, part.url)
    assert found.samples.missing.count == 2 and found.predictions.flips.rate == 0.0
    assert found.notes == ("B is unfinished: compared is what it holds by now",)
    assert violations(found, Limits()) == []
    assert violations(found, Limits(max_flip_rate=0.0)) == [
        f"{part.url} is unfinished, so no limit holds for all of it"
    ]
    same = compare(part.url, a.url)
    assert violations(same, Limits(max_missing=0.0)) == [f"{part.url} is unfinished, so no limit holds for all of it"]


def test_nothing_in_common(a, tmp_path):
    other = Folder(str(tmp_path / "other"))
    build(other, {"z.tar": 8})
    found = compare(a.url, other.url)
    assert found.predictions is None is found.embeddings and found.samples.missing.rate == 1.0
    assert found.notes == ("no sample is scored in both: only the counts are compared",)
    assert any("0 in both" in line for line in lines(found))
    assert violations(found, Limits(max_new_errors=1.0)) == [
        "newly failing was not measured, so --max-new-errors 1 does not hold"
    ]


def test_a_damaged_part_is_named(a, b):
    name = part_name("predictions", max(Ledger(b).units()))
    b.write(name, b"PAR1")
    with pytest.raises(ConfigError, match=rf"^{b.path}/{name}.*repair"):
        compare(a.url, b.url)


def test_the_json_is_the_same_each_time_and_tells_all(a, b):
    predict(b, {"a.tar/0": ("stork", 0.9), "a.tar/1": ("ibis", 0.75)})
    first, second = (json.dumps(compare(a.url, b.url).told(), allow_nan=False) for _ in range(2))
    assert first == second
    told = json.loads(first)
    assert told["comparison"] == 1 and told["a"]["recipe"] == told["b"]["recipe"] and told["b"]["url"] == b.url
    assert told["predictions"]["flips"]["count"] == 2 and told["predictions"]["pairs"][0]["before"] == "heron"
    assert told["predictions"]["changes"][0]["sample"] == "a.tar/0"


def test_limits(a, b):
    predict(b, {"a.tar/0": ("stork", 0.9), "a.tar/6": ("stork", 0.3)})
    embed(b, lambda indices: np.stack([[1.0, 0, 0, 0] for _ in indices]), 4)  # 0.5, but 0 for the two zeros of A
    found = compare(a.url, b.url)
    assert violations(found, Limits()) == []
    assert violations(found, Limits(max_flip_rate=2 / SCORED, max_share_shift=2 / SCORED, min_cosine=0.4)) == []
    assert violations(found, Limits(0.05, 0.0, 0.9, 0.9, 0.01, 0.0)) == [
        "flip rate 0.0571429 is above --max-flip-rate 0.05",
        "mean cosine 0.471429 is below --min-cosine 0.9",
        "CKA was not measured, so --min-cka 0.9 does not hold",
        "largest share shift 0.0571429 is above --max-share-shift 0.01",
    ]
    text = "\n".join(lines(found))
    assert "flips    5.714% (1.581% to 18.607%): 2 of 35" in text and "2 heron -> stork" in text


def test_limits_of_samples(a, tmp_path):
    fewer = Folder(str(tmp_path / "fewer"))
    build(fewer, {"a.tar": 25})
    found = compare(a.url, fewer.url)
    assert violations(found, Limits(max_missing=0.3, max_new_errors=0.0)) == [
        "missing samples 0.314286 is above --max-missing 0.3"
    ]


@pytest.mark.parametrize(("count", "total"), [(0, 10), (1, 10), (5, 10), (10, 10), (3, 35), (17, 1_000_000)])
def test_wilson_bounds_solve_their_equation(count, total):
    """They are the p at which |count / total - p| is 1.96 standard errors of p itself."""
    low, high = wilson(count, total)
    for bound in (low, high):
        gap = (count / total - bound) ** 2 - Z95**2 * bound * (1 - bound) / total
        assert abs(gap) < 1e-12
    assert 0 <= low <= count / total <= high <= 1 and low < high


def test_wilson_by_hand():
    assert wilson(1, 10) == pytest.approx((0.0178762, 0.4041500), abs=1e-6)
    assert Rate.of(0, 0) == Rate(0, 0, None, None, None)


def test_paired_interval_is_that_of_the_samples_differences():
    """The same as the standard error of a mean: of +1 for each gained, -1 for each lost, 0 for the rest, + 1/2 each."""
    gained, lost, total = 40, 15, 500
    weights = np.array([gained + 0.5, lost + 0.5, total - gained - lost + 1])
    values = np.array([1.0, -1.0, 0.0])
    mean = (weights * values).sum() / weights.sum()
    error = math.sqrt((weights * (values - mean) ** 2).sum() / weights.sum() / weights.sum())
    assert paired(gained, lost, total) == pytest.approx((mean - Z95 * error, mean + Z95 * error), abs=1e-12)
    assert paired(3, 3, 10)[0] == -paired(3, 3, 10)[1] and paired(10, 0, 10)[1] <= 1.0


def test_paired_interval_covers():
    dice = np.random.default_rng(0)
    drawn = dice.multinomial(200, [0.06, 0.02, 0.92], 2000)
    covered = np.mean([low <= 0.04 <= high for low, high in (paired(g, l, 200) for g, l, _ in drawn.tolist())])  # noqa: E741
    assert 0.93 < covered < 0.98


def many(folder: Folder, rows: int, order: np.ndarray, flips: int) -> None:
    """One unit of so many samples with long names, in this order, the first of which are another class."""
    build(folder, {"a.tar": 5}, outputs={"predictions": {}})
    names = [f"{'folder/' * 30}{index:09d}" for index in order]
    first = pa.array(np.where(order < flips, 1, order % 3))
    columns = {
        "sample": pa.array(names),
        "shard": pa.array(["a.tar"]).take(pa.array(np.zeros(rows, int))),
        "index": pa.array(order),
        "prediction": pa.array(built.NAMES).take(first),
        "probability": pa.array((order % 97 / 100).astype(np.float32)),
    }
    schema = predictions_schema(3, logits=False)
    made = pa.table([columns.get(each.name, pa.nulls(rows, each.type)) for each in schema], schema=schema)
    (unit,) = Ledger(folder).units()
    rewrite(folder, "predictions", unit, lambda _: made)


def test_a_join_larger_than_its_memory_goes_to_disk(tmp_path, monkeypatch):
    """Names alone are 66 MB on each side, more than the join may hold; what is left behind is nothing."""
    folders = [Folder(str(tmp_path / name)) for name in "ab"]
    rows, dice = 300_000, np.random.default_rng(0)
    for folder, flips in zip(folders, (0, 600), strict=True):
        many(folder, rows, dice.permutation(rows), flips)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    small: Comparison = compare(folders[0].url, folders[1].url, memory="64MB")
    assert small.samples.both == rows and small.predictions.flips.count == 400
    assert small.told() == compare(folders[0].url, folders[1].url, memory="2GB").told()
    with pytest.raises(RunFailed, match="--memory than 1MB"):
        compare(folders[0].url, folders[1].url, memory="1MB")
    assert list(Path(scratch).iterdir()) == []


def test_a_memory_that_is_none(a, b):
    with pytest.raises(ConfigError, match="--memory much"):
        compare(a.url, b.url, memory="much")


def test_without_duckdb_it_says_what_to_install(a, b, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ConfigError, match=r"pip install 'birder-ray\[findings\]'"):
        compare(a.url, b.url)


def test_the_command_is_a_gate(tmp_path):
    """Exit code 0 within the limits, 1 beyond them, 2 where the question is wrong; the JSON is all that is printed."""
    a, b = (Folder(str(tmp_path / name)) for name in ("a", "b"))
    build(a, {"a.tar": 25})
    build(b, {"a.tar": 25, "b.tar": 12})

    def command(*arguments: str) -> subprocess.CompletedProcess:
        path = Path(sys.executable).with_name("birder-ray")
        return subprocess.run([path, "compare", *arguments], capture_output=True, text=True, check=False)

    done = command(a.url, b.url, "--json", "-", "--max-flip-rate", "0", "--min-cosine", "1")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["violations"] == [] and told["samples"]["both"] == 24
    over = command(b.url, a.url, "--max-missing", "0.1", "--max-flip-rate", "0")
    assert over.returncode == 1 and "missing samples" in over.stderr and over.stderr.count("\n") == 1
    assert command(a.url, str(tmp_path)).returncode == 2

"""Neighbours and duplicates by embedding, against a comparison of all with all; and the index that is kept."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from birder_ray.cli import app
from birder_ray.commit import Ledger
from birder_ray.errors import ConfigError, RunFailed
from birder_ray.folder import Folder
from birder_ray.neighbours import duplicates, index, leakage, similar, violations
from birder_ray.neighbours.cells import Spilled
from birder_ray.neighbours.groups import Components, grouped
from birder_ray.neighbours.hamming import MOST_BITS, Hashes, bits_apart
from birder_ray.neighbours.rows import Rows
from birder_ray.neighbours.stored import write_index
from birder_ray.scores import Scores
from tests.built import rewrite
from tests.vectors import SHARD, destination

UNITS = (7, 10, 3, 10)
"""Rows of each unit."""


def random(rows: int, size: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, size)).astype(np.float32)


def cut(vectors: np.ndarray, rows: int) -> list[np.ndarray]:
    return [vectors[at : at + rows] for at in range(0, len(vectors), rows)]


def unit_length(vectors: np.ndarray) -> np.ndarray:
    exact = vectors.astype(np.float64)
    return exact / np.linalg.norm(exact, axis=1, keepdims=True)


def numbers(samples) -> list[int]:
    return [int(sample.removeprefix(f"{SHARD}/")) for sample in samples]


@pytest.fixture
def vectors() -> np.ndarray:
    return random(sum(UNITS))


@pytest.fixture
def folder(tmp_path, vectors) -> Folder:
    made = Folder(str(tmp_path / "out"))
    destination(made, np.split(vectors, np.cumsum(UNITS)[:-1]))
    return made


@pytest.fixture
def clustered() -> np.ndarray:
    """3,000 vectors in 150 clusters: enough to be sorted into cells."""
    dice = np.random.default_rng(1)
    return (random(150, 32)[dice.integers(0, 150, 3000)] + 0.35 * random(3000, 32, 2)).astype(np.float32)


def test_the_nearest_are_those_of_a_search_of_all(folder, vectors):
    cosines = unit_length(vectors) @ unit_length(vectors).T
    for row in range(len(vectors)):
        found = similar(folder.url, f"{SHARD}/{row}", k=5)
        order = sorted(set(range(len(vectors))) - {row}, key=lambda other: -cosines[row, other])[:5]
        assert numbers(each.sample for each in found.neighbours) == order
        assert [each.cosine for each in found.neighbours] == pytest.approx(cosines[row, order], abs=1e-6)
        assert found.exact and found.sample and found.notes == ()
    assert found.neighbours[0].prediction == ["heron", "stork", "ibis"][order[0] % 3]
    assert len(similar(folder.url, f"{SHARD}/3", k=500).neighbours) == len(vectors) - 1


def test_equal_ones_come_by_name(tmp_path):
    folder = Folder(str(tmp_path))
    destination(folder, [np.ones((9, 4)), np.ones((9, 4))])
    assert [each.sample for each in similar(folder.url, f"{SHARD}/4", k=3).neighbours] == [
        f"{SHARD}/0", f"{SHARD}/1", f"{SHARD}/10"
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_many_are_found_in_cells_and_ranked_by_what_is_stored(tmp_path, monkeypatch, clustered, dtype):
    monkeypatch.setattr(index, "FLAT_ROWS", 1000)
    folder = Folder(str(tmp_path))
    destination(folder, cut(clustered, 500), dtype)
    exact = unit_length(clustered.astype(dtype))
    hits = 0
    for row in range(0, 3000, 100):
        found = similar(folder.url, f"{SHARD}/{row}", k=10)
        cosines = exact @ exact[row]
        cosines[row] = -2
        got = numbers(each.sample for each in found.neighbours)
        assert not found.exact and row not in got
        assert [each.cosine for each in found.neighbours] == pytest.approx(cosines[got], abs=1e-6)
        hits += len({*got} & {*np.argsort(-cosines)[:10].tolist()})
    assert hits >= 0.97 * 300
    again = similar(folder.url, f"{SHARD}/{row}", k=10)
    for name in folder.names("neighbours"):
        folder.delete(f"neighbours/{name}")
    assert similar(folder.url, f"{SHARD}/{row}", k=10) == again == found


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """The kinds of the indices that were made anew."""
    made: list[str] = []
    train = index._trained
    monkeypatch.setattr(
        index, "_trained", lambda rows, factory, *more: made.append(factory) or train(rows, factory, *more)
    )
    return made


def test_an_index_is_kept_and_used_again(folder, trained, monkeypatch):
    monkeypatch.setattr("birder_ray.neighbours.stored._BLOCK_BYTES", 1000)
    first = similar(folder.url, f"{SHARD}/3")
    about = folder.read_json("neighbours/_about.json")
    assert about["metric"] == "cosine" and about["rows"] == 30 and len(about["files"]) == 3
    assert folder.names("neighbours") == {"_about.json", *(name.split("/")[1] for name, _ in about["files"])}
    monkeypatch.setattr(index.Index, "save", None)
    assert similar(folder.url, f"{SHARD}/3") == first and trained == ["IDMap,Flat"]


@pytest.mark.parametrize("most", [50_000, 20])
def test_what_is_new_is_added(folder, trained, vectors, monkeypatch, most):
    monkeypatch.setattr(index, "FLAT_ROWS", most)
    similar(folder.url, f"{SHARD}/3")
    destination(folder, [vectors[3:4] * 2], first=len(UNITS))
    found = similar(folder.url, f"{SHARD}/3")
    assert found.neighbours[0].sample == f"{SHARD}/30" and found.neighbours[0].cosine == 1
    assert len(trained) == 1 and folder.read_json("neighbours/_about.json")["rows"] == 31
    assert similar(folder.url, f"{SHARD}/30").neighbours[0].sample == f"{SHARD}/3" and len(trained) == 1


def test_one_that_does_not_fit_is_made_anew(folder, trained, vectors):
    similar(folder.url, f"{SHARD}/3")
    unit = Scores(folder.url).units[1]

    def other(part):
        at = part.schema.get_field_index("embedding")
        values = [vectors[3].tolist(), *part["embedding"].to_pylist()[1:]]
        return part.set_column(at, part.schema.field(at), pa.array(values, part.schema.field(at).type))

    rewrite(folder, "embeddings", unit, other)
    assert similar(folder.url, f"{SHARD}/3").neighbours[0].sample == f"{SHARD}/7"
    folder.delete("_commits/" + unit + ".json")
    assert f"{SHARD}/7" not in {each.sample for each in similar(folder.url, f"{SHARD}/3", k=30).neighbours}
    assert len(trained) == 3


@pytest.mark.parametrize("name", ["_about.json", "index-000.faiss"])
@pytest.mark.parametrize("data", [None, b"", b"{}", "half"])
def test_a_damaged_one_is_made_anew(folder, trained, name, data):
    first, path = similar(folder.url, f"{SHARD}/3"), f"neighbours/{name}"
    whole = folder.read(path)
    if data is None:
        folder.delete(path)
    else:
        folder.write(path, whole[: len(whole) // 2] if data == "half" else data)
    assert similar(folder.url, f"{SHARD}/3") == first
    assert len(trained) == 2 and folder.read(path) == whole


@pytest.mark.parametrize("name", ["_about.json", "index-000.faiss"])
def test_one_that_may_not_be_read_is_made_anew(folder, trained, monkeypatch, name):
    first, read = similar(folder.url, f"{SHARD}/3"), Folder.read

    def refuse(self, path):
        if path == f"neighbours/{name}":
            raise PermissionError(13, "Permission denied", path)
        return read(self, path)

    monkeypatch.setattr(Folder, "read", refuse)
    assert similar(folder.url, f"{SHARD}/3") == first and len(trained) == 2


def test_a_damaged_part_is_named(folder):
    unit = Scores(folder.url).units[1]
    folder.write(f"embeddings/{unit}.parquet", b"PAR1")
    for call in (lambda: similar(folder.url, f"{SHARD}/3"), lambda: duplicates(folder.url)):
        with pytest.raises(ConfigError, match=f"{unit}.parquet.*birder-ray verify"):
            call()


def test_where_nothing_may_be_written(folder, monkeypatch):
    wanted = similar(folder.url, f"{SHARD}/3").neighbours
    for name in folder.names("neighbours"):
        folder.delete(f"neighbours/{name}")

    def refuse(*_, **__):
        raise PermissionError("read-only")

    monkeypatch.setattr(Folder, "write", refuse)
    found = similar(folder.url, f"{SHARD}/3")
    assert found.neighbours == wanted and "read-only" in found.notes[0]
    assert leakage(folder.url, folder.url).found[0].count == 30
    with pytest.raises(ConfigError, match=r"duplicates/_about.json: cannot be written: read-only"):
        duplicates(folder.url)


def test_embeddings_without_direction_are_near_to_nothing(tmp_path):
    vectors = random(30)
    vectors[4], vectors[11], vectors[12, 3] = 0, np.inf, np.nan
    vectors[20] = vectors[21]
    folder = Folder(str(tmp_path))
    destination(folder, cut(vectors, 10))
    found = similar(folder.url, f"{SHARD}/3", k=30)
    assert found.without_direction == 3 and len(found.neighbours) == 26
    assert not {4, 11, 12} & set(numbers(each.sample for each in found.neighbours))
    with pytest.raises(ConfigError, match="its embedding is zero or not finite"):
        similar(folder.url, f"{SHARD}/11")
    (made,) = duplicates(folder.url, min_cosine=0.99).found
    assert made.left_out == {"embeddings that are zero or not finite": 3} and made.images == 27
    assert (made.groups, made.redundant) == (1, 1)
    (leaked,) = leakage(folder.url, folder.url).found
    assert leaked.count == leaked.total == 27 and leaked.test_left_out == leaked.train_left_out == made.left_out


def test_where_nearly_none_has_a_direction(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "FLAT_ROWS", 20)
    vectors = np.zeros((40, 4))
    vectors[7] = 1
    destination(Folder(str(tmp_path)), cut(vectors, 20))
    with pytest.raises(ConfigError, match="nearly all embeddings are zero or not finite"):
        duplicates(str(tmp_path))


def test_an_index_that_keeps_its_lists_in_another_file_is_not_used(tmp_path, monkeypatch, clustered):
    """It would be written to: whoever made this destination may have named any file of whoever looks at it."""
    faiss = pytest.importorskip("faiss")
    monkeypatch.setattr(index, "FLAT_ROWS", 1000)
    folder, victim = Folder(str(tmp_path / "out")), tmp_path / "precious"
    destination(folder, cut(clustered, 500)[:5])
    found = index.opened(Rows(Scores(folder.url), "embeddings"))
    lists = faiss.OnDiskInvertedLists(found.cells, found.searched.code_size, str(victim))
    lists.merge_from_1(found.searched.invlists)
    found.searched.replace_invlists(lists, False)
    about = folder.read_json("neighbours/_about.json")
    folder.write_json("neighbours/_about.json", {**about, "files": write_index(found.rows.scores, found.searched)})
    victim.write_bytes(content := b"precious" * (victim.stat().st_size // 8))
    destination(folder, cut(clustered, 500)[5:], first=5)
    assert similar(folder.url, f"{SHARD}/2999", k=1).images == 3000
    assert victim.read_bytes() == content


def test_another_index_than_its_units_ask_for_is_made_anew(folder, trained, vectors):
    first, scores = similar(folder.url, f"{SHARD}/3"), Scores(folder.url)
    about = folder.read_json("neighbours/_about.json")
    faiss = pytest.importorskip("faiss")
    for kind, rows, size in (("IDMap,Flat", 29, 16), ("IDMap,Flat", 30, 8), ("IDMap,SQ8", 30, 16), ("Flat", 30, 16)):
        other = faiss.index_factory(size, kind)
        other.train(vectors[:rows, :size])
        if kind == "Flat":
            other.add(vectors[:rows])
        else:
            other.add_with_ids(vectors[:rows, :size], np.arange(rows))
        folder.write_json("neighbours/_about.json", {**about, "files": write_index(scores, other)})
        assert similar(folder.url, f"{SHARD}/3") == first
    assert similar(folder.url, f"{SHARD}/3") == first and len(trained) == 5


def test_only_equal_embeddings_are_copies():
    """Marks alone do not tell: they may be the same for others."""
    vectors = np.array([[0, 1], [1, 0], [0, 1], [1, 0]], np.float16)
    found = Spilled(vectors, np.zeros((4, 1), np.int32), np.full(4, 7, np.uint64))
    assert (found.copies.tolist(), found.originals.tolist()) == ([2], [0])


def test_the_highest_limit_finds_all_that_are_equal(tmp_path):
    folder, vectors = Folder(str(tmp_path)), random(40, 768)
    destination(folder, [vectors, vectors])
    (found,) = duplicates(folder.url, min_cosine=1).found
    assert (found.groups, found.redundant) == (40, 40)
    assert leakage(folder.url, folder.url, min_cosine=1).found[0].count == 80


def kept_by_hand(cosines: np.ndarray, least: float) -> dict[int, int]:
    """The row to keep for each row that is alike to another: each row in order joins the first kept one like it."""
    keeper: dict[int, int] = {}
    for row in range(len(cosines)):
        near = [kept for kept in keeper.values() if kept == keeper[kept] and cosines[row, kept] >= least]
        keeper[row] = min(near, default=row)
    return {row: kept for row, kept in keeper.items() if list(keeper.values()).count(kept) > 1}


@pytest.mark.parametrize("most", [50_000, 1000])
def test_duplicates_by_embedding(tmp_path, monkeypatch, most):
    monkeypatch.setattr(index, "FLAT_ROWS", most)
    dice = np.random.default_rng(4)
    vectors = random(1500, 24)
    at = dice.permutation(1500)[:400]
    for row, other in at.reshape(-1, 2):  # in chains, too
        vectors[row] = vectors[other] + dice.choice([0, 0.01, 0.12]) * dice.standard_normal(24)
    vectors[at[:30]] = vectors[at[0]]
    folder = Folder(str(tmp_path))
    destination(folder, cut(vectors, 300))
    (found,) = duplicates(folder.url, min_cosine=0.99).found
    table = pq.read_table(folder.at("duplicates/embedding.parquet"))
    rows, keepers = numbers(table["sample"].to_pylist()), numbers(table["keeper"].to_pylist())
    exact = unit_length(vectors)
    cosines = exact @ exact.T
    assert np.abs(cosines - 0.99).min() > 1e-4, "a pair at the limit: choose another seed"
    assert dict(zip(rows, keepers, strict=True)) == kept_by_hand(cosines, 0.99)
    assert table["distance"].to_numpy() == pytest.approx(1 - cosines[rows, keepers], abs=2e-4)
    assert found.redundant == sum(row != keeper for row, keeper in zip(rows, keepers, strict=True)) > 150
    assert found.groups == len(set(keepers)) == len(set(table["group"].to_pylist()))
    assert table.num_rows == found.groups + found.redundant and found.images == 1500
    assert folder.read_json("duplicates/_about.json")["found"][0]["groups"] == found.groups
    assert folder.names("duplicates") == {"_about.json", "embedding.parquet"}


def test_a_chain_is_cut():
    """0-1-2-...: each is alike to the next one only."""
    line = np.arange(1000.0)
    for step in (1.0, 1.5):
        components = Components(1000)
        components.join(np.arange(999)[::-1], np.arange(1, 1000)[::-1])
        assert len(list(components.members())) == 1
        found = grouped(components, lambda a, b: np.abs(line[a][:, None] - line[b]), step)
        assert found.rows.tolist() == list(range(1000)) and (found.distances <= step).all()
        assert found.keepers.tolist() == [row - row % 2 for row in range(1000)]
        assert (found.count, found.redundant) == (500, 500)


def test_what_hangs_together():
    dice = np.random.default_rng(0)
    pairs = dice.integers(0, 2000, (900, 2))
    components, naive = Components(2000), {row: {row} for row in range(2000)}
    for some in np.split(pairs, 9):
        components.join(*some.T)
    for one, other in pairs.tolist():
        if naive[one] is not naive[other]:
            naive[one] |= naive[other]
            for row in naive[other]:
                naive[row] = naive[one]
    wanted = {tuple(sorted(each)) for each in naive.values() if len(each) > 1}
    assert {tuple(each.tolist()) for each in components.members()} == wanted


@pytest.mark.parametrize("most", range(MOST_BITS + 1))
def test_no_pair_of_hashes_is_missed(most):
    dice = np.random.default_rng(most)
    values = dice.integers(0, 2**63, 2000, np.uint64)
    for at in range(0, 1000, 2):  # planted at every distance
        flips = np.bitwise_or.reduce(np.uint64(1) << dice.choice(64, at // 2 % 12, replace=False).astype(np.uint64))
        values[at + 1] = values[at] ^ np.uint64(flips)
    values = np.unique(values)
    found = {(a, b) for some, others in Hashes(values, most).near(values) for a, b in zip(some, others, strict=True)}
    wanted = np.nonzero(bits_apart(values, values) <= most)
    assert found == set(zip(*wanted, strict=True)) and len(found) >= len(values) + 40 * most


def test_leakage_by_embedding(tmp_path):
    train, test = Folder(str(tmp_path / "train")), Folder(str(tmp_path / "test"))
    ours, theirs = random(60), random(40, seed=9)
    theirs[5], theirs[6], theirs[39] = ours[7] * 3, ours[8] + 0.01, ours[0]
    ours[50] = ours[0]  # of two that are equally near, the first is named
    destination(train, cut(ours, 25))
    destination(test, cut(theirs, 15))
    found = leakage(train.url, test.url, min_cosine=0.99)
    (each,) = found.found
    assert (each.kind, each.count, each.total, each.train) == ("embedding", 3, 40, 60)
    assert each.rate == 3 / 40 and 0 < each.low < each.rate < each.high
    rows = [(row["sample"], row["train_sample"]) for row in found.table.to_pylist()]
    assert rows == [(f"{SHARD}/{a}", f"{SHARD}/{b}") for a, b in ((5, 7), (6, 8), (39, 0))]
    assert violations(found, 3 / 40) == [] and "3 of 40" in violations(found, 0.07)[0]
    assert leakage(train.url, test.url, min_cosine=1 - 1e-7).found[0].count < 3


def test_where_nothing_is_committed_yet(folder, tmp_path):
    empty = Folder(str(tmp_path / "empty"))
    destination(empty, [])
    for unit in Scores(empty.url).units:
        empty.delete(f"_commits/{unit}.json")
    for call in (
        lambda: similar(empty.url, "x"), lambda: duplicates(empty.url), lambda: leakage(folder.url, empty.url)
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="no embeddings are committed yet"):
            call()
    assert [each.images for each in duplicates(empty.url, by="image").found] == [0, 0]


def test_leakage_is_a_gate(tmp_path):
    train, test = Folder(str(tmp_path / "train")), Folder(str(tmp_path / "test"))
    destination(train, [random(20)])
    destination(test, [random(20, seed=1), random(20)[:2]])
    run, to = CliRunner(), tmp_path / "leaked.csv"
    said = run.invoke(app, ["leakage", train.url, test.url, "--json", "-", "--to", str(to), "--max-rate", "0.1"])
    assert said.exit_code == 0 and json.loads(said.output)["found"][0]["count"] == 2
    assert to.read_text().splitlines()[1:] == [f'"embedding","{SHARD}/{20 + n}","{SHARD}/{n}",0' for n in (0, 1)]
    over = run.invoke(app, ["leakage", train.url, test.url, "--max-rate", "0.05"])
    assert over.exception and over.exception.exit_code == 1 and "2 of 22" in str(over.exception)
    manifest = train.read_json("manifest.json")
    train.write_json("manifest.json", {**manifest, "totals": None})
    half = run.invoke(app, ["leakage", train.url, test.url, "--max-rate", "0.1"])
    assert half.exception and f"{train.url} is unfinished, and what it lacks" in str(half.exception)
    with pytest.raises(ConfigError, match=r"--to .*/none/x.csv: cannot be written: there is no such folder"):
        run.invoke(app, ["leakage", train.url, test.url, "--to", f"{tmp_path}/none/x.csv"], catch_exceptions=False)
    with pytest.raises(ConfigError, match=r"--to x.txt: give a file that ends in .parquet or .csv"):
        run.invoke(app, ["leakage", train.url, test.url, "--to", "x.txt"], catch_exceptions=False)


def test_embeddings_of_other_networks_are_not_compared(tmp_path):
    train, test = Folder(str(tmp_path / "train")), Folder(str(tmp_path / "test"))
    for folder in (train, test):
        destination(folder, [random(20)])
    manifest = test.read_json("manifest.json")
    manifest["recipe"]["facts"]["tables"]["embeddings"]["dtype"] = "float16"
    manifest["recipe"]["facts"]["id_column"] = "id"
    test.write_json("manifest.json", manifest)
    assert leakage(train.url, test.url).found[0].count == 20
    manifest["recipe"]["facts"]["size"] = [96, 96]
    test.write_json("manifest.json", manifest)
    with pytest.raises(ConfigError, match=r"cannot be compared: size \[64, 64\] → \[96, 96\].*--by image"):
        leakage(train.url, test.url)


def test_what_users_may_get_wrong(folder, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"no sample of .*, and no image that can be read"):
        similar(folder.url, "a.tar/999")
    with pytest.raises(ConfigError, match=r"no manifest.json"):
        duplicates(str(tmp_path / "nothing"))
    monkeypatch.setitem(sys.modules, "faiss", None)
    for call in (lambda: similar(folder.url, f"{SHARD}/3"), lambda: duplicates(folder.url)):
        with pytest.raises(ConfigError, match=r"faiss-cpu: pip install 'birder-ray\[findings\]'"):
            call()


def test_without_embeddings(tmp_path):
    from tests.built import build

    folder = Folder(str(tmp_path))
    build(folder, {"a.tar": 5}, outputs={"predictions": {}})
    for call in (lambda: similar(folder.url, "a.tar/3"), lambda: duplicates(folder.url)):
        with pytest.raises(ConfigError, match="has no table embeddings: add it with"):
            call()


def test_rows_by_number(folder):
    rows = Rows(Scores(folder.url), "embeddings")
    assert len(rows) == 30 and [unit.rows for unit in rows.units] == list(UNITS)
    wanted = np.array([29, 0, 7, 6, 7])
    assert numbers(rows.take(wanted, ["sample"])["sample"].to_pylist()) == wanted.tolist()
    assert rows.take(wanted[:0], ["sample"]).num_rows == 0
    assert rows.find(f"{SHARD}/17") == 17 and rows.find("a.tar/30") is None


def test_rows_while_a_run_is_at_work(folder):
    """What it takes back before the rows are numbered is not there; afterwards nothing is called damaged."""
    scores = Scores(folder.url)
    first, second = scores.units[:2]
    Ledger(folder).erase(first)
    rows = Rows(scores, "embeddings")
    assert [unit.name for unit in rows.units] == list(scores.units[1:])
    rewrite(folder, "embeddings", second, lambda part: part.slice(0, 5))
    for _ in range(2):  # replaced; gone
        with pytest.raises(RunFailed, match=f"{second}.parquet: a run at work changed it meanwhile"):
            list(rows.stream(["sample"]))
        Ledger(folder).erase(second)


def test_a_part_with_other_rows_than_its_record_has_is_named(folder):
    unit = Scores(folder.url).units[1]
    rewrite(folder, "embeddings", unit, lambda part: part.slice(0, 5))
    with pytest.raises(ConfigError, match=f"{unit}.parquet: has 5 rows, not 10"):
        similar(folder.url, f"{SHARD}/3")

"""Predictions rolled up a taxonomy: sums over children, against sums made one by one; and what files say of classes."""

import json
import tracemalloc
from collections import defaultdict

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from birder_ray.bounds import ALWAYS, ANYWHERE
from birder_ray.checklist import Checklist
from birder_ray.classes import RANKS, classes_table
from birder_ray.commit import Ledger
from birder_ray.errors import ConfigError
from birder_ray.folder import Folder
from birder_ray.lineages import lineages
from birder_ray.rolling import Rows
from birder_ray.rollup import rollup
from birder_ray.schema import ROLLUP_ABOUT as ABOUT
from birder_ray.taxonomy import Taxonomy, lowest
from birder_ray.verify import verify
from tests.built import NAMES, build, rewrite

SHARDS = {"a.tar": 25, "b.tar": 12}
TAXA = "class_name,class,family,species\nheron,Aves,Ardeidae,Ardea cinerea\nstork,Aves,Ciconiidae,Ciconia ciconia\n"
TAXA += "ibis,Aves,Threskiornithidae,Plegadis falcinellus\n"


@pytest.fixture
def folder(tmp_path) -> Folder:
    made = Folder(str(tmp_path / "out"))
    build(made, SHARDS)
    return made


@pytest.fixture
def taxonomy(tmp_path) -> str:
    file = tmp_path / "taxa.csv"
    file.write_text(TAXA)
    return str(file)


def rows(folder: Folder) -> list[dict]:
    return duckdb.sql(f"FROM '{folder.path}/rollup/*.parquet' ORDER BY shard, index").to_arrow_table().to_pylist()


@pytest.fixture(scope="module")
def random() -> tuple[Taxonomy, list[tuple], np.ndarray]:
    """60 classes of 4 orders, 9 families, 20 genera, some without an order; probabilities of 50 images."""
    dice = np.random.default_rng(0)
    genus = dice.integers(0, 20, 60)
    family, order = genus % 9, genus % 9 % 4
    lineages = [
        (None if o == 3 else f"o{o}", f"f{f}", f"g{g % 10}", f"g{g % 10} s{s}")
        for s, (g, f, o) in enumerate(zip(genus, family, order, strict=True))
    ]
    columns = dict(zip(("order", "family", "genus", "species"), zip(*lineages, strict=True), strict=True))
    probabilities = dice.dirichlet(np.full(60, 0.05), 50)
    return Taxonomy(pa.table(columns)), lineages, probabilities


def test_a_taxon_is_as_likely_as_its_classes_together(random):
    taxonomy, lineages, probabilities = random
    levels = list(taxonomy.of_all(probabilities))
    assert [level.rank for level in levels] == ["order", "family", "genus", "species"]
    for depth, level in enumerate(levels):
        for image, name in enumerate(taxonomy.names(level)):
            sums: dict[tuple, float] = defaultdict(float)
            for lineage, probability in zip(lineages, probabilities[image], strict=True):
                if lineage[depth] is not None:
                    sums[lineage[: depth + 1]] += probability
            best = max(sums, key=sums.__getitem__)
            assert name == best[-1]
            assert level.probabilities[image] == pytest.approx(sums[best], abs=1e-12)


def test_the_top_classes_alone_give_lower_bounds(random):
    taxonomy, _, probabilities = random
    order = np.argsort(-probabilities, axis=1)
    exact = list(taxonomy.of_all(probabilities))
    for k in (1, 5, 60):
        some = list(taxonomy.of_some(order[:, :k], np.take_along_axis(probabilities, order, 1)[:, :k]))
        for bound, level in zip(some, exact, strict=True):
            assert (bound.probabilities <= level.probabilities + 1e-12).all()
            if k == 60:
                assert (bound.taxa == level.taxa).all()
                assert bound.probabilities == pytest.approx(level.probabilities, abs=1e-12)


def test_the_lowest_rank_that_is_certain_enough(random):
    taxonomy, _, probabilities = random
    levels = list(taxonomy.of_all(probabilities))
    at = lowest(levels, 0.6)
    assert set(at) >= {0, 1, 3}
    for image, depth in enumerate(at):
        assert all(level.probabilities[image] < 0.6 for level in levels[depth + 1 :])
        assert depth < 0 or levels[depth].probabilities[image] >= 0.6


def test_genera_of_one_name_in_two_families_stay_apart():
    classes = pa.table({"family": ["Morinaceae", "Moridae"], "genus": ["Morina", "Morina"], "species": ["a", "b"]})
    family, genus, _ = Taxonomy(classes).of_all(np.array([[0.5, 0.4]]))
    assert (family.probabilities[0], genus.probabilities[0]) == (0.5, 0.5)


def test_a_destination_gets_a_part_per_unit_and_its_tables_stay(folder, taxonomy):
    done = rollup(folder.url, taxonomy=taxonomy, confidence=0.6)
    verify(folder.url, deep=True)
    found = rows(folder)
    predictions = duckdb.sql(f"FROM '{folder.path}/predictions/*.parquet' ORDER BY shard, index").to_arrow_table()
    assert [row["sample"] for row in found] == predictions["sample"].to_pylist()
    for row, prediction in zip(found, predictions.to_pylist(), strict=True):
        top = prediction["top_probabilities"]
        assert row["class"] == "Aves" and row["class_probability"] == pytest.approx(sum(top), abs=1e-6)
        certain = prediction["probability"] >= 0.6
        assert row["rollup_rank"] == ("species" if certain else "class" if sum(top) >= 0.6 else None)
        assert row["rollup_probability"] == (
            pytest.approx(top[0] if certain else sum(top), abs=1e-6) if row["rollup_rank"] else None
        )
        assert (
            row["family"]
            == dict(zip(NAMES, ("Ardeidae", "Ciconiidae", "Threskiornithidae"), strict=True))[prediction["prediction"]]
        )
    assert (done.rows, done.exact) == (len(found), False)
    assert sum(done.ranks.values()) == len(found) and done.ranks.keys() == {"species", "class", "none"}
    assert json.loads(folder.read(ABOUT))["ranks"] == done.ranks


def test_the_same_again_gives_the_same_bytes_and_what_is_of_another_time_goes(folder, taxonomy):
    rollup(folder.url, taxonomy=taxonomy)
    before = {name: folder.read(f"rollup/{name}") for name in folder.names("rollup")}
    folder.write("rollup/gone-0123456789ab-000000.parquet", before[max(before)])
    rollup(folder.url, taxonomy=taxonomy)
    assert {name: folder.read(f"rollup/{name}") for name in folder.names("rollup")} == before


def test_a_death_leaves_no_account_of_it(folder, taxonomy, monkeypatch):
    rollup(folder.url, taxonomy=taxonomy)
    write, left = Folder.write, iter(range(2))

    def dying(self, name, *told):
        next(left)
        write(self, name, *told)

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "write", dying)
        with pytest.raises(StopIteration):
            rollup(folder.url, taxonomy=taxonomy, confidence=0.9)
    assert not folder.exists(ABOUT)
    assert rollup(folder.url, taxonomy=taxonomy, confidence=0.9).rows == len(rows(folder))


def test_a_checklist_stands_beside_the_raw_predictions(folder, taxonomy, tmp_path):
    checklist = tmp_path / "here.txt"
    checklist.write_text("ARDEIDAE\nplegadis falcinellus\nDodo ineptus\n\n")
    done = rollup(folder.url, taxonomy=taxonomy, checklist=str(checklist))
    assert (done.checklist, done.not_classes) == (2, ("dodo ineptus",))
    for row in rows(folder):
        top = [0.5 + row["index"] % 40 / 100, 0.06, 0.02]
        first = row["index"] % 3
        order = [first, *(n for n in range(3) if n != first)]
        kept = {NAMES[n]: p for n, p in zip(order, top, strict=True) if NAMES[n] != "stork"}
        best = max(kept, key=kept.__getitem__)
        assert row["checklist_prediction"] == best
        assert row["checklist_mass"] == pytest.approx(sum(kept.values()), abs=1e-6)
        ceiling = sum(kept.values()) + max(0, 1 - sum(top))
        assert row["checklist_probability"] == pytest.approx(kept[best] / ceiling, abs=1e-6)


def test_with_logits_it_is_exact(tmp_path, taxonomy):
    folder = Folder(str(tmp_path / "exact"))
    build(folder, SHARDS, outputs={"predictions": {"logits": True}, "embeddings": {}, "features": {}})
    checklist = tmp_path / "here.csv"
    checklist.write_text("species\nArdea cinerea\nCiconia ciconia\n")

    def grow(table):
        vectors = np.stack([[index, 0.5, -index / 2] for index in table["index"].to_pylist()]) / 10
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), 3)
        return table.append_column("logits", column)

    for unit in Ledger(folder).units():
        rewrite(folder, "predictions", unit, grow)
    done = rollup(folder.url, taxonomy=taxonomy, checklist=str(checklist))
    assert done.exact
    for row in rows(folder):
        shares = np.exp(np.float32(np.array([row["index"], 0.5, -row["index"] / 2]) / 10).astype(np.float64))
        shares /= shares.sum()
        assert row["class_probability"] == pytest.approx(1, abs=1e-6)
        assert row["species_probability"] == pytest.approx(shares.max(), abs=1e-6)
        assert row["checklist_probability"] == pytest.approx(shares[:2].max() / shares[:2].sum(), abs=1e-6)
        assert row["checklist_prediction"] == NAMES[shares[:2].argmax()]


def test_classes_that_no_taxonomy_knows_have_no_taxon(folder, tmp_path):
    (tmp_path / "few.csv").write_text("class_name,class,species\nheron,Aves,Ardea cinerea\nstork,Aves,\n")
    assert rollup(folder.url, taxonomy=str(tmp_path / "few.csv"), confidence=0.1).without_taxon == 1
    found = {(row["index"] % 3, row["rollup_taxon"]) for row in rows(folder) if row["index"] > 3}
    assert found == {(0, "Ardea cinerea"), (1, "Aves"), (2, None)}


@pytest.mark.parametrize("written", ["\ufeffheron\nibis\n", "heron\r\nibis\r\n", "HERON\n_ibis_\n"])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".CSV"])
def test_no_name_of_a_checklist_is_lost(folder, taxonomy, tmp_path, written, suffix):
    """Also not the first line, which may be a header or not."""
    checklist = tmp_path / f"here{suffix}"
    for header in ("", "species\n"):
        checklist.write_text(header + written if not header else header + written.lstrip("\ufeff"), "utf-8")
        done = rollup(folder.url, taxonomy=taxonomy, checklist=str(checklist))
        assert done.checklist == 2
        assert set(done.not_classes) <= ({"species"} if suffix == ".txt" else set())


def test_names_that_look_like_numbers_are_names(tmp_path):
    classes = pa.table({"class_index": pa.array([0, 1, 2], pa.int32()), "class_name": ["001", "002", "10"]})
    file = tmp_path / "taxa.csv"
    file.write_text("class_name,family,species\n001,Ardeidae,\n002,,\n10,,x y\n")
    found = lineages(classes, str(file))
    assert found["family"].to_pylist() == ["Ardeidae", None, None]
    assert found["species"].to_pylist() == [None, None, "x y"]
    file.write_bytes("class_name,family\n001,Ardéidé\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"taxa\.csv.*UTF-8"):
        lineages(classes, str(file))


def test_a_mean_over_views_is_not_made_from_a_mean_of_logits(tmp_path, taxonomy):
    folder = Folder(str(tmp_path / "tta"))
    outputs = {"predictions": {"logits": True}, "embeddings": {}, "features": {}}
    build(folder, SHARDS, outputs=outputs, model={"name": "tiny.pt", "tta": True})
    done = rollup(folder.url, taxonomy=taxonomy)
    assert not done.exact and rows(folder)[0]["species_probability"] == pytest.approx(0.5)


def test_many_stored_classes_take_no_more_memory(random):
    taxonomy, _, probabilities = random
    table = Rows(taxonomy, [str(n) for n in range(60)], 0.6, None, None)
    order = np.argsort(-probabilities, axis=1)
    predictions = pa.table(
        {
            "sample": [str(n) for n in range(50)],
            "shard": ["s"] * 50,
            "index": range(50),
            "top_indices": order.tolist(),
            "top_probabilities": np.take_along_axis(probabilities, order, 1).tolist(),
        }
    )
    whole = table.of(predictions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("birder_ray.rolling._STORED", 7 * 60)
        assert table.of(predictions).equals(whole)


def test_an_unfinished_run_is_told(tmp_path, taxonomy):
    build(Folder(str(tmp_path / "half")), SHARDS, finish=False)
    assert not rollup(str(tmp_path / "half"), taxonomy=taxonomy).finished


def test_as_many_stored_classes_as_there_are_take_no_more_than_they_are():
    taxonomy = Taxonomy(pa.table({"genus": [f"g{n // 3}" for n in range(3000)]}))
    indices = np.stack([np.random.default_rng(n).permutation(3000) for n in range(4)])
    tracemalloc.start()
    (genus,) = taxonomy.of_some(indices, np.full(indices.shape, 1 / 3000, np.float32))
    assert tracemalloc.get_traced_memory()[1] < 10_000_000  # the pairs of classes are 36,000,000
    tracemalloc.stop()
    assert genus.probabilities == pytest.approx([1 / 1000] * 4) and genus.taxa[0] == indices[0, 0] // 3


def test_no_probability_is_more_than_1(random):
    top = np.array([[0.6, 0.4000001], [0.7, 0.2]], np.float32)  # as a softmax may round
    assert top[0].sum(dtype=np.float64) > 1
    keys = {"sample": ["a", "b"], "shard": ["s"] * 2, "index": [0, 1]}
    predictions = pa.table(keys | {"top_indices": [[0, 1], [1, 0]], "top_probabilities": top.tolist()})
    every = Checklist(
        False, np.ones(2, bool), (), np.array([ANYWHERE]), np.array([ALWAYS]), np.array([[0, 0, 0], [1, 0, 0]])
    )
    taxonomy = Taxonomy(pa.table({"genus": ["g", "g"], "species": ["g a", "g b"]}))
    made = Rows(taxonomy, ["a", "b"], 0.65, None, every).of(predictions)
    for name in ("genus_probability", "rollup_probability", "checklist_mass"):
        assert max(made[name].to_pylist()) == 1.0
    assert made["genus_probability"][1].as_py() == pytest.approx(0.9)


def test_a_taxonomy_without_any_taxon_is_told(folder, tmp_path):
    file = tmp_path / "empty.csv"
    file.write_text("class_name,family,species\nheron,,\nstork,, \nibis,,\nowl,Strigidae,\n")
    with pytest.raises(ConfigError, match=r"empty\.csv: has no taxon of any class: fill in family, species"):
        rollup(folder.url, taxonomy=str(file))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_spaces_make_no_other_taxon_and_no_taxon_of_nothing(folder, tmp_path, kind):
    cells = {"class_name": ["heron", "stork", "ibis"], "family": ["Ardeidae", " Ardeidae ", " "]}
    file = str(tmp_path / f"spaced.{kind}")
    (pa.csv.write_csv if kind == "csv" else pq.write_table)(pa.table(cells | {"species": ["", "x y", ""]}), file)
    assert rollup(folder.url, taxonomy=file).without_taxon == 1
    assert {row["family"] for row in rows(folder)} == {"Ardeidae"}
    assert rows(folder)[0]["family_probability"] == pytest.approx(0.56)


def test_a_species_gets_its_genus(folder, tmp_path):
    file = tmp_path / "halves.csv"
    file.write_text("class_name,genus,species\nheron,Ardea,cinerea\nstork,Ciconia,Ciconia ciconia\nibis,,ruber\n")
    rollup(folder.url, taxonomy=str(file))
    assert {row["species"] for row in rows(folder)} <= {"Ardea cinerea", "Ciconia ciconia", "ruber"}
    assert "Ardea cinerea" in {row["species"] for row in rows(folder)}


def test_common_names(folder, taxonomy, tmp_path):
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"0": "Grey heron"}))
    rollup(folder.url, taxonomy=taxonomy, names=str(names))
    assert {(row["index"] % 3, row["common_name"]) for row in rows(folder)} == {(0, "Grey heron"), (1, None), (2, None)}
    for wrong in ("[]", '{"7": "x"}', '{"0": 1}', "no"):
        names.write_text(wrong)
        with pytest.raises(ConfigError, match=r"names\.json"):
            rollup(folder.url, taxonomy=taxonomy, names=str(names))


def test_class_names_of_inat_need_no_file(tmp_path):
    above = "Animalia_Chordata_Aves_Pelecaniformes_Ardeidae_Ardea"
    names = [f"0000{n}_{above}_{s}" for n, s in enumerate(("alba", "cinerea", "cocoi"))]
    table = classes_table(names)
    levels = list(Taxonomy(table).of_all(np.array([[0.3, 0.4, 0.3]])))
    assert [level.rank for level in levels] == list(RANKS)
    assert [float(level.probabilities[0]) for level in levels] == pytest.approx([1] * 6 + [0.4])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("class_name,species\nHeron,x\n", "none of the classes, which are called as heron"),
        ("class_name,species\nheron,x\nheron,y\n", "heron more than once"),
        ("name,species\nheron,x\n", "needs a column class_name"),
        ("class_name,colour\nheron,x\n", "any of kingdom"),
        ("", "cannot be read as a table"),
    ],
)
def test_a_taxonomy_that_does_not_fit_is_told(folder, tmp_path, content, problem):
    file = tmp_path / "wrong.csv"
    file.write_text(content)
    with pytest.raises(ConfigError, match=rf"wrong\.csv.*{problem}"):
        rollup(folder.url, taxonomy=str(file))


def test_what_is_missing_is_told(folder, taxonomy, tmp_path):
    with pytest.raises(ConfigError, match="--taxonomy FILE"):
        rollup(folder.url)
    with pytest.raises(ConfigError, match=r"none\.csv.*cannot be read"):
        rollup(folder.url, taxonomy=str(tmp_path / "none.csv"))
    (tmp_path / "far.txt").write_text("Dodo\n")
    with pytest.raises(ConfigError, match=r"far\.txt.*none of its 1 names"):
        rollup(folder.url, taxonomy=taxonomy, checklist=str(tmp_path / "far.txt"))
    with pytest.raises(ConfigError, match="confidence"):
        rollup(folder.url, taxonomy=taxonomy, confidence=65)
    assert not folder.names("rollup")


def test_every_part_says_what_it_was_made_from(folder, taxonomy):
    rollup(folder.url, taxonomy=taxonomy)
    for unit in Ledger(folder).units():
        told = pq.read_metadata(f"{folder.path}/rollup/{unit}.parquet").metadata
        assert told[b"birder_ray.predictions"].decode() == Ledger(folder).read(unit).parts["predictions"].sha256

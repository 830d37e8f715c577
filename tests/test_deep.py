"""verify --deep: values that cannot be right are found, and scoring images again gives what is stored."""

import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from birder_ray.cli import app
from birder_ray.commit import Ledger
from birder_ray.config import RunConfig
from birder_ray.errors import BirderRayError, VerifyFailed
from birder_ray.folder import Folder
from birder_ray.parts import encode, part_name
from birder_ray.record import record_name
from birder_ray.repair import repair
from birder_ray.rescore import rescore
from birder_ray.schema import ERRORS, OUTPUT_TABLES
from birder_ray.testing import make_shards, tiny_checkpoint
from birder_ray.verify import verify
from tests.built import rewrite
from tests.inprocess import score


def _config(root: Path, **blocks) -> RunConfig:
    told = {"outputs": {"predictions": {"logits": True, "top_k": 3}, "embeddings": {}, "features": {}}} | blocks
    return RunConfig(
        source=str(root / "data"),
        model=str(root / "hgnet_v2_b0_tiny.pt"),
        destination=str(root / "out"),
        compute={"unit_rows": 5},
        **told,
    )


@pytest.fixture(scope="module")
def scored(tmp_path_factory, model) -> Path:
    root = tmp_path_factory.mktemp("scored")
    shutil.copy(model, root / "hgnet_v2_b0_tiny.pt")
    make_shards(str(root / "data"), images_per_shard=8, shards=3)
    score(_config(root))
    return root


@pytest.fixture
def folder(scored, tmp_path) -> Folder:
    """A copy of the destination; the source stays where it was."""
    shutil.copytree(scored / "out", tmp_path / "out")
    return Folder(str(tmp_path / "out"))


@pytest.fixture
def own(scored, tmp_path) -> Path:
    """A copy of everything, whose manifest names the copies."""
    shutil.copytree(scored, tmp_path / "own")
    manifest = tmp_path / "own" / "out" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(str(scored), str(tmp_path / "own")))
    return tmp_path / "own"


def _units(folder: Folder) -> list[str]:
    return sorted(Ledger(folder).units())


def _set(column: str, row: int, value):
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value(values[row]) if callable(value) else value
        at = table.schema.get_field_index(column)
        return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))

    return change


def test_what_a_run_wrote_is_sound(folder):
    assert verify(folder.url, deep=True).samples == 24


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("embeddings", _set("embedding", 2, lambda v: [float("nan"), *v[1:]]), "embedding: values that are not finite"),
        ("features", _set("stage1_mean", 0, lambda v: [float("inf"), *v[1:]]), "stage1_mean: values that are not"),
        ("features", _set("stage2_std", 0, lambda v: [-1.0, *v[1:]]), "stage2_std: below 0"),
        ("features", lambda t: t.drop_columns(["stage4_max"]), "stage4_max is missing"),
        ("features", lambda t: t.append_column("more", t["index"]), "more is int64"),
        ("embeddings", _set("embedding", 1, None), "nulls in embedding"),
        ("predictions", _set("probability", 0, 0.0), "probability is not the first of top_probabilities"),
        ("predictions", _set("probability", 0, float("nan")), "that are not finite"),
        ("predictions", _set("top_probabilities", 1, lambda v: v[::-1]), "top_probabilities that are not sorted"),
        ("predictions", _set("top_probabilities", 1, lambda v: [1.0, *v[1:]]), "top_probabilities are not those of"),
        ("predictions", _set("top_probabilities", 1, lambda v: v[:2]), "top lists that do not hold 3 classes"),
        ("predictions", _set("top_indices", 1, lambda v: [v[0], v[0], v[2]]), "a class twice in a top list"),
        ("predictions", _set("top_indices", 1, lambda v: [99, *v[1:]]), "top_indices beyond the classes"),
        ("predictions", _set("top_classes", 1, lambda v: ["heron", *v[1:]]), "prediction is not the first of"),
        ("predictions", _set("entropy", 0, 99.0), "entropy above that of guessing"),
        ("predictions", _set("entropy", 0, -1.0), "entropy below 0"),
        ("predictions", _set("logits", 0, lambda v: [float("nan"), *v[1:]]), "logits that are not finite"),
    ],
)
def test_values_that_cannot_be_right(folder, table, change, message):
    unit = _units(folder)[1]
    rewrite(folder, table, unit, change)
    verify(folder.url)
    with pytest.raises(VerifyFailed, match=message) as found:
        verify(folder.url, deep=True)
    assert part_name(table, unit) in str(found.value)
    assert repair(folder.url).units == []
    assert repair(folder.url, deep=True).units == [unit]


def test_a_part_of_other_widths_than_the_others(folder):
    unit = _units(folder)[0]

    def narrow(table: pa.Table) -> pa.Table:
        vectors = [vector[:3] for vector in table["embedding"].to_pylist()]
        at = table.schema.get_field_index("embedding")
        kind = pa.list_(pa.float32(), 3)
        return table.set_column(at, pa.field("embedding", kind), pa.array(vectors, kind))

    rewrite(folder, "embeddings", unit, narrow)
    with pytest.raises(VerifyFailed, match=f"embeddings/{unit}.parquet: its columns are not those of the other parts"):
        verify(folder.url, deep=True)
    assert repair(folder.url, deep=True).units == [unit]


def test_classes_that_are_not_those_of_the_predictions_cost_no_unit(folder):
    classes = pq.read_table(io.BytesIO(folder.read("classes.parquet")))
    folder.write("classes.parquet", encode(_set("class_name", 0, "heron")(classes), {}))
    with pytest.raises(VerifyFailed, match="are not the names that"):
        verify(folder.url, deep=True)
    assert repair(folder.url, deep=True).units == []


@pytest.mark.parametrize(
    ("data", "message"), [(b"PAR1", "cannot be read"), (encode(pa.table({"a": [1]}), {}), "its columns")]
)
def test_damaged_classes(folder, data, message):
    folder.write("classes.parquet", data)
    with pytest.raises(VerifyFailed, match=message):
        verify(folder.url, deep=True)


def test_errors_are_checked_too(tmp_path, model):
    shutil.copy(model, tmp_path / "hgnet_v2_b0_tiny.pt")
    make_shards(str(tmp_path / "data"), images_per_shard=3, shards=1, format="images")
    (tmp_path / "data" / "class-0" / "bad.jpg").write_bytes(b"no image")
    score(_config(tmp_path))
    folder = Folder(str(tmp_path / "out"))
    verify(folder.url, deep=True)
    assert rescore(folder.url, 10).same == 3
    (unit,) = _units(folder)
    rewrite(folder, ERRORS, unit, _set("step", 0, "dream"))
    with pytest.raises(VerifyFailed, match=f"errors/{unit}.parquet: a step that there is not"):
        verify(folder.url, deep=True)


@pytest.mark.parametrize("images", [4, 100])
def test_scoring_again_gives_what_is_stored(scored, images):
    found = rescore(str(scored / "out"), images, seed=images)
    assert (found.asked, found.same) == (min(images, 24), min(images, 24))
    assert not found.wrong
    assert not found.skipped


@pytest.mark.parametrize(
    "blocks",
    [
        {"outputs": {"embeddings": {"dtype": "float16"}}},
        {"outputs": {"predictions": {"top_k": 50}, "features": {"levels": ["stage3"], "pooling": ["gem"]}}},
    ],
)
def test_other_outputs_are_checked_and_scored_again(scored, tmp_path, blocks):
    config = _config(scored, **blocks).model_copy(update={"destination": str(tmp_path / "out")})
    score(config)
    verify(config.destination, deep=True)
    assert rescore(config.destination, 6).same == 6


def test_the_choice_is_seeded_and_spread_over_the_units(own, monkeypatch):
    def asked(seed: int) -> list[str]:
        found = rescore(str(own / "out"), 6, seed=seed)
        return sorted(line.partition(":")[0] for line in found.wrong)

    monkeypatch.setattr("birder_ray.rescore._Comparison.__call__", lambda *_: ["all wrong"])
    first = asked(1)
    assert first == asked(1)
    assert first != asked(2)
    assert len({(name[:17], int(name[-6:]) // 5) for name in first}) == 6, "one of each unit"


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("predictions", "entropy", lambda v: v + 0.01),
        ("predictions", "label", "heron"),
        ("embeddings", "embedding", lambda v: [v[0] + 0.01, *v[1:]]),
        ("features", "stage3_mean", lambda v: [v[0] + 0.01, *v[1:]]),
    ],
)
def test_numbers_that_do_not_come_out_again(folder, table, column, value):
    unit = _units(folder)[2]
    rewrite(folder, table, unit, _set(column, 1, value))
    verify(folder.url, deep=True)
    (wrong,) = rescore(folder.url, 24).wrong
    assert column in wrong


def test_a_shard_that_is_gone_or_changed_is_named(own):
    shards = sorted((own / "data").iterdir())
    shards[0].unlink()
    make_shards(str(own / "other"), images_per_shard=8, shards=1, seed=5, size=(50, 50))
    shutil.copy(next((own / "other").iterdir()), shards[1])
    found = rescore(str(own / "out"), 24)
    assert (found.same, found.wrong) == (8, [])
    assert found.skipped == [
        "8 images of shard shard-000000.tar, which is not in the source any more",
        "8 images of shard shard-000001.tar, which changed since it was scored",
    ]


def test_a_source_that_is_gone_is_named(own):
    shutil.rmtree(own / "data")
    (line,) = rescore(str(own / "out"), 3).skipped
    assert line.startswith(f"3 images: {own}/data: no such file or directory")


def test_weights_that_are_missing_are_named(own):
    weights = own / "hgnet_v2_b0_tiny.pt"
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    moved = weights.rename(own / "moved.pt")
    (line,) = rescore(str(own / "out"), 3).skipped
    assert f"weights of sha256 {sha256[:12]}… are missing" in line
    assert rescore(str(own / "out"), 3, model=str(moved)).same == 3
    tiny_checkpoint(str(weights), seed=1)
    (line,) = rescore(str(own / "out"), 3).skipped
    assert "is another file" in line


def _invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_on_the_command_line(own):
    out = str(own / "out")
    done = _invoke("verify", out, "--deep", "--rescore", "5", "--seed", "3")
    assert done.exit_code == 0, done.output
    assert "every value sound" in done.output
    assert "5 of 5 images scored again" in done.output
    shutil.rmtree(own / "data")
    missing = _invoke("verify", out, "--deep")
    assert isinstance(missing.exception, VerifyFailed)
    assert "not scored again: 16 images:" in missing.output
    assert _invoke("verify", out, "--deep", "--rescore", "0").exit_code == 0
    assert _invoke("verify", out, "--rescore", "3").exit_code == 2
    assert "nothing is damaged" in _invoke("repair", out).output
    folder = Folder(out)
    folder.delete(part_name("features", _units(folder)[0]))
    mended = _invoke("repair", out)
    assert "1 units taken back" in mended.output
    assert "run the same command" in mended.output


def test_damage_is_mended_with_the_real_steps(own):
    folder = Folder(str(own / "out"))
    before = {name: folder.read(name) for t in OUTPUT_TABLES for u in _units(folder) for name in [part_name(t, u)]}
    units = _units(folder)
    folder.delete(part_name("features", units[0]))
    folder.write(record_name(units[1]), b"{")
    folder.write(part_name("predictions", units[2]), before[part_name("predictions", units[3])])
    folder.write(part_name("embeddings", units[2].replace("-00000", "-00009")), b"stray")
    assert repair(folder.url).units == units[:3]
    score(_config(own))
    verify(folder.url, deep=True)
    for name, data in before.items():
        old, new = pq.read_table(io.BytesIO(data)), pq.read_table(io.BytesIO(folder.read(name)))
        assert old["sample"].equals(new["sample"])
        for column in (c for c in old.schema.names if pa.types.is_fixed_size_list(old.schema.field(c).type)):
            one, other = (t[column].combine_chunks().flatten().to_numpy() for t in (old, new))
            np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_damaged_destination_is_no_crash_for_rescore(folder):
    for unit in _units(folder):
        folder.delete(part_name("features", unit))
    try:
        found = rescore(folder.url, 3)
    except BirderRayError:
        pytest.fail("damage is verify's to tell")
    assert found.same == 0
    assert len(found.skipped) >= 1

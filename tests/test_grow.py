"""A table is added to what is there: the tables that it has stay as they are, byte for byte, whatever happens then.
Without Ray, as in test_histories."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from birder_ray import ConfigError, RunConfig, RunFailed, VerifyFailed, pipeline
from birder_ray.audit import audit
from birder_ray.chunk import Chunk
from birder_ray.commit import SUCCESS, Ledger
from birder_ray.errors import SampleError
from birder_ray.folder import Folder
from birder_ray.manifest import load
from birder_ray.repair import repair
from birder_ray.rerun import rerun
from birder_ray.schema import INFER
from birder_ray.verify import status, verify
from tests.built import ROWS, InHand, tables
from tests.command import birder_ray
from tests.test_histories import Died, _content, chance  # noqa: F401
from tests.test_rerun import Counting, change, clock, shards  # noqa: F401

FIRST = {"a": 25, "b": 12, "c": 30, "d": 1}
LITTLE = {"predictions": {}}
MORE = {"predictions": {}, "embeddings": {}, "features": {}}


@pytest.fixture
def source(tmp_path) -> Path:
    return shards(tmp_path / "data", FIRST)


def config(source: Path, out: Path, outputs: dict, limit: int | None = None, **fields) -> RunConfig:
    told = {"uri": str(source), "limit": limit}
    return RunConfig(
        source=told, model="m", destination=str(out), outputs=outputs, compute={"unit_rows": ROWS}, **fields
    )


def files(out: Path, table: str) -> dict[str, tuple[int, bytes]]:
    return {path.stem: (path.stat().st_mtime_ns, path.read_bytes()) for path in (out / table).iterdir()}


def records(out: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in (out / "_commits").iterdir()}


@pytest.fixture
def begun(chance, source, tmp_path) -> Path:  # noqa: F811
    """A destination with predictions alone."""
    pipeline.run(config(source, tmp_path / "out", LITTLE))
    assert not (tmp_path / "out" / "features").exists()
    return tmp_path / "out"


@pytest.fixture
def whole(begun, source, tmp_path) -> dict[str, list]:
    """What a run with all tables from the start holds."""
    pipeline.run(config(source, tmp_path / "whole", MORE))
    return _content(tmp_path / "whole")


def test_what_is_there_stays_and_the_rest_is_added(begun, source, whole):
    before, old = files(begun, "predictions"), records(begun)
    done = pipeline.run(config(source, begun, MORE))
    assert (done.units, done.added) == (len(before), ("embeddings", "features"))
    assert files(begun, "predictions") == before
    assert _content(begun) == whole
    verify(str(begun), deep=True)
    for unit, record in records(begun).items():
        assert record["parts"]["predictions"] == old[unit]["parts"]["predictions"]
        assert record["finished"] == old[unit]["finished"]
        assert record["added"].keys() == {"embeddings", "features"}
    kept = files(begun, "features"), records(begun)
    again = pipeline.run(config(source, begun, MORE))
    assert (again.units, again.added, again.total_images) == (0, (), sum(FIRST.values()))
    assert (files(begun, "features"), records(begun)) == kept


def test_a_reader_may_tell_where_a_part_is_from(begun, source):
    pipeline.run(config(source, begun, MORE))
    manifest = load(Folder(str(begun)))
    for name in MORE:
        metadata = pq.read_metadata(next((begun / name).iterdir())).metadata
        wanted = f"{manifest['recipe']['core']}-{manifest['recipe']['tables'][name]}"
        assert metadata[b"birder_ray.recipe"].decode() == wanted


@pytest.mark.parametrize("lives", [0, 1, 7, 20])
def test_a_death_between_chunks_costs_nothing(begun, chance, source, whole, lives):  # noqa: F811
    before = files(begun, "predictions")
    chance.lives = lives
    with pytest.raises(Died):
        pipeline.run(config(source, begun, MORE))
    chance.lives = 10**9
    assert not (begun / SUCCESS).exists()
    pipeline.run(config(source, begun, MORE))
    assert (_content(begun), files(begun, "predictions")) == (whole, before)
    verify(str(begun), deep=True)


def test_units_that_grow_while_they_are_audited_are_no_strays(begun, chance, source, monkeypatch):  # noqa: F811
    chance.lives = 0
    with pytest.raises(Died):
        pipeline.run(config(source, begun, MORE))
    chance.lives = 10**9
    folder, names = Folder(str(begun)), Folder.names

    def later(self, path):
        if path == "embeddings":
            monkeypatch.setattr(Folder, "names", names)
            pipeline.run(config(source, begun, MORE))
        return names(self, path)

    monkeypatch.setattr(Folder, "names", later)
    found = audit(Ledger(folder), load(folder)).findings
    assert len(list((begun / "embeddings").iterdir())) == len(records(begun))
    assert [str(each) for each in found if each.stray] == []


@pytest.mark.parametrize("at", range(1, 46, 2))
def test_a_death_before_any_change_costs_nothing(begun, source, whole, monkeypatch, at):
    before = files(begun, "predictions")
    with monkeypatch.context() as patched:
        dying = Counting(patched, at)
        try:
            pipeline.run(config(source, begun, MORE))
        except Died:
            pass
        else:
            assert dying.left > 0, "it was due"
    found = audit(Ledger(Folder(str(begun))), load(Folder(str(begun)))).findings
    assert not [finding for finding in found if finding.unit], "what is there is whole"
    again = pipeline.run(config(source, begun, MORE))
    assert again.units < len(before) or at < 8
    assert (_content(begun), files(begun, "predictions")) == (whole, before)
    verify(str(begun), deep=True)


def test_repair_leaves_units_alone_that_have_yet_to_grow(begun, chance, source, whole):  # noqa: F811
    before, chance.lives = files(begun, "predictions"), 9
    with pytest.raises(Died):
        pipeline.run(config(source, begun, MORE))
    with pytest.raises(VerifyFailed, match="the run is unfinished"):
        verify(str(begun))
    chance.lives = 10**9
    assert repair(str(begun)).units == []
    pipeline.run(config(source, begun, MORE))
    assert (_content(begun), files(begun, "predictions")) == (whole, before)


@pytest.fixture
def first_fails(monkeypatch):
    """The first image of a.tar has a NaN now, as where a network is fine but for what the new table needs."""
    scored = pipeline.runtime.stream

    def stream(*told):
        for head in scored(*told):
            chunk = Chunk.from_table(head.block)
            if (chunk.shard, chunk.number, chunk.unit[-6:]) == ("a.tar", 0, "000000"):
                first, *others = chunk.samples
                failed = [first.failed(INFER, SampleError("NonFiniteOutput", "NaN"))]
                chunk = replace(chunk, samples=others, errors=failed, tables=tables(chunk.shard, others))
                head = InHand.chunk(chunk)
            yield head

    monkeypatch.setattr(pipeline.runtime, "stream", stream)


def test_no_row_that_stands_is_given_up_for_a_table_more(begun, source, first_fails):
    before, unit = files(begun, "predictions"), min(unit for unit in records(begun) if unit.startswith("a.tar"))
    with pytest.raises(RunFailed, match=rf"{unit}: 10 rows of it stand, and 9 came of it now \(1 errors\)"):
        pipeline.run(config(source, begun, MORE))
    assert files(begun, "predictions") == before
    assert records(begun)[unit]["rows"] == ROWS
    with pytest.raises(VerifyFailed, match=r"^[^;]*the run is unfinished[^;]*$"):
        verify(str(begun))


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"PAR1"), Path.unlink], ids=["garbled", "missing"])
def test_a_unit_whose_part_is_damaged_is_made_again(begun, source, whole, damage):
    damage(sorted((begun / "predictions").iterdir())[2])
    pipeline.run(config(source, begun, MORE))
    assert _content(begun) == whole
    verify(str(begun), deep=True)


def test_units_without_rows_lack_nothing(begun, source):
    (source / "e.tar").write_bytes(b"\0" * 1024)
    pipeline.run(config(source, begun, LITTLE))
    done = pipeline.run(config(source, begun, MORE))
    assert done.units == len(records(begun)) - 1
    verify(str(begun), deep=True)


@pytest.mark.parametrize("limit", [20, 22, 30])
def test_under_a_limit_and_without_it(begun, source, whole, limit):
    before = files(begun, "predictions")
    some = pipeline.run(config(source, begun, MORE, limit=limit))
    assert 0 < some.units < len(before)
    assert files(begun, "predictions") == before, "a limit cuts nothing off that stands"
    with pytest.raises(VerifyFailed, match=r"^[^;]*the run is unfinished[^;]*$"):
        verify(str(begun))
    assert status(str(begun)).finished is None
    rest = pipeline.run(config(source, begun, MORE))
    assert (some.units + rest.units, rest.added) == (len(before), ("embeddings", "features"))
    assert (_content(begun), files(begun, "predictions")) == (whole, before)
    verify(str(begun), deep=True)
    assert pipeline.run(config(source, begun, MORE)).units == 0


def test_one_table_after_the_other(begun, source, whole):
    for outputs in ({"predictions": {}, "features": {}}, MORE):
        pipeline.run(config(source, begun, outputs))
        verify(str(begun), deep=True)
    assert _content(begun) == whole


@pytest.mark.parametrize(
    "outputs",
    [{"predictions": {"top_k": 3}, "features": {}}, {"features": {}}, {"embeddings": {"dtype": "float16"}}],
    ids=["other options", "one left out", "only another"],
)
def test_what_is_no_addition_is_refused(begun, source, outputs):
    before = files(begun, "predictions"), records(begun)
    with pytest.raises(ConfigError, match="another recipe"):
        pipeline.run(config(source, begun, outputs))
    assert (files(begun, "predictions"), records(begun)) == before


@pytest.mark.parametrize("lives", [9, 10**9], ids=["midway", "afterwards"])
def test_the_way_back(begun, chance, source, tmp_path, lives):  # noqa: F811
    chance.lives = lives
    with suppress(Died):
        pipeline.run(config(source, begun, MORE))
    chance.lives = 10**9
    with pytest.raises(ConfigError, match="holds embeddings and features besides"):
        pipeline.run(config(source, begun, LITTLE))
    fewer = config(source, begun, LITTLE, run={"overwrite": True})
    assert pipeline.run(fewer).units == len(records(begun))
    verify(str(begun), deep=True)
    assert [path.name for path in begun.iterdir() if path.name in MORE and any(path.iterdir())] == ["predictions"]
    assert pipeline.run(config(source, begun, LITTLE)).units == 0


def test_a_rerun_adds_too_and_follows_the_source(chance, clock, source, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    rerun(config(source, out, LITTLE))
    before = files(out, "predictions")
    change(source)
    done = rerun(config(source, out, MORE))
    assert (done.changes.new, done.changes.retired) == (["f.tar"], ["c.tar"])
    assert done.told()["added"] == ("embeddings", "features")
    assert load(Folder(str(out)))["adding"] == []
    assert not list(tmp_path.glob("out-*")), "no sibling"
    verify(str(out), deep=True)
    after = files(out, "predictions")
    assert all(after[unit] == before[unit] for unit in before.keys() & after.keys())
    pipeline.run(config(source, tmp_path / "fresh", MORE))
    assert _content(out) == _content(tmp_path / "fresh")
    assert rerun(config(source, out, MORE)).summary.units == 0


def test_plan_says_what_it_would_add(begun, source, monkeypatch, capsys):
    units = len(records(begun))

    def plan(*options: str) -> str:
        told = ["--model", "m", "--output", str(begun), "--unit-rows", str(ROWS), *options]
        code, out, _ = birder_ray(monkeypatch, capsys, "plan", str(source), *told)
        assert code == 0
        return out

    assert f"0 done, {units} to do" in plan()
    assert f"adds     embeddings and features to {units} of them that are there" in plan()
    assert "another recipe" not in plan()
    assert f"{units} done, 0 to do" in plan("--outputs", "predictions")
    assert "another recipe" in plan("--outputs", "embeddings")

"""Random histories of runs - limits raised and lifted, errors retried, crashes anywhere - end like one undisturbed run.

Everything is real but Ray and the network: chunks come straight from the read step, in random order, with made-up
tables.
"""

import os
import random
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from birder_ray import pipeline
from birder_ray.commit import Ledger
from birder_ray.config import RunConfig
from birder_ray.read import read_chunks
from birder_ray.sizes import Hardware
from birder_ray.testing import make_shards
from birder_ray.verify import verify
from tests.built import FACTS, NAMES, ROWS, InHand, tables
from tests.results import table

FIRST_SEED = int(os.environ.get("BIRDER_RAY_SEED", "0"))
SEEDS = range(FIRST_SEED, FIRST_SEED + int(os.environ.get("BIRDER_RAY_SEEDS", "40")))


class Died(BaseException):
    """Stands for SIGKILL between two chunks."""


@pytest.fixture
def chance(monkeypatch):
    """Runs the pipeline without Ray; `chance.lives` chunks are scored before the process dies."""

    class Chance(random.Random):
        lives = 10**9

    drawn = Chance()

    def stream(work, config, *_):
        chunks = [chunk for each in work for chunk in read_chunks(each, config.source, 4)]
        drawn.shuffle(chunks)
        for number, chunk in enumerate(chunks):
            if number >= drawn.lives:
                raise Died
            yield InHand.chunk(replace(chunk, data=None, tables=tables(chunk.shard, chunk.samples)))

    @contextmanager
    def session(address):
        yield Hardware(2, 0, 2, 0, 16 * 1024**3)

    monkeypatch.setattr(pipeline.runtime, "stream", stream)
    monkeypatch.setattr(pipeline, "session", session)
    monkeypatch.setattr(pipeline, "Near", InHand)
    monkeypatch.setattr(pipeline, "_identify", lambda config: pipeline._Model(FACTS, None, NAMES))
    monkeypatch.setattr(os, "fsync", lambda file: None)
    return drawn


def _source(chance: random.Random, folder: Path) -> None:
    """One or two shards of some format and size; a tar may be cut, a Parquet file's pages garbled."""
    form = chance.choice(["tar", "images", "parquet"])
    for name in "ab"[: chance.choice([1, 2])]:
        size = chance.choice([0, 1, ROWS - 1, ROWS, ROWS + 1, 35, 50, 60])
        if form == "images":
            (folder / name).mkdir(parents=True)
            for index in range(max(size, 1)):
                (folder / name / f"{index:06d}.jpg").write_bytes(b"" if chance.random() < 0.05 else b"%d" % index)
        elif form == "parquet":
            folder.mkdir(exist_ok=True)
            images = pa.array([b"%d" % index for index in range(size)], pa.binary())
            groups = chance.choice([5, 25])
            pq.write_table(pa.table({"image": images}), folder / f"{name}.parquet", row_group_size=groups)
        else:
            make_shards(str(folder / "made"), size, 1, size=(4, 4), labels=False)
            data = (folder / "made" / "shard-000000.tar").read_bytes()
            (folder / "made" / "shard-000000.tar").unlink()
            keep = chance.randrange(len(data)) if chance.random() < 0.3 else len(data)
            (folder / f"{name}.tar").write_bytes(data[:keep])
    if (folder / "made").exists():
        (folder / "made").rmdir()


def _content(out: Path) -> dict[str, list]:
    return {
        name: sorted(zip(*(table(out, name)[key].to_pylist() for key in ("sample", "shard", "index")), strict=True))
        for name in ("predictions", "embeddings", "features", "errors")
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_any_history_ends_like_an_undisturbed_run(chance, tmp_path, seed):
    chance.seed(seed)
    _source(chance, tmp_path / "data")

    def run(out: str, limit: int | None = None, lives: int = 10**9, retry: bool = False) -> None:
        chance.lives = lives
        source = {"uri": str(tmp_path / "data"), "limit": limit}
        options = {"max_error_rate": 1, "retry_errors": retry}
        destination = str(tmp_path / out)
        pipeline.run(
            RunConfig(source=source, model="m", destination=destination, compute={"unit_rows": ROWS}, run=options)
        )

    run("undisturbed")
    whole = _content(tmp_path / "undisturbed")
    verify(str(tmp_path / "undisturbed"))
    limits = [] if chance.random() < 0.3 else chance.choices([3, 10, 15, 20, 25, 44], k=chance.choice([1, 2, 3]))
    for limit in [*limits, None]:
        for _ in range(chance.choice([0, 1, 2])):
            with suppress(Died):
                run("disturbed", limit, lives=chance.randrange(12), retry=chance.random() < 0.2)
        if limit is None or chance.random() < 0.7:
            run("disturbed", limit, retry=chance.random() < 0.2)
            verify(str(tmp_path / "disturbed"))
    assert _content(tmp_path / "disturbed") == whole


def test_a_finished_run_is_left_alone_without_reading_its_records(chance, tmp_path, monkeypatch):
    """Of a run of a million units that would take minutes."""
    make_shards(str(tmp_path / "data"), 45, 2, size=(4, 4), labels=False)
    config = RunConfig(
        source=str(tmp_path / "data"), model="m", destination=str(tmp_path / "out"), compute={"unit_rows": ROWS}
    )
    first = pipeline.run(config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    read, asked = Ledger.read, []
    monkeypatch.setattr(Ledger, "read", lambda ledger, unit: asked.append(unit) or read(ledger, unit))
    again = pipeline.run(config)
    assert (again.units, again.total_units, again.total_images) == (0, 10, first.images)
    assert len(asked) <= 2, "one of each shard, for the plan"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()} == before

"""verify finds every kind of damage, and names it."""

import io
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from birder_ray.audit import audit
from birder_ray.check import Checked
from birder_ray.commit import Ledger
from birder_ray.errors import ConfigError, VerifyFailed
from birder_ray.folder import Folder
from birder_ray.manifest import begun
from birder_ray.parts import encode, part_name
from birder_ray.record import record_name
from birder_ray.verify import status, verify
from tests.built import build, rewrite

SHARDS = {"a.tar": 25, "b.tar": 10, "cut.tar": 12}


@pytest.fixture
def folder(tmp_path) -> Folder:
    folder = Folder(str(tmp_path))
    build(folder, SHARDS)
    return folder


def _unit(folder: Folder, shard: str, number: int = 0) -> str:
    return next(u for u in Ledger(folder).units() if u.startswith(shard) and u.endswith(f"{number:06d}"))


def test_a_whole_destination_passes(folder):
    totals = verify(folder.url)
    assert (totals.samples, totals.rows, totals.errors, totals.units) == (48, 44, 4, 6)
    found = status(folder.url)
    assert (found.shards, found.ended, found.totals.samples) == (3, 3, 48)
    assert found.finished


def test_a_part_gone(folder):
    unit = _unit(folder, "a.tar", 1)
    folder.delete(part_name("embeddings", unit))
    with pytest.raises(VerifyFailed, match=f"embeddings/{unit}.parquet: missing"):
        verify(folder.url)


def test_a_flipped_bit(folder):
    name = part_name("features", _unit(folder, "b.tar"))
    data = bytearray(folder.read(name))
    data[len(data) // 2] ^= 1
    folder.write(name, bytes(data))
    with pytest.raises(VerifyFailed, match=f"{name}: its content is not what was committed"):
        verify(folder.url)


def test_a_commit_gone_leaves_orphans_and_a_gap(folder):
    unit = _unit(folder, "a.tar", 1)
    folder.delete(record_name(unit))
    with pytest.raises(VerifyFailed, match=rf"predictions/{unit}.parquet: no commit knows.*unit {unit} has no commit"):
        verify(folder.url)


def test_the_last_commit_of_a_shard_gone(folder):
    unit = _unit(folder, "a.tar", 2)
    Ledger(folder).erase(unit)
    with pytest.raises(VerifyFailed, match=r"shard a\.tar was not read to its end"):
        verify(folder.url)


def test_a_damaged_commit(folder):
    folder.write(record_name(_unit(folder, "a.tar")), b'{"unit": 1}')
    with pytest.raises(VerifyFailed, match="damaged commit record"):
        verify(folder.url)


def test_a_row_lost_in_one_table(folder):
    unit = _unit(folder, "a.tar", 1)
    rewrite(folder, "embeddings", unit, lambda table: table.slice(1))
    with pytest.raises(VerifyFailed, match=f"{unit}: its tables hold different samples"):
        verify(folder.url)


def test_a_row_lost_in_every_table(folder):
    unit = _unit(folder, "a.tar", 1)
    for table in ("predictions", "embeddings", "features"):
        rewrite(folder, table, unit, lambda table: table.slice(1))
    with pytest.raises(VerifyFailed, match=f"{unit}: 10 samples read, but 10 rows and 0 errors committed and 9 held"):
        verify(folder.url)


def test_a_sample_twice(folder):
    unit = _unit(folder, "a.tar", 1)

    def twice(table: pa.Table) -> pa.Table:
        names = table["sample"].to_pylist()
        return table.set_column(0, table.schema.field("sample"), pa.array([names[0], names[0], *names[2:]]))

    for table in ("predictions", "embeddings", "features"):
        rewrite(folder, table, unit, twice)
    with pytest.raises(VerifyFailed, match=r"1 samples stand more than once, e.g. a.tar/10"):
        verify(folder.url)


def test_a_part_of_another_recipe(folder):
    unit = _unit(folder, "b.tar")
    rewrite(folder, "predictions", unit, lambda table: table)
    data = folder.read(part_name("predictions", unit))
    file = pq.ParquetFile(io.BytesIO(data))
    told = {k.decode(): v.decode() for k, v in file.metadata.metadata.items() if k.startswith(b"birder_ray")}
    foreign = encode(file.read(), told | {"birder_ray.recipe": "another"})
    folder.write(part_name("predictions", unit), foreign)
    import hashlib

    record = folder.read_json(record_name(unit))
    record["parts"]["predictions"] |= {"bytes": len(foreign), "sha256": hashlib.sha256(foreign).hexdigest()}
    folder.write_json(record_name(unit), record)
    with pytest.raises(VerifyFailed, match="its rows or metadata are not what was committed"):
        verify(folder.url)


def test_an_unfinished_run(tmp_path):
    build(Folder(str(tmp_path)), SHARDS, finish=False)
    with pytest.raises(VerifyFailed, match=r"unfinished.*run the same command again"):
        verify(str(tmp_path))
    assert status(str(tmp_path)).finished is None


def test_the_status_of_a_finished_run_reads_no_commit(folder, monkeypatch):
    before = status(folder.url)
    monkeypatch.setattr(Ledger, "read", lambda *_: pytest.fail("a record was read"))
    assert status(folder.url) == before


def test_the_status_of_a_limited_or_changed_destination_comes_from_the_commits(folder):
    Ledger(folder).erase(_unit(folder, "b.tar"))
    assert (status(folder.url).ended, status(folder.url).totals.samples) == (2, 38)


def test_the_status_of_very_many_units_is_an_estimate(tmp_path, monkeypatch):
    build(Folder(str(tmp_path)), {f"{n}.tar": 20 for n in range(30)}, finish=False)
    exact = status(str(tmp_path))
    assert (exact.estimated, exact.ended, exact.totals.units) == (False, 30, 60)
    monkeypatch.setattr("birder_ray.verify._READ_ALL", 10)
    monkeypatch.setattr("birder_ray.verify._SAMPLE", 20)
    about = status(str(tmp_path))
    assert (about.estimated, about.ended, about.totals.units) == (True, 30, 60)
    assert about.totals.samples == pytest.approx(exact.totals.samples, rel=0.1)
    assert about.totals.bytes["features"] == pytest.approx(exact.totals.bytes["features"], rel=0.1)


def _spent(folder: Folder, **seconds: float) -> None:
    for unit in Ledger(folder).units():
        record = folder.read_json(record_name(unit))
        folder.write_json(record_name(unit), record | {"seconds": seconds})


def test_status_names_the_step_that_took_the_most(tmp_path):
    folder = Folder(str(tmp_path))
    build(folder, {"a.tar": 25}, finish=False)
    _spent(folder, read=0.5, decode=1.0, infer=2.0, write=0.25, wait=30.0, transfer=0.5)
    found = status(folder.url).totals
    assert (found.slowest, found.worked_s, found.passed_s) == ("infer", 3 * 3.75, 3 * 30.5)
    _spent(folder, read=0.5, write=0.75, wait=30.0)
    assert status(folder.url).totals.slowest == "write"


def test_status_names_no_step_before_the_first_commit(tmp_path):
    folder = Folder(str(tmp_path))
    build(folder, {"a.tar": 5}, finish=False)
    Ledger(folder).erase(_unit(folder, "a.tar"))
    found = status(folder.url).totals
    assert (found.slowest, found.worked_s, found.passed_s) == (None, 0, 0)


def test_memory_is_a_few_parts_the_names_and_8_bytes_per_sample(folder, monkeypatch):
    """Two thousand units of 2,048 samples, as they look once they are checked."""
    units, rows = 2_000, 2_048
    unit = _unit(folder, "a.tar", 0)
    record = replace(Ledger(folder).read(unit), end=False)

    class Fake:
        def __init__(self, *_):
            self.random = np.random.default_rng(0)

        def __call__(self, name: str) -> Checked:
            hashes = self.random.integers(0, 2**64, rows, np.uint64)
            return Checked(name, replace(record, unit=name), hashes, [], {})

    monkeypatch.setattr("birder_ray.audit.Check", Fake)
    monkeypatch.setattr(Ledger, "units", lambda _: {f"{unit[:-6]}{n:06d}" for n in range(units)})
    tracemalloc.start()
    audit(Ledger(folder), begun(folder))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * 8 * units * rows + 2_000 * units + 8_000_000


def test_foreign_files_are_left_alone(folder):
    Path(folder.url, "notes.txt").write_text("mine")
    Path(folder.url, "predictions", "README").write_text("mine")
    os.mkdir(Path(folder.url, "predictions", "sub"))
    verify(folder.url)


def test_no_destination_at_all(tmp_path):
    for check in (verify, status):
        with pytest.raises(ConfigError, match=r"no manifest.json"):
            check(str(tmp_path))

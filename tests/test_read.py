"""Chunks: every sample of the work once, units marked where they and their shard end."""

import itertools

import pytest

from birder_ray import read
from birder_ray.chunk import Chunk, Sample
from birder_ray.config import SourceConfig
from birder_ray.errors import SampleError, ShardDamaged
from birder_ray.plan import Work
from birder_ray.schema import WHOLE_SHARD
from birder_ray.source.base import Shard

ROWS = 10
CONFIG = SourceConfig(uri="x")


def _work(count: int | None = None, **facts) -> Work:
    shard = Shard("/data/a", "a", "images" if count is not None else "tar", "f", count=count)
    return Work(shard, "a-hash", ROWS, **facts)


@pytest.fixture
def stream(monkeypatch):
    """Replaces what the source gives: `size` samples, those in `bad` unreadable, damage before index `damaged`."""

    def install(size: int, bad=(), damaged: set[int] = frozenset()):
        def read_samples(shard, config, start, wanted):
            for index in range(start, size + 1):
                if index in damaged:
                    raise ShardDamaged("Damaged", f"at {index}")
                if index < size and wanted(index):
                    content = SampleError("EmptyFile", "no bytes") if index in bad else b"%d" % index
                    yield Sample(f"a/{index}", index, None, "u"), content

        monkeypatch.setattr(read, "read_samples", read_samples)

    return install


def _units(chunks: list[Chunk]) -> dict[int, list[int]]:
    """Indices by unit number, after checking the marks of its chunks."""
    found = {}
    for name, group in itertools.groupby(chunks, key=lambda chunk: chunk.unit):
        unit = list(group)
        assert [chunk.number for chunk in unit] == list(range(len(unit)))
        assert [chunk.last for chunk in unit] == [False] * (len(unit) - 1) + [True]
        assert all(len(chunk.samples) == len(chunk.data) for chunk in unit)
        found[int(name[-6:])] = sorted(
            (item.index for chunk in unit for item in (*chunk.samples, *chunk.errors)), key=lambda i: (i < 0, i)
        )
    assert len(found) == len({chunk.unit for chunk in chunks}), "a unit comes in one piece"
    return found


def _end(chunks: list[Chunk]) -> set[int]:
    return {int(chunk.unit[-6:]) for chunk in chunks if chunk.end}


def _expected(size: int) -> dict[int, list[int]]:
    return {n: list(range(n * ROWS, min(size, (n + 1) * ROWS))) for n in range(max(1, -(-size // ROWS)))}


@pytest.mark.parametrize("chunk_rows", [1, 3, 10, 256])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20, 35])
def test_every_sample_once_and_the_end_marked(stream, size, known, chunk_rows):
    stream(size, bad={4, 10})
    units = max(1, -(-size // ROWS))
    work = _work(size, stop=units, units=units) if known else _work()
    chunks = list(read.read_chunks(work, CONFIG, chunk_rows))
    assert _units(chunks) == _expected(size)
    assert _end(chunks) == {units - 1}
    assert all(len(chunk.samples) + len(chunk.errors) <= chunk_rows for chunk in chunks)


@pytest.mark.parametrize("done", [{0}, {1}, {0, 2}, {1, 2}, {0, 1, 2}])
def test_committed_units_are_left_out(stream, done):
    stream(35)
    work = _work(first=min(set(range(4)) - done), done=frozenset(done))
    chunks = list(read.read_chunks(work, CONFIG, 4))
    assert _units(chunks) == {n: indices for n, indices in _expected(35).items() if n not in done}
    assert _end(chunks) == {3}


def test_units_in_the_middle_of_a_shard_do_not_claim_its_end(stream):
    stream(35)
    chunks = list(read.read_chunks(_work(35, first=1, stop=3, units=4), CONFIG, 256))
    assert _units(chunks) == {n: _expected(35)[n] for n in (1, 2)}
    assert _end(chunks) == set()


def test_a_gap_before_a_known_end_does_not_claim_it(stream):
    stream(35)
    chunks = list(read.read_chunks(_work(first=1, stop=2, units=4, done=frozenset({0, 2, 3})), CONFIG, 256))
    assert (_units(chunks), _end(chunks)) == ({1: _expected(35)[1]}, set())


@pytest.mark.parametrize(("stop", "end"), [(5, set()), (10, set()), (34, set()), (35, {3})])
def test_a_limit_cuts_and_says_whether_the_shard_ended(stream, stop, end):
    stream(35)
    chunks = list(read.read_chunks(_work(stop=-(-stop // ROWS), sample_stop=stop), CONFIG, 256))
    assert _units(chunks) == _expected(stop)
    assert _end(chunks) == end


@pytest.mark.parametrize("damaged", [0, 5, 10, 11, 35])
def test_damage_ends_a_streamed_shard_with_a_row_of_its_own(stream, damaged):
    stream(35, damaged={damaged})
    chunks = list(read.read_chunks(_work(), CONFIG, 4))
    units = _units(chunks)
    assert [i for indices in units.values() for i in indices if i >= 0] == list(range(damaged))
    last = max(units)
    assert units[last][-1] == WHOLE_SHARD
    assert _end(chunks) == {last}
    (error,) = [error for chunk in chunks for error in chunk.errors]
    assert (error.index, error.error_type, error.sample) == (WHOLE_SHARD, "Damaged", "a")


def test_damage_in_one_unit_of_a_shard_with_known_units_spares_the_others(stream):
    stream(35, damaged={13})
    chunks = list(read.read_chunks(_work(35, stop=4, units=4), CONFIG, 4))
    assert _units(chunks) == {**_expected(35), 1: [10, 11, 12, WHOLE_SHARD]}
    assert _end(chunks) == {3}


def test_a_shard_that_gives_less_than_planned_leaves_its_units_out(stream):
    stream(12)
    chunks = list(read.read_chunks(_work(35, first=2, stop=4, units=4), CONFIG, 4))
    assert chunks == []

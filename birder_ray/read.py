"""The read step: the stream of a shard's samples, cut into the chunks of its units."""

import time
from collections.abc import Callable, Generator, Iterator

from birder_ray.chunk import Chunk, ErrorRow, Sample
from birder_ray.config import SourceConfig
from birder_ray.errors import SampleError, ShardDamaged
from birder_ray.plan import Work, unit_name
from birder_ray.schema import READ, WHOLE_SHARD
from birder_ray.source import read_samples
from birder_ray.source.base import Item
from birder_ray.storage import redact


def read_chunks(
    work: Work,
    config: SourceConfig,
    chunk_rows: int,
    watch: Callable[[int, Iterator[Item]], Iterator[Item]] = lambda start, items: items,
) -> Iterator[Chunk]:
    """Read what `work` asks for.

    Every unit that is begun ends with a chunk marked `last`; the unit that holds the shard's end is marked `end`.
    Where a shard cannot be read further, its unit ends with an errors row for the shard; the shard ends there too,
    unless its number of units is known and the next can be read on its own.

    Args:
        chunk_rows: samples per chunk, at most (one row more where the shard's own errors row is among them).
        watch: wraps the samples read from an index on.
    """
    rows = work.unit_rows
    past = _first_past(work)

    def wanted(index: int) -> bool:
        return index == past or (work.todo(index // rows) and (past is None or index < past))

    unit: int | None = work.first
    while unit is not None:
        cutter = _Cutter(work, unit, past, chunk_rows)
        try:
            items = watch(unit * rows, read_samples(work.shard, config, unit * rows, wanted))
            exhausted = yield from cutter.cut(items)
            yield from cutter.finish(exhausted)
            return
        except ShardDamaged as error:
            if cutter.next_index == past:  # damage behind what was asked for is not this work's to tell
                yield from cutter.finish(exhausted=False)
                return
            cutter.add_damage(error)
            yield from cutter.finish(exhausted=True)
        done = cutter.unit
        later = range(done + 1, work.stop or 0) if work.units is not None else range(0)
        unit = next((number for number in later if work.todo(number)), None)


def _first_past(work: Work) -> int | None:
    """The first index behind the work, which is looked at to learn that the shard goes on; None: the shard's end."""
    ends = [] if work.sample_stop is None else [work.sample_stop]
    if work.stop is not None and work.stop != work.units:
        ends.append(work.stop * work.unit_rows)
    return min(ends, default=None)


class _Cutter:
    """Holds one chunk back until it is known whether another of the same unit follows."""

    def __init__(self, work: Work, unit: int, past: int | None, chunk_rows: int):
        self.work = work
        self.unit = unit
        self.past = past
        self.next_index = unit * work.unit_rows
        self.chunk_rows = chunk_rows
        self.begun = False
        self.emitted = 0
        self._clear()

    def _clear(self) -> None:
        self.samples: list[Sample] = []
        self.data: list[bytes] = []
        self.errors: list[ErrorRow] = []
        self.seconds = 0.0

    def cut(self, items: Iterator[Item]) -> Generator[Chunk, None, bool]:
        """Chunks of `items` but for the last; returns whether the stream came to its end, not to that of the work."""
        work = self.work
        while True:
            started = time.perf_counter()
            item = next(items, None)
            self.seconds += time.perf_counter() - started
            if item is None:
                return True
            index = item[0].index
            if self.past is not None and index >= self.past:
                return False
            self.next_index = index + 1
            if work.todo(index // work.unit_rows):
                yield from self._add(index // work.unit_rows, *item)

    def _add(self, number: int, sample: Sample, content: bytes | SampleError) -> Iterator[Chunk]:
        if number != self.unit and self.begun:
            yield self._chunk(last=True, end=False)
            self.emitted = 0
        elif len(self.samples) + len(self.errors) >= self.chunk_rows:
            yield self._chunk(last=False, end=False)
        self.unit, self.begun = number, True
        if isinstance(content, SampleError):
            self.errors.append(sample.failed(READ, content))
        else:
            self.samples.append(sample)
            self.data.append(content)

    def add_damage(self, error: ShardDamaged) -> None:
        shard = self.work.shard
        name, uri = shard.name or ".", redact(shard.uri)
        self.errors.append(ErrorRow(name, WHOLE_SHARD, READ, error.error_type, str(error), uri))
        self.begun = True

    def finish(self, exhausted: bool) -> Iterator[Chunk]:
        """The chunk held back; a shard without samples still has one, which says that it ends."""
        if not self.begun and self.work.stop is not None and self.work.shard.count != 0:
            return  # less was there than planned: the missing commit tells
        last_unit = self.work.units is None or self.unit == self.work.units - 1
        yield self._chunk(last=True, end=exhausted and last_unit)

    def _chunk(self, last: bool, end: bool) -> Chunk:
        chunk = Chunk(
            unit=unit_name(self.work.prefix, self.unit),
            shard=self.work.shard.name,
            number=self.emitted,
            last=last,
            end=end,
            samples=self.samples,
            errors=self.errors,
            seconds={READ: self.seconds},
            bytes_read=sum(map(len, self.data)),
            data=self.data,
        )
        self.emitted += 1
        self._clear()
        return chunk

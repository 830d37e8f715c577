"""The write step: chunks come in any order, complete units go out to the ledger, several at a time."""

from collections import Counter
from collections.abc import Callable, Container, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from birder_ray.commit import Ledger
from birder_ray.errors import BirderRayError, RunFailed
from birder_ray.manifest import Recipe
from birder_ray.parts import Part, Parts
from birder_ray.record import Record
from birder_ray.schema import ERRORS_SCHEMA, WHOLE_SHARD
from birder_ray.scored import Scored
from birder_ray.storage import redact


class Writer(Protocol):
    """Who writes parts, `writers` units at once."""

    writers: int

    def put(self, parts: Parts, chunks: Sequence[Scored]) -> dict[str, Part] | None:
        """`Parts.write` with the rows of `chunks`."""
        ...


@dataclass
class _Pending:
    chunks: dict[int, Scored] = field(default_factory=dict)
    total: int | None = None

    def add(self, chunk: Scored) -> bool:
        """Whether the unit is complete now."""
        self.chunks[chunk.number] = chunk
        if chunk.last:
            self.total = chunk.number + 1
        return len(self.chunks) == self.total


class Collector:
    """Puts units together and commits them.

    Args:
        writer: of the parts. leftovers: names of those that stood before the run.
        on_commit: called after each commit, in the thread that calls `add` or `drain`.
        growing: names of the units that stay as they are but for the tables they lack.
    """

    def __init__(
        self,
        ledger: Ledger,
        recipe: Recipe,
        unit_rows: int,
        writer: Writer,
        leftovers: Container[str],
        on_commit: Callable[[Record], None],
        growing: Container[str] = frozenset(),
    ):
        self.ledger = ledger
        self.recipe = recipe
        self.unit_rows = unit_rows
        self.writer = writer
        self.leftovers = leftovers
        self.on_commit = on_commit
        self.growing = growing
        self.pending: dict[str, _Pending] = {}
        self.writing: list[Future[Record]] = []
        self.committed = 0
        self.pool = ThreadPoolExecutor(writer.writers, "birder-ray-write")

    def add(self, chunk: Scored) -> None:
        """Take a scored chunk; commits its unit if that is complete.

        Raises:
            RunFailed: the destination cannot be written. LockHeld: it has another owner.
        """
        unit = self.pending.setdefault(chunk.unit, _Pending())
        if not unit.add(chunk):
            return
        del self.pending[chunk.unit]
        self._settle(at_most=self.writer.writers - 1)
        self.writing.append(self.pool.submit(self._write, [unit.chunks[n] for n in sorted(unit.chunks)]))
        if self.committed == 0:
            self.drain()  # what the first commit sets in motion comes before the second

    def drain(self) -> None:
        """Wait until every complete unit is committed. Raises RunFailed as `add` does."""
        self._settle(at_most=0)

    def close(self) -> None:
        """Finish the writes under way, so that no commit follows the release of the lock."""
        self.pool.shutdown(wait=True)

    def _settle(self, at_most: int) -> None:
        while self.writing and (len(self.writing) > at_most or self.writing[0].done()):
            try:
                record = self.writing.pop(0).result()
            except (AssertionError, BirderRayError):
                raise
            except Exception as error:  # every filesystem has exceptions of its own
                where = redact(self.ledger.folder.url)
                raise RunFailed(f"cannot write to {where}: {error}; mend that and run again to resume") from error
            self.committed += 1
            self.on_commit(record)

    def _write(self, chunks: list[Scored]) -> Record:
        unit, shard, end = chunks[0].unit, chunks[0].shard, chunks[-1].end
        failed = [error for chunk in chunks for error in chunk.errors]
        failed.sort(key=lambda error: (error.index == WHOLE_SHARD, error.index))  # the shard's own row comes last
        errors = pa.Table.from_pylist([{"shard": shard, **vars(error)} for error in failed], ERRORS_SCHEMA)
        damaged = bool(failed) and failed[-1].index == WHOLE_SHARD
        images = sum(chunk.images for chunk in chunks)
        return self.ledger.write(
            unit,
            shard,
            self.recipe,
            images,
            errors,
            lambda parts: self.writer.put(parts, chunks),
            end=end,
            limited=not end and not damaged and images + len(failed) < self.unit_rows,
            damaged=damaged,
            seconds=sum((Counter(chunk.seconds) for chunk in chunks), Counter()),
            bytes_read=sum(chunk.bytes_read for chunk in chunks),
            engines=sum((Counter({chunk.engine: chunk.images}) for chunk in chunks if chunk.engine), Counter()),
            leftovers=self.leftovers,
            growing=unit in self.growing,
        )

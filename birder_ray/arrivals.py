"""The end of the Ray Data chain: the driver looks at the head of each block, and the rows stay in Ray's object store
until their unit is written, by the driver or, on a cluster, by a task beside them."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError

from birder_ray.errors import RunFailed
from birder_ray.parts import Part, Parts
from birder_ray.scored import Scored, joined, look

_AHEAD = 16
"""Blocks whose heads are on their way: a head takes its time on busy machines, and the driver has others to see to."""


class Near:
    """The driver reads the blocks: on one machine that copies nothing, and a local destination is its own."""

    def __init__(self) -> None:
        self.writers = min(8, max(4, os.cpu_count() or 1))
        """They wait for storage, and encoding takes 150 µs of a core per image (HGNet v2 B2)."""

    def heads(self, blocks: Iterable["ray.ObjectRef[pa.Table]"]) -> Iterator[Scored]:
        """The chunks in each of `blocks`."""
        for block in blocks:
            yield from _of(block, look(ray.get(block)))

    def put(self, parts: Parts, chunks: Sequence[Scored]) -> dict[str, Part] | None:
        """`Parts.write` with the rows of `chunks`. Raises RunFailed where those are lost."""
        with _rows_lost(parts.unit):
            return _write(parts, [chunk.row for chunk in chunks], *ray.get([chunk.block for chunk in chunks]))


class Far:
    """Tasks read the blocks, on whatever machines those are: the driver's memory and network never see a row.

    Args:
        cpus: of the cluster.
    """

    def __init__(self, cpus: float):
        self.writers = min(32, max(4, int(cpus / 4)))
        task = ray.remote(num_cpus=0)  # small beside decoding, which has the cores
        self._look: Callable[..., ray.ObjectRef] = task(look).remote
        self._write: Callable[..., ray.ObjectRef] = task(_write).remote

    def heads(self, blocks: Iterable["ray.ObjectRef[pa.Table]"]) -> Iterator[Scored]:
        """The chunks in each of `blocks`, not all of them at once."""
        coming: deque[tuple[ray.ObjectRef, ray.ObjectRef]] = deque()
        for block in blocks:
            coming.append((block, self._look(block)))
            while coming and (len(coming) > _AHEAD or ray.wait([coming[0][1]], timeout=0)[0]):
                yield from _known(*coming.popleft())
        while coming:
            yield from _known(*coming.popleft())

    def put(self, parts: Parts, chunks: Sequence[Scored]) -> dict[str, Part] | None:
        """`Parts.write` with the rows of `chunks`. Raises what that does, and RunFailed where those are lost."""
        rows, blocks = [chunk.row for chunk in chunks], [chunk.block for chunk in chunks]
        with _rows_lost(parts.unit):
            written: dict[str, Part] | None = ray.get(self._write(parts, rows, *blocks))
        return written


def _known(block: ray.ObjectRef, head: ray.ObjectRef) -> Iterator[Scored]:
    return _of(block, ray.get(head))


def _of(block: ray.ObjectRef, chunks: Sequence[Scored]) -> Iterator[Scored]:
    return (replace(chunk, block=block) for chunk in chunks)


def _write(parts: Parts, rows: Sequence[int], *blocks: pa.Table) -> dict[str, Part] | None:
    return parts.write(joined(zip(blocks, rows, strict=True)))


@contextmanager
def _rows_lost(unit: str) -> Iterator[None]:
    """A task's own exception instead of Ray's around it; and rows that Ray cannot make again are one plain line."""
    try:
        yield
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise RunFailed(
            f"{unit}: its rows were lost with the machine that held them ({str(error).splitlines()[0]}); what is "
            f"committed stands, run again to resume"
        ) from error

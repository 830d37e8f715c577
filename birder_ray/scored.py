"""What the driver knows of a scored chunk. Its rows stay where they are until its unit is complete."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from birder_ray.chunk import ErrorRow
from birder_ray.schema import TRANSFER, WAIT


@dataclass(frozen=True)
class Scored:
    """Everything of a chunk that infer is done with but its rows.

    Args:
        images: number of its samples, without the errors. For the other fields see `Chunk`.
        row: of the chunk in its block. block: the block, or whatever stands for it.
    """

    unit: str
    shard: str
    number: int
    last: bool
    end: bool
    images: int
    errors: list[ErrorRow]
    row: int
    seconds: dict[str, float] = field(default_factory=dict)
    engine: str | None = None
    bytes_read: int = 0
    block: Any = None


def look(block: pa.Table) -> list[Scored]:
    """The chunks in a block of scored ones, without reading what lies in its output tables."""
    return [_head(block, row) for row in range(block.num_rows)]


def _head(block: pa.Table, row: int) -> Scored:
    started = time.time()

    def value(name: str) -> Any:
        return block.column(name)[row].as_py()

    known: dict[str, Any] = {
        name: value(name) for name in ("unit", "shard", "number", "last", "end", "engine", "bytes_read")
    }
    errors = [ErrorRow(**each) for each in value("errors")]
    images, left, seconds = len(block.column("samples")[row]), value("left"), Counter(dict(value("seconds")))
    seconds.update({WAIT: max(0.0, started - left), TRANSFER: time.time() - started})  # clocks may differ
    return Scored(**known, images=images, errors=errors, row=row, seconds=dict(seconds))


def joined(rows: Iterable[tuple[pa.Table, int]]) -> dict[str, pa.Table]:
    """The output tables of a unit, by name, from its chunks in order: each a block and the row in it. Their memory is
    that of the blocks."""
    found: dict[str, list[pa.Table]] = {}
    for block, row in rows:
        packed = block.column("tables")[row].values  # a map is a list of its items
        assert packed is not None, "what is joined has been scored"
        for name, data in zip(packed.field(0).to_pylist(), packed.field(1), strict=True):
            found.setdefault(name, []).append(pa.ipc.open_stream(data.as_buffer()).read_all())
    return {name: pa.concat_tables(tables) for name, tables in found.items()}

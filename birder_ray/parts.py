"""Parts: the Parquet files of a unit. They are written where its rows are: by the driver, or by a task beside them."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from birder_ray.folder import Folder
from birder_ray.schema import ERRORS

_DICTIONARY_COLUMNS = ["shard", "label", "prediction", "top_classes.list.element", "step", "error_type"]
_ZSTD_LEVEL = 1
"""Higher ones take up to six times as long; features come out at most one percent smaller, embeddings even larger."""


@dataclass(frozen=True)
class Part:
    """One file of a unit."""

    rows: int
    bytes: int
    sha256: str


def part_name(table: str, unit: str) -> str:
    """Path of a part in the destination."""
    return f"{table}/{unit}.parquet"


@dataclass(frozen=True)
class Parts:
    """The parts of one unit, yet to be written; can be pickled, if `fence` can.

    Args:
        folder: the destination. fence: raises where that has another owner by now.
        unit: its name. metadata: key-value metadata of each file, by table; no other table gets one.
        errors: rows of the errors table.
        versions: of the files that stand there, by name. They, and no others, may be replaced.
        beside: name and sha256 of a part of this unit that stays, where these are added to it.
    """

    folder: Folder
    fence: Callable[[], None]
    unit: str
    metadata: Mapping[str, Mapping[str, str]]
    errors: pa.Table
    versions: Mapping[str, str]
    beside: tuple[str, str] | None = None

    def write(self, tables: Mapping[str, pa.Table]) -> dict[str, Part] | None:
        """Encode and write them.

        Args:
            tables: the output tables, with the same rows in the same order.

        Returns:
            What was written, by table; nothing where the part beside them is not what was committed, or has other
            rows. None: a file stands there that is not in `versions`, of another attempt.

        Raises:
            AssertionError: the tables do not hold the same samples. LockHeld: the destination has another owner.
        """
        keys = [table.column("sample") for table in tables.values()]
        assert all(key.equals(keys[0]) for key in keys), f"{self.unit}: the tables disagree on their samples"
        if self.beside is not None and not self._go_with(*self.beside, keys[0]):
            return {}
        parts = {}
        for name, metadata in self.metadata.items():
            table, path = self.errors if name == ERRORS else tables[name], part_name(name, self.unit)
            data, version = encode(table, metadata), self.versions.get(path)
            self.fence()
            if not (self.folder.create(path, data) if version is None else self.folder.replace(path, data, version)):
                return None
            parts[name] = Part(table.num_rows, len(data), hashlib.sha256(data).hexdigest())
        return parts

    def _go_with(self, name: str, sha256: str, samples: pa.ChunkedArray) -> bool:
        try:
            data = self.folder.read(name)
        except FileNotFoundError:
            return False
        if hashlib.sha256(data).hexdigest() != sha256:
            return False
        standing = pq.read_table(pa.BufferReader(data), columns=["sample"]).column("sample")
        return bool(standing.cast(samples.type).equals(samples))


def encode(table: pa.Table, metadata: Mapping[str, str]) -> bytes:
    """`table` as a Parquet file with key-value `metadata`. What its encodings save and cost: docs/writing.md."""
    told = {key.encode(): value.encode() for key, value in metadata.items()}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **told})
    leaves = {}
    for column in table.schema:
        listed = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
        path = f"{column.name}.list.element" if listed else column.name
        leaves[path] = column.type.value_type if listed else column.type
    # Signs and exponents repeat, mantissas do not: apart, in streams of their own, the former compress well. float16 is
    # left as it is: DuckDB cannot read it split, and it would gain nothing.
    floats = {path: "BYTE_STREAM_SPLIT" for path, kind in leaves.items() if pa.types.is_float32(kind)}
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=_ZSTD_LEVEL,
        use_dictionary=[path for path in _DICTIONARY_COLUMNS if path in leaves],
        column_encoding=floats,
        # The least and the greatest of all values in a column of vectors tell a reader nothing
        write_statistics=[path for path in leaves if path in table.schema.names],
    )
    return sink.getvalue().to_pybytes()

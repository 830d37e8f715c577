"""Commits: a unit counts as done when, and only when, its record stands in `_commits/`.

Order of writes for a unit, each whole or not at all, under names that depend only on the unit: its parts, then its
record. A crash anywhere leaves either a record whose parts are all there, or no record, and then the same command
writes the same names again. A unit that is done again loses its record first.

Every one of these writes creates its file, or replaces the very version that stood there while the lock was still ours:
a run that was paused, lost its lock and woke up again cannot write over what the new owner wrote.
"""

import hashlib
import re
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from birder_ray.errors import ConfigError, RunFailed
from birder_ray.folder import Folder, to_json
from birder_ray.manifest import Recipe, now
from birder_ray.schema import ERRORS, OUTPUT_TABLES, part_metadata

COMMITS = "_commits"
SUCCESS = "_SUCCESS"
CLASSES = "classes.parquet"
_DICTIONARY_COLUMNS = ["shard", "label", "prediction", "top_classes.list.element", "step", "error_type"]
_ZSTD_LEVEL = 1
"""Higher ones take up to six times as long; features come out at most one percent smaller, embeddings even larger."""

_READERS = 32
_READ_AT_ONCE = 4096
_ATTEMPTS = 5
_UNIT_FILE = re.compile(r"(.+-[0-9a-f]{12}-\d{6,})\.(json|parquet)")


@dataclass(frozen=True)
class Part:
    """One file of a unit."""

    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """What `_commits/<unit>.json` says.

    Args:
        samples: read from the shard, equals rows + errors. rows: in each output table. errors: in the errors table.
        end: the shard ends with this unit. limited: cut short by --limit, to be done again without it.
        damaged: the shard could not be read further, and the errors hold a row for it.
        seconds: spent by step (read, decode, infer, write), between the steps (wait) and on moving the data from one to
            the other (transfer), summed over the unit's chunks. bytes_read: encoded images.
        engines: rows by the engine that scored them, eager or compiled.
    """

    unit: str
    shard: str
    recipe: str
    samples: int
    rows: int
    errors: int
    end: bool
    limited: bool
    damaged: bool
    parts: dict[str, Part]
    seconds: dict[str, float] = field(default_factory=dict)
    bytes_read: int = 0
    engines: dict[str, int] = field(default_factory=dict)
    finished: str = ""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Record":
        """Raises TypeError, KeyError or AttributeError where `value` is no record."""
        return cls(**{**value, "parts": {table: Part(**part) for table, part in value["parts"].items()}})


def part_name(table: str, unit: str) -> str:
    """Path of a part in the destination."""
    return f"{table}/{unit}.parquet"


def record_name(unit: str) -> str:
    """Path of a commit record in the destination."""
    return f"{COMMITS}/{unit}.json"


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


class Ledger:
    """The commits of one destination.

    Args:
        fence: raises where the destination has another owner by now.
    """

    def __init__(self, folder: Folder, fence: Callable[[], None] = lambda: None):
        self.folder = folder
        self.fence = fence

    def units(self) -> set[str]:
        """Names of the units that are done; files that are no commits of ours are left out."""
        return self._units(COMMITS, "json")

    def _units(self, folder: str, suffix: str) -> set[str]:
        found = map(_UNIT_FILE.fullmatch, self.folder.names(folder))
        return {match[1] for match in found if match and match[2] == suffix}

    def read(self, unit: str) -> Record:
        """The record of `unit`. Raises ConfigError where it is damaged."""
        name = record_name(unit)
        try:
            record = Record.from_json(self.folder.read_json(name))
        except (FileNotFoundError, TypeError, KeyError, AttributeError, ValueError):
            record = None
        if record is None or record.unit != unit:
            raise ConfigError(f"damaged commit record {name}: run birder-ray repair, then the same command again")
        return record

    def records(self, units: Iterable[str]) -> Iterator[Record]:
        """Records of `units`, read side by side, in order."""
        left = iter(units)
        with ThreadPoolExecutor(_READERS) as pool:
            while some := list(islice(left, _READ_AT_ONCE)):
                yield from pool.map(self.read, some)

    def parts(self, table: str) -> set[str]:
        """Names of the units that have a file in `table`, committed or not; other files are left out."""
        return self._units(table, "parquet")

    def leftovers(self) -> set[str]:
        """Names of all parts that stand now, committed or not."""
        return {part_name(table, unit) for table in (*OUTPUT_TABLES, ERRORS) for unit in self.parts(table)}

    def discard(self, name: str) -> None:
        """Delete a file of the destination, if that is still ours. Raises LockHeld."""
        self.fence()
        self.folder.delete(name)

    def overwrite(self, name: str, data: bytes) -> None:
        """Write a file that belongs to no unit. Raises LockHeld, also if another owner wrote it meanwhile."""
        version = self.folder.version(name)
        self.fence()
        written = self.folder.create(name, data) if version is None else self.folder.replace(name, data, version)
        if not written:
            self.fence()
            raise RunFailed(f"{name}: another process keeps writing it")

    def retract(self, unit: str) -> None:
        """Undo a unit's commit; from here on it is to be done again. Its parts stay until they are overwritten."""
        self.discard(record_name(unit))

    def erase(self, unit: str) -> None:
        """Remove a unit, record first."""
        self.retract(unit)
        for table in (*OUTPUT_TABLES, ERRORS):
            self.discard(part_name(table, unit))

    def write(
        self,
        unit: str,
        shard: str,
        recipe: Recipe,
        tables: Mapping[str, pa.Table],
        errors: pa.Table,
        *,
        end: bool,
        limited: bool,
        damaged: bool,
        seconds: Mapping[str, float],
        bytes_read: int,
        engines: Mapping[str, int],
        leftovers: Container[str],
    ) -> Record:
        """Write the parts of a unit, then its record.

        Args:
            tables: the output tables, with the same rows in the same order.
            errors: rows of the errors table. Of a table without rows no file is written.
            leftovers: names of parts that stood before the run; one that this attempt does not write is deleted.

        Raises:
            AssertionError: the tables do not hold the same samples. LockHeld: the destination has another owner.
        """
        started = time.perf_counter()
        keys = [table.column("sample") for table in tables.values()]
        assert all(key.equals(keys[0]) for key in keys), f"{unit}: the tables disagree on their samples"
        parts = {}
        for name, table in [*tables.items(), (ERRORS, errors)]:
            if table.num_rows == 0:
                if part_name(name, unit) in leftovers:
                    self.discard(part_name(name, unit))
                continue
            data = encode(table, part_metadata(recipe.part(name), unit))
            self._put(part_name(name, unit), data, unit)
            parts[name] = Part(table.num_rows, len(data), hashlib.sha256(data).hexdigest())
        rows = len(keys[0])
        record = Record(
            unit=unit,
            shard=shard,
            recipe=recipe.key,
            samples=rows + errors.num_rows,
            rows=rows,
            errors=errors.num_rows,
            end=end,
            limited=limited,
            damaged=damaged,
            parts=parts,
            seconds={**seconds, "write": time.perf_counter() - started},
            bytes_read=bytes_read,
            engines=dict(engines),
            finished=now(),
        )
        self._put(record_name(unit), to_json(asdict(record)), unit)
        return record

    def _put(self, name: str, data: bytes, unit: str) -> None:
        """Write a file of `unit`. What stands there is of an attempt that a crash, or a new owner, cut short."""
        for _ in range(_ATTEMPTS):
            self.fence()
            if self.folder.create(name, data):
                return
            # Looked at before the fence: whoever owns the lock later writes other versions
            version, late = self.folder.version(name), self.folder.exists(record_name(unit))
            self.fence()
            if late:  # that attempt came to its record after all, which is about to be no longer true
                self.folder.delete(record_name(unit))
            if version is not None and self.folder.replace(name, data, version):
                return
        raise RunFailed(f"{name}: another process keeps writing it")

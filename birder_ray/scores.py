"""What a destination holds, for everything that looks at it afterwards: its tables, streamed part by part.

Every part is held against the hash in its commit record: nothing is concluded from a damaged one, or without it.
Memory: a few parts at a time, however many there are. Needs neither Ray nor torch.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from birder_ray.commit import CLASSES, SUCCESS, Ledger
from birder_ray.deep import class_names
from birder_ray.errors import ConfigError, RunFailed
from birder_ray.folder import Folder
from birder_ray.manifest import Recipe, begun
from birder_ray.parts import part_name
from birder_ray.plan import prefixes, split_name
from birder_ray.record import Record, record_name
from birder_ray.schema import ERRORS
from birder_ray.source.fetch import prefetch
from birder_ray.storage import redact

_SIDE_BY_SIDE = 4


class Scores:
    """A destination, opened for reading.

    Args:
        url: of the destination, local or any fsspec URL. options: fsspec options for it.

    Raises:
        ConfigError: no run has begun there, or the folder cannot be reached.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None):
        self.folder = Folder(url, dict(options or {}))
        self.manifest = begun(self.folder)
        self.recipe = Recipe(**self.manifest["recipe"])

    @property
    def where(self) -> str:
        """The URL, fit to be shown."""
        return redact(self.folder.url)

    @property
    def tables(self) -> Sequence[str]:
        """Names of the output tables that the recipe has."""
        return list(self.recipe.tables)

    @cached_property
    def finished(self) -> bool:
        """Whether the run came to its end; else what is committed by now is what is read."""
        return self.manifest["totals"] is not None and self.folder.exists(SUCCESS)

    @cached_property
    def units(self) -> Sequence[str]:
        """Names of the committed units of the inputs that the manifest has, by shard and number. Beside them may stand
        those of shards that have changed since, until the run that follows its source comes to its end."""
        known = prefixes(self.manifest)
        return sorted((unit for unit in Ledger(self.folder).units() if split_name(unit)[0] in known), key=split_name)

    @cached_property
    def class_names(self) -> Sequence[str]:
        """Names of the classes by index. Raises ConfigError where classes.parquet is missing or damaged."""
        names, problem = class_names(self.folder)
        if names is None:
            raise ConfigError(f"{self.where}: {problem or f'{CLASSES}: missing'}; birder-ray verify tells what else is")
        return names

    @cached_property
    def classes(self) -> pa.Table:
        """classes.parquet: index, name and, where the names carry it, taxonomy. Raises as `class_names`."""
        return pq.read_table(io.BytesIO(self.folder.read(CLASSES))) if self.class_names else pa.table({})

    def needs(self, *tables: str) -> None:
        """Raises ConfigError where one of `tables` is not among those of the recipe."""
        for table in tables:
            if table not in (*self.recipe.tables, ERRORS):
                raise ConfigError(
                    f"{self.where} has no table {table}: add it with the same command and --outputs "
                    f"{','.join([*self.recipe.tables, table])}"
                )

    def stream(self, table: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows of `table`, a table for each unit that has any, in the order of `units`.

        Args:
            columns: names of those to read; None: all.

        Raises:
            ConfigError: there is no such table, or a part of it is missing or damaged.
        """
        for (rows,) in self.aligned({table: columns}):
            yield rows

    def aligned(self, columns: Mapping[str, Sequence[str] | None]) -> Iterator[tuple[pa.Table, ...]]:
        """As `stream`, of several tables at once, which hold the same samples in the same order.

        Args:
            columns: to read, by table.
        """
        return (tables for _, tables in self.recorded(columns))

    def recorded(self, columns: Mapping[str, Sequence[str] | None]) -> Iterator[tuple[Record, tuple[pa.Table, ...]]]:
        """As `aligned`, each with the commit record of its unit."""
        self.needs(*columns)
        ledger = Ledger(self.folder)

        def read(unit: str) -> tuple[Record, tuple[pa.Table, ...]] | None:
            try:
                return whole(unit)
            except ConfigError:
                # A run may be at work, and have taken the unit back, or written it anew, between two reads
                return whole(unit) if self.folder.exists(record_name(unit)) else None

        def whole(unit: str) -> tuple[Record, tuple[pa.Table, ...]] | None:
            record = ledger.read(unit)
            if record.recipe != self.recipe.key or columns.keys() - record.parts.keys():
                return None  # of a recipe that this one is just replacing, without rows, or about to get the table
            found = (self.part(t, unit, record.parts[t].sha256, names) for t, names in columns.items())
            return record, tuple(found)

        for found in prefetch(read, self.units, _SIDE_BY_SIDE):
            if found is not None:
                yield found

    def part(self, table: str, unit: str, sha256: str, columns: Sequence[str] | None) -> pa.Table:
        """The rows of one part, which was committed with this hash.

        Args:
            columns: names of those to read; None: all.

        Raises:
            ConfigError: the part is missing or damaged. RunFailed: storage does not give it now.
        """
        name = part_name(table, unit)
        try:
            data = self._bytes(name)
            if hashlib.sha256(data).hexdigest() != sha256:
                raise ValueError("its content is not what was committed")
            return pq.ParquetFile(io.BytesIO(data)).read(columns=columns)
        except FileNotFoundError:
            problem = "missing"
        except (pa.ArrowException, ValueError, KeyError) as error:
            problem = f"cannot be read: {error}"
        raise ConfigError(f"{self.where}/{name}: {problem}; birder-ray verify lists all damage, repair takes it back")

    def write(self, name: str, data: bytes, content_type: str | None = None) -> None:
        """Write a file beside the tables. Raises ConfigError where this destination may only be read."""
        try:
            self.folder.write(name, data, content_type)
        except (OSError, NotImplementedError) as error:
            raise ConfigError(f"{self.where}/{name}: cannot be written: {error}") from None

    def delete(self, name: str) -> None:
        """Delete a file beside the tables, if it is there. Raises as `write`."""
        try:
            self.folder.delete(name)
        except (OSError, NotImplementedError) as error:
            raise ConfigError(f"{self.where}/{name}: cannot be replaced: {error}") from None

    def _bytes(self, name: str) -> bytes:
        try:
            return self.folder.read(name)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RunFailed(
                f"{self.where}/{name}: cannot be read now: {error}; nothing is damaged, try again"
            ) from None

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
from birder_ray.errors import ConfigError
from birder_ray.folder import Folder
from birder_ray.manifest import Recipe
from birder_ray.manifest import load as load_manifest
from birder_ray.parts import part_name
from birder_ray.plan import split_name
from birder_ray.record import Record
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
        self.folder.check()
        manifest = load_manifest(self.folder)
        if manifest is None:
            raise ConfigError(f"{self.where}: no manifest.json; not a destination of birder-ray, or not begun")
        self.manifest = manifest
        self.recipe = Recipe(**manifest["recipe"])

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
        """Names of the committed units, by shard and number."""
        return sorted(Ledger(self.folder).units(), key=split_name)

    @cached_property
    def class_names(self) -> Sequence[str]:
        """Names of the classes by index. Raises ConfigError where classes.parquet is missing or damaged."""
        names, problem = class_names(self.folder)
        if names is None:
            raise ConfigError(f"{self.where}: {problem or f'{CLASSES}: missing'}; birder-ray repair writes it again")
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
            record = ledger.read(unit)
            if record.recipe != self.recipe.key or columns.keys() - record.parts.keys():
                return None  # of a recipe that this one is just replacing, without rows, or about to get the table
            return record, tuple(self._part(table, record, names) for table, names in columns.items())

        for found in prefetch(read, self.units, _SIDE_BY_SIDE):
            if found is not None:
                yield found

    def _part(self, table: str, record: Record, columns: Sequence[str] | None) -> pa.Table:
        name = part_name(table, record.unit)
        try:
            data = self.folder.read(name)
            if hashlib.sha256(data).hexdigest() != record.parts[table].sha256:
                raise OSError("its content is not what was committed")
            return pq.ParquetFile(io.BytesIO(data)).read(columns=columns)
        except FileNotFoundError:
            problem = "missing"
        except (pa.ArrowException, OSError, KeyError) as error:
            problem = f"cannot be read: {error}"
        raise ConfigError(f"{self.where}/{name}: {problem}; birder-ray verify lists all damage, repair takes it back")

"""The rows of a destination by number: where a row is, and what some rows hold, without all their names in memory."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from birder_ray.commit import Ledger
from birder_ray.errors import ConfigError, RunFailed
from birder_ray.parts import part_name
from birder_ray.record import Record, record_name
from birder_ray.schema import PREDICTIONS
from birder_ray.scores import Scores
from birder_ray.source.fetch import prefetch

_SIDE_BY_SIDE = 4
_RECORDS_SIDE_BY_SIDE = 32


class Unit(NamedTuple):
    """A unit with rows. `parts`: sha256 of each of its parts, by table."""

    name: str
    shard: str
    rows: int
    parts: Mapping[str, str]


class Rows:
    """The rows of a table, numbered from 0 in the order of `units`, which is that of `Scores.units`.

    Memory: some numbers for each unit, whatever number of rows it has.

    Args:
        table: without whose part a unit does not count.

    Raises:
        ConfigError: there is no such table, or a commit record is damaged.
    """

    def __init__(self, scores: Scores, table: str):
        scores.needs(table)
        self.scores, self.table = scores, table
        self._ledger = Ledger(scores.folder)
        records = filter(None, prefetch(self._record, scores.units, _RECORDS_SIDE_BY_SIDE))
        self.units = [
            Unit(each.unit, each.shard, each.rows, {name: part.sha256 for name, part in each.parts.items()})
            for each in records
            if each.recipe == scores.recipe.key and each.rows and table in each.parts
        ]
        self.starts = np.cumsum([0, *(unit.rows for unit in self.units)])

    @cached_property
    def names(self) -> str:
        """The table whose names of samples are the quickest to read."""
        return PREDICTIONS if all(PREDICTIONS in unit.parts for unit in self.units) else self.table

    def __len__(self) -> int:
        return int(self.starts[-1])

    def stream(
        self, columns: Sequence[str], units: Sequence[int] | None = None, table: str | None = None
    ) -> Iterator[tuple[int, pa.Table]]:
        """Some columns of the table, or of another, unit by unit, each with the number of its first row.

        Args:
            units: places of those wanted in `self.units`; None: all.

        Raises:
            ConfigError: a part is missing or damaged. RunFailed: a run at work has changed one meanwhile.
        """

        def read(place: int) -> tuple[int, pa.Table]:
            unit, name = self.units[place], table or self.table
            try:
                part = self.scores.part(name, unit.name, unit.parts[name], columns)
            except ConfigError:
                if self._stands(unit, name):
                    raise
                where = f"{self.scores.where}/{part_name(name, unit.name)}"
                raise RunFailed(f"{where}: a run at work changed it meanwhile; try again when that is over") from None
            if part.num_rows != unit.rows:
                where = f"{self.scores.where}/{part_name(name, unit.name)}"
                raise ConfigError(f"{where}: has {part.num_rows} rows, not {unit.rows}; birder-ray verify tells more")
            return int(self.starts[place]), part

        return prefetch(read, range(len(self.units)) if units is None else units, _SIDE_BY_SIDE)

    def _record(self, unit: str) -> Record | None:
        """None: a run at work has taken the unit back since it was listed."""
        try:
            return self._ledger.read(unit)
        except ConfigError:
            return self._ledger.read(unit) if self.scores.folder.exists(record_name(unit)) else None

    def _stands(self, unit: Unit, table: str) -> bool:
        """Whether the part that was committed when these rows were numbered is so still."""
        record = self._record(unit.name)
        return record is not None and table in record.parts and record.parts[table].sha256 == unit.parts[table]

    def take(self, rows: np.ndarray, columns: Sequence[str], table: str | None = None) -> pa.Table:
        """The rows of these numbers, in that order; of their units alone, the parts are read. Raises as `stream`."""
        wanted, back = np.unique(rows, return_inverse=True)
        places = np.unique(self.unit_of(wanted))
        found = []
        for start, part in self.stream(columns, places.tolist(), table):
            low, high = np.searchsorted(wanted, (start, start + part.num_rows))
            found.append(part.take(pa.array(wanted[low:high] - start)))
        return pa.concat_tables(found).take(pa.array(back)) if found else pa.table({name: [] for name in columns})

    def unit_of(self, rows: np.ndarray) -> np.ndarray:
        """Places in `units` of these rows."""
        places: np.ndarray = np.searchsorted(self.starts, rows, side="right") - 1
        return places

    def find(self, sample: str) -> int | None:
        """The number of a sample, if it is here. Units of a shard whose name it begins with are looked at first, as
        most samples are named after their shard. Raises as `stream`."""
        places = sorted(range(len(self.units)), key=lambda place: not sample.startswith(self.units[place].shard))
        for start, part in self.stream(["sample"], places, self.names):
            if (at := pc.index(part["sample"], sample).as_py()) >= 0:
                return start + int(at)
        return None

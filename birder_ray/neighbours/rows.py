"""The rows of a destination by number: where a row is, and what some rows hold, without all their names in memory."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from birder_ray.commit import Ledger
from birder_ray.schema import PREDICTIONS
from birder_ray.scores import Scores
from birder_ray.source.fetch import prefetch

_SIDE_BY_SIDE = 4


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
        records = Ledger(scores.folder).records(scores.units)
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
            ConfigError: a part is missing or damaged.
        """

        def read(place: int) -> tuple[int, pa.Table]:
            unit, name = self.units[place], table or self.table
            return int(self.starts[place]), self.scores.part(name, unit.name, unit.parts[name], columns)

        return prefetch(read, range(len(self.units)) if units is None else units, _SIDE_BY_SIDE)

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

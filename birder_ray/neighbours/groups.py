"""Groups of rows that are alike: what hangs together, cut into stars around the rows to keep.

Alike is not transitive: in a burst, each shot may be like the next one, and the last be nothing like the first. What
hangs together through such a chain is therefore cut: going through its rows in order, a row that is alike to one kept
before joins that one's group, and any other is kept itself. So each row that is not kept is alike to one that is, by
the limit asked for, and no two rows that are kept, of one chain, are alike.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Distances = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""N,M distances between N and M rows."""

_KEPT_AT_ONCE = 256
_COMPARED_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class Groups:
    """Rows that are alike to another, each group together, the row to keep first.

    Args:
        rows, keepers: row numbers. distances: of each row to its keeper.
    """

    rows: np.ndarray
    keepers: np.ndarray
    distances: np.ndarray

    @property
    def count(self) -> int:
        return len(np.unique(self.keepers))

    @property
    def redundant(self) -> int:
        """Rows but for those to keep."""
        return len(self.rows) - self.count


class Components:
    """What hangs together, of `size` rows, as a forest: each row points at an earlier one, a root at itself."""

    def __init__(self, size: int):
        self._parents = np.arange(size)

    def join(self, some: np.ndarray, others: np.ndarray) -> None:
        """Join each of `some` rows with its counterpart in `others`."""
        while len(some):
            some, others = self._roots(some), self._roots(others)
            apart = some != others
            some, others = some[apart], others[apart]
            # Where several ask for one root, the least wins, and the others are still apart
            np.minimum.at(self._parents, np.maximum(some, others), np.minimum(some, others))

    def _roots(self, rows: np.ndarray) -> np.ndarray:
        found = rows
        while (found != (above := self._parents[found])).any():
            found = above
        self._parents[rows] = found
        return found

    def members(self) -> Iterator[np.ndarray]:
        """The rows of each component of more than one, in order; components by their first row."""
        roots = self._roots(np.arange(len(self._parents)))
        shared = np.flatnonzero(np.bincount(roots, minlength=len(roots))[roots] > 1)
        if len(shared):
            shared = shared[np.argsort(roots[shared], kind="stable")]
            yield from np.split(shared, np.flatnonzero(np.diff(roots[shared])) + 1)


def grouped(components: Components, distances: Distances, most: float) -> Groups:
    """Cut what hangs together into stars.

    Args:
        distances: between rows. most: that a row may be from the one that is kept for it.
    """
    found = [star for members in components.members() for star in _stars(members, distances, most)]
    if not found:
        return Groups(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    rows, keepers, apart = (np.concatenate(each) for each in zip(*found, strict=True))
    order = np.lexsort((rows, keepers))
    return Groups(rows[order], keepers[order], apart[order].astype(np.float32))


def _stars(left: np.ndarray, distances: Distances, most: float) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows with their keepers and distances, of stars of more than one row; `left` are the rows of a component."""
    while len(left):
        some = left[:_KEPT_AT_ONCE]
        keepers = _independent(distances(some, some) <= most)
        blocks = [_nearest(left[at : at + _COMPARED_AT_ONCE], some[keepers], distances, most)
                  for at in range(0, len(left), _COMPARED_AT_ONCE)]  # fmt: skip
        kept, apart = (np.concatenate(each) for each in zip(*blocks, strict=True))
        taken = kept >= 0
        stars = np.bincount(kept[taken], minlength=1)[kept] > 1
        yield left[taken & stars], some[keepers][kept[taken & stars]], apart[taken & stars]
        left = left[~taken]


def _independent(near: np.ndarray) -> np.ndarray:
    """Places of the rows to keep among N, given which of N,N are alike."""
    kept: list[int] = []
    for row in range(len(near)):
        if not near[row, kept].any():
            kept.append(row)
    return np.array(kept)


def _nearest(rows: np.ndarray, keepers: np.ndarray, distances: Distances, most: float) -> tuple[np.ndarray, np.ndarray]:
    """For each row the place of the first of `keepers` that it is alike to, -1 if none, and how far that is. A keeper
    is its own, at 0."""
    apart = distances(rows, keepers)
    own = rows[:, None] == keepers
    apart[own] = 0
    near = apart <= most
    first = np.where(own.any(axis=1), own.argmax(axis=1), near.argmax(axis=1))
    found: np.ndarray = np.where(near.any(axis=1), first, -1)
    return found, apart[np.arange(len(rows)), first]

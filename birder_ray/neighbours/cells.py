"""Which embeddings are alike: pairs above a cosine, looked for within cells and their nearest neighbours.

All directions go to a temporary file (TMPDIR), 2 bytes a value, so that each cell can be compared with what is nearby
by one product of matrices. Few embeddings are one cell, and all pairs are looked at.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from birder_ray.errors import ConfigError, RunFailed
from birder_ray.neighbours.index import Index
from birder_ray.neighbours.rows import Rows
from birder_ray.neighbours.vectors import directions, have_direction

PROBES = 4
"""Nearest cells that an embedding's look-alikes are looked for in."""

NEAREST = 1 - 5e-6
"""Limits above this ask for equal embeddings: float32 may put the cosine of those so far below 1."""

_QUERIES, _STORED = 2048, 8192
"""Rows of one product: 64 MB."""


class Spilled:
    """The directions of the embeddings of a destination, in a file, and the cells nearest to each.

    Args:
        vectors: N,D float16 on disk. cells: N,P int32, the nearest first; -1 where there is no direction.
        marks: N uint64, the same for the same values, and nearly always others for others.

    `good`: whether a row has a direction. `copies`, `originals`: rows whose embedding is that of an earlier row, value
    by value, and that row. A thousand copies would make a million pairs.
    """

    def __init__(self, vectors: np.ndarray, cells: np.ndarray, marks: np.ndarray):
        self._vectors, self.cells = vectors, cells
        good = np.flatnonzero(cells[:, 0] >= 0)
        _, first, back = np.unique(marks[good], return_index=True, return_inverse=True)
        originals = good[first][back]
        copies, originals = good[good != originals], originals[good != originals]
        blocks = [slice(at, at + _STORED) for at in range(0, len(copies), _STORED)]
        same = [(vectors[copies[block]] == vectors[originals[block]]).all(axis=1) for block in blocks]
        equal = np.concatenate([np.empty(0, bool), *same])
        self.copies, self.originals = copies[equal], originals[equal]
        self.good = cells[:, 0] >= 0

    def directions(self, rows: np.ndarray) -> np.ndarray:
        """Float32 of length 1 of some rows."""
        found = self._vectors[rows].astype(np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def distances(self, some: np.ndarray, others: np.ndarray) -> np.ndarray:
        """1 - cosine between rows, N,M."""
        apart: np.ndarray = 1 - self.directions(some) @ self.directions(others).T
        return np.maximum(apart, 0)

    def by_cell(self, rank: int, with_copies: bool) -> tuple[np.ndarray, np.ndarray]:
        """Rows in the order of their `rank`-th nearest cell, and those cells in order."""
        cells = self.cells[:, rank].copy()
        if not with_copies:
            cells[self.copies] = -1
        order = np.argsort(cells, kind="stable").astype(np.int32)
        return order, cells[order]


@contextmanager
def spilled(rows: Rows, index: Index) -> Iterator[Spilled]:
    """Spill the embeddings in `rows`, by the cells of `index`, which may be another destination's.

    Raises:
        ConfigError: there are no rows, or a part is missing or damaged. RunFailed: the temporary folder is full.
    """
    if not len(rows):
        raise ConfigError(f"{rows.scores.where}: no embeddings are committed yet")
    probes = min(PROBES, index.cells)
    cells, marks = np.full((len(rows), probes), -1, np.int32), np.zeros(len(rows), np.uint64)
    factors = np.random.default_rng(0).integers(1, 2**63, 1 << 16, np.uint64) | np.uint64(1)
    with TemporaryDirectory(prefix="birder-ray-") as folder:
        path, size = Path(folder) / "directions", 0
        try:
            with path.open("wb") as file:
                for start, part in rows.stream(["embedding"]):
                    vectors = directions(part["embedding"])
                    good, size = have_direction(vectors), vectors.shape[1]
                    halves = vectors.astype(np.float16)
                    file.write(halves.tobytes())
                    at = start + np.flatnonzero(good)
                    cells[at] = index.nearest_cells(vectors[good], probes)
                    marks[at] = halves[good].view(np.uint16).astype(np.uint64) @ factors[:size]
        except OSError as error:
            raise RunFailed(f"{folder}: {error}; give a TMPDIR with more space") from None
        yield Spilled(np.memmap(path, np.float16, "r", shape=(len(rows), size)), cells, marks)


def compared(queries: Spilled, stored: Spilled) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows of `queries`, rows of `stored` in one of their nearest cells, and the cosines between them, N,M, block by
    block. Copies in `stored` are left out; where both are one, so are they among the queries."""
    order, cells = stored.by_cell(0, with_copies=False)
    ranks = [queries.by_cell(rank, queries is not stored) for rank in range(queries.cells.shape[1])]
    present = np.unique(cells[cells >= 0])
    for cell in present:
        here = order[slice(*np.searchsorted(cells, (cell, cell + 1)))]
        nearby = [found[slice(*np.searchsorted(at, (cell, cell + 1)))] for found, at in ranks]
        asking = np.sort(np.concatenate(nearby))
        for first in range(0, len(here), _STORED):
            some = here[first : first + _STORED]
            columns = stored.directions(some).T
            for second in range(0, len(asking), _QUERIES):
                others = asking[second : second + _QUERIES]
                yield others, some, queries.directions(others) @ columns

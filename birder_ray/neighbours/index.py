"""An index over all embeddings of a destination, kept in its folder `neighbours/` for the next time.

Few embeddings are kept as they are, and searched one by one. Many are sorted into cells, of which a search looks into
the nearest few, and compressed; what a search finds is ranked by the stored embeddings again, so that only what is
found may differ from a search of all, never its cosine.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from birder_ray.errors import ConfigError
from birder_ray.folder import to_json
from birder_ray.neighbours.library import faiss
from birder_ray.neighbours.rows import Rows
from birder_ray.neighbours.stored import NEIGHBOURS, read_about, read_index, same_kind, write_index
from birder_ray.neighbours.vectors import directions, have_direction
from birder_ray.schema import EMBEDDINGS

ABOUT = f"{NEIGHBOURS}/_about.json"
VERSION = 1

FLAT_ROWS = 50_000
"""Up to here all embeddings are looked at, which takes less than a second."""

PROBES = 64
"""Cells that a search looks into."""

_TRAINED_PER_CELL = 40
"""faiss warns below 39."""

_TRAINED_UNITS = 512
"""Units that the sample to train with is spread over: reading each of a large destination once more would double the
time."""


class Index:
    """The embeddings of a destination, opened for searching; `opened` makes one.

    Args:
        rows: of the embeddings. factory: what faiss calls the kind of index. searched: the index itself.
        units: name, rows and sha256 of the embeddings of each unit in it, in the order that they went in.
        without_direction: embeddings that are in no index, as they are zero or not finite.
    """

    def __init__(
        self, rows: Rows, factory: str, searched: Any, units: Sequence[Sequence[Any]] = (), without_direction: int = 0
    ):
        self.rows, self.factory, self.searched = rows, factory, searched
        self.units = [tuple(unit) for unit in units]
        self.without_direction = without_direction
        self.kept: str | None = None
        """Why it could not be saved, if so."""
        if not self.flat:
            faiss().extract_index_ivf(searched).nprobe = PROBES

    @property
    def flat(self) -> bool:
        return "Flat" in self.factory

    @property
    def cells(self) -> int:
        """How many cells the embeddings are sorted into."""
        return 1 if self.flat else int(faiss().extract_index_ivf(self.searched).nlist)

    def nearest_cells(self, vectors: np.ndarray, probes: int) -> np.ndarray:
        """N,probes int32: the cells nearest to each of N directions, the nearest first."""
        if self.flat:
            return np.zeros((len(vectors), 1), np.int32)
        _, cells = faiss().extract_index_ivf(self.searched).quantizer.search(vectors, probes)
        return cells.astype(np.int32)

    def search(self, vector: np.ndarray, most: int) -> np.ndarray:
        """Numbers of up to `most` rows that are likely the nearest to a direction (D), in no order to rely on."""
        _, found = self.searched.search(vector[None], most)
        found = found[0][found[0] >= 0]
        starts = np.cumsum([0, *(rows for _, rows, _ in self.units)])
        at = np.searchsorted(starts, found, side="right") - 1
        place = {unit.name: start for unit, start in zip(self.rows.units, self.rows.starts, strict=False)}
        return found - starts[at] + np.array([place[self.units[each][0]] for each in at], np.int64)

    def add(self) -> int:
        """Add the embeddings that it lacks. Returns how many units those were."""
        known = {name for name, _, _ in self.units}
        places = [place for place, unit in enumerate(self.rows.units) if unit.name not in known]
        start = sum(rows for _, rows, _ in self.units)
        for place, (_, part) in zip(places, self.rows.stream(["embedding"], places), strict=True):
            vectors, unit = directions(part["embedding"]), self.rows.units[place]
            good = have_direction(vectors)
            self.searched.add_with_ids(vectors[good], start + np.flatnonzero(good))
            self.units.append((unit.name, unit.rows, unit.parts[EMBEDDINGS]))
            self.without_direction += int((~good).sum())
            start += unit.rows
        return len(places)

    def save(self, seed: int) -> None:
        """Write it to the destination, its `_about.json` last. Raises ConfigError where that may only be read."""
        scores = self.rows.scores
        scores.delete(ABOUT)
        files = write_index(scores, self.searched)
        told = {
            "version": VERSION,
            "recipe": scores.recipe.part(EMBEDDINGS),
            "metric": "cosine",
            "factory": self.factory,
            "seed": seed,
            "faiss": faiss().__version__,
            "rows": len(self.rows),
            "without_direction": self.without_direction,
            "files": files,
            "units": self.units,
        }
        scores.write(ABOUT, to_json(told))
        for name in scores.folder.names(NEIGHBOURS) - {ABOUT.rpartition("/")[2]}:
            if f"{NEIGHBOURS}/{name}" not in {file for file, _ in files}:
                scores.delete(f"{NEIGHBOURS}/{name}")


def opened(rows: Rows, seed: int = 0) -> Index:
    """The index of all embeddings: the one that is kept, with what is new added to it, or a new one.

    A kept one is of use as long as every unit in it stands as it was, and as many rows as there are now ask for the
    same kind of index. Cells stay as they were trained: what is added changes none of those that are there.

    Args:
        rows: of the embeddings. seed: of the sample that a new one is trained with.

    Raises:
        ConfigError: there are no embeddings, a part is missing or damaged, or faiss is not installed.
    """
    if not len(rows):
        raise ConfigError(f"{rows.scores.where}: no embeddings are committed yet")
    size = next(rows.stream(["embedding"], [0]))[1]["embedding"].type.list_size
    factory = factory_of(len(rows), size)
    index = _kept(rows, factory, size, seed) or Index(rows, factory, _trained(rows, factory, size, seed))
    if index.add():
        try:
            index.save(seed)
        except ConfigError as error:
            index.kept = str(error)
    return index


def factory_of(rows: int, size: int) -> str:
    """faiss's name of the index for so many rows of so many values."""
    if rows <= FLAT_ROWS:
        return "IDMap,Flat"
    return f"IVF{2 ** round(math.log2(2 * math.sqrt(rows)))},RaBitQ2"


def _kept(rows: Rows, factory: str, size: int, seed: int) -> Index | None:
    about = read_about(rows.scores, ABOUT)
    wanted = {"version": VERSION, "recipe": rows.scores.recipe.part(EMBEDDINGS), "factory": factory, "seed": seed}
    if any(about.get(name) != value for name, value in wanted.items()):
        return None
    now = {(unit.name, unit.rows, unit.parts[EMBEDDINGS]) for unit in rows.units}
    if any(tuple(unit) not in now for unit in about["units"]):
        return None
    searched = read_index(rows.scores, about["files"])
    if searched is None or not same_kind(searched, _empty(factory, size)):
        return None
    if searched.ntotal != sum(unit[1] for unit in about["units"]) - about["without_direction"]:
        return None
    return Index(rows, factory, searched, about["units"], about["without_direction"])


def _empty(factory: str, size: int) -> Any:
    return faiss().index_factory(size, factory, faiss().METRIC_L2)  # of directions: the order is that of cosine


def _trained(rows: Rows, factory: str, size: int, seed: int) -> Any:
    """An empty index, trained with a sample that is spread over the units."""
    index = _empty(factory, size)
    if index.is_trained:
        return index
    cells = faiss().extract_index_ivf(index)
    cells.cp.seed, cells.cp.min_points_per_centroid = seed, 1
    dice = np.random.default_rng(seed)
    places = np.sort(dice.permutation(len(rows.units))[:_TRAINED_UNITS])
    share = min(1.0, _TRAINED_PER_CELL * cells.nlist / sum(rows.units[place].rows for place in places))
    counts = [math.ceil(share * rows.units[place].rows) for place in places]
    chosen, filled = np.empty((sum(counts), size), np.float32), 0
    for count, (_, part) in zip(counts, rows.stream(["embedding"], places.tolist()), strict=True):
        vectors = directions(part["embedding"].take(pa.array(dice.choice(part.num_rows, count, replace=False))))
        vectors = vectors[have_direction(vectors)]
        chosen[filled : filled + len(vectors)] = vectors
        filled += len(vectors)
    if filled < cells.nlist:
        raise ConfigError(f"{rows.scores.where}: nearly all embeddings are zero or not finite, so no index can be made")
    index.train(chosen[:filled])
    return index

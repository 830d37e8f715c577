"""Taxa of a network's classes, and probabilities rolled up to them: a genus is as likely as its species together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from birder_ray.classes import RANKS


@dataclass(frozen=True)
class Rolled:
    """The likeliest taxon of a rank for each of n images.

    Args:
        rank: its name. taxa: (n,) numbers of taxa of this rank, -1 where none of the classes has one.
        probabilities: (n,) float64, summed over the classes of the taxon.
    """

    rank: str
    taxa: np.ndarray
    probabilities: np.ndarray


class Taxonomy:
    """Lineages of the classes.

    A taxon is its whole lineage down to its rank: two families may each have a genus of the same name.

    Args:
        classes: one row per class, in order, with a column of names for each rank that is known, null where a class has
            no taxon of that rank. Other columns are not looked at.
    """

    def __init__(self, classes: pa.Table):
        named = [rank for rank in RANKS if rank in classes.column_names]
        self.ranks: Sequence[str] = [rank for rank in named if classes[rank].null_count < classes.num_rows]
        self._of_class: dict[str, np.ndarray] = {}
        self._lineage: dict[str, np.ndarray] = {}
        self._names: dict[str, np.ndarray] = {}
        lineages: list[tuple[str | None, ...]] = [()] * classes.num_rows
        for rank in self.ranks:
            own = classes[rank].to_pylist()
            lineages = [(*above, name) for above, name in zip(lineages, own, strict=True)]
            known = {each: at for at, each in enumerate(dict.fromkeys(each for each in lineages if each[-1]))}
            self._of_class[rank] = np.array([known.get(each, -1) for each in lineages], np.int64)
            self._names[rank] = np.array([*(each[-1] for each in known), None], object)
            numbers = {each: at for at, each in enumerate(dict.fromkeys(lineages))}
            self._lineage[rank] = np.array([numbers[each] for each in lineages], np.int64)
        # In this order the classes of any taxon stand side by side
        keys = [self._lineage[rank] for rank in reversed(self.ranks)]
        self._order = np.lexsort(keys) if keys else np.arange(classes.num_rows)

    def names(self, rolled: Rolled) -> np.ndarray:
        """(n,) names of the taxa of `rolled`, None where there is none."""
        found: np.ndarray = self._names[rolled.rank][rolled.taxa]  # -1 is the last one
        return found

    def of_some(self, indices: np.ndarray, probabilities: np.ndarray) -> Iterator[Rolled]:
        """Roll up the likeliest classes of each image, rank by rank from the highest down.

        What the other classes would add is missing, so these sums are lower bounds.

        Args:
            indices: (n, k) numbers of classes. probabilities: (n, k).
        """
        rows = np.arange(len(indices))
        values = probabilities.astype(np.float64)
        for rank in self.ranks:
            taxa = self._of_class[rank][indices]
            # The classes of one image and taxon have one place; pairs of classes would grow with the square of k
            _, place = np.unique(rows[:, None] * len(self._names[rank]) + taxa + 1, return_inverse=True)
            place = place.reshape(taxa.shape)
            sums = np.where(taxa >= 0, np.bincount(place.ravel(), values.ravel())[place], -1.0)
            best = sums.argmax(axis=1)
            yield _rolled(rank, taxa[rows, best], sums[rows, best])

    def of_all(self, probabilities: np.ndarray) -> Iterator[Rolled]:
        """As `of_some`, from the (n, classes) probabilities of all classes, exactly."""
        rows = np.arange(len(probabilities))
        sums = probabilities[:, self._order].astype(np.float64)  # of the groups of the rank below
        first = self._order  # a class of each of them
        levels = []
        for rank in reversed(self.ranks):
            lineage = self._lineage[rank][first]
            starts = np.flatnonzero(np.diff(lineage, prepend=-1))
            sums, first = np.add.reduceat(sums, starts, axis=1), first[starts]
            taxa = self._of_class[rank][first]
            best = np.where(taxa >= 0, sums, -1.0).argmax(axis=1)
            levels.append(_rolled(rank, taxa[best], np.where(taxa[best] >= 0, sums[rows, best], -1.0)))
        yield from reversed(levels)


def _rolled(rank: str, taxa: np.ndarray, sums: np.ndarray) -> Rolled:
    return Rolled(rank, np.where(sums < 0, -1, taxa), np.maximum(sums, 0.0))


def lowest(levels: Sequence[Rolled], confidence: float) -> np.ndarray:
    """(n,) position in `levels` of the lowest rank whose likeliest taxon reaches `confidence`, -1 where none does."""
    found = np.full(len(levels[0].taxa), -1)
    for at, level in enumerate(levels):
        # As what is stored: of float32, 0.65 is a little less than 0.65
        found[(level.taxa >= 0) & (level.probabilities.astype(np.float32) >= np.float32(confidence))] = at
    return found

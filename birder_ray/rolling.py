"""The rows of `rollup`, made from those of `predictions`."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from birder_ray.checklist import Checklist
from birder_ray.schema import KEY_FIELDS
from birder_ray.taxonomy import Taxonomy, lowest

KEYS = [field.name for field in KEY_FIELDS]

_AT_ONCE = 256
"""Rows whose logits are unpacked at once: 20 MB, of 10,000 classes."""

_STORED = 4_000_000
"""Stored classes looked at at once, to see which are of one taxon."""


class Rows:
    """Makes the rows of `rollup` from those of `predictions`."""

    def __init__(
        self,
        taxonomy: Taxonomy,
        class_names: list[str],
        confidence: float,
        common: np.ndarray | None,
        checklist: Checklist | None,
    ):
        self.taxonomy = taxonomy
        self.class_names = np.array([*class_names, None], object)
        self.confidence = confidence
        self.common = common
        self.checklist = checklist

    def of(self, predictions: pa.Table, where: pa.Table | None = None) -> pa.Table:
        """The rows of a part; `where`: a row for each, where and when it was taken."""
        width = len(predictions["top_indices"][0])
        step = _AT_ONCE if "logits" in predictions.column_names else max(1, _STORED // width)
        if where is not None and self.checklist:
            step = min(step, self.checklist.at_once)
        return pa.concat_tables(
            self._of(predictions.slice(at, step), where.slice(at, step) if where is not None else None)
            for at in range(0, len(predictions), step)
        )

    def _of(self, predictions: pa.Table, where: pa.Table | None) -> pa.Table:
        indices = _matrix(predictions["top_indices"])
        top = _matrix(predictions["top_probabilities"])
        every = _softmax(_matrix(predictions["logits"])) if "logits" in predictions.column_names else None
        levels = list(self.taxonomy.of_some(indices, top) if every is None else self.taxonomy.of_all(every))
        columns = {name: predictions[name] for name in KEYS}
        at = lowest(levels, self.confidence)
        ranks = np.array([*self.taxonomy.ranks, None], object)
        taxa = np.stack([*(self.taxonomy.names(level) for level in levels), np.full(len(at), None)])
        sums = np.stack([*(level.probabilities for level in levels), np.full(len(at), np.nan)])
        rows = np.arange(len(at))
        columns["rollup_rank"] = pa.array(ranks[at], pa.string())
        columns["rollup_taxon"] = pa.array(taxa[at, rows], pa.string())
        columns["rollup_probability"] = _floats(sums[at, rows])
        if self.common is not None:
            columns["common_name"] = pa.array(self.common[indices[:, 0]], pa.string())
        if self.checklist:
            columns |= self._checked(indices, top, every, *self.checklist.of(where, len(at)))
        for level, names in zip(levels, taxa, strict=False):
            columns[level.rank] = pa.array(names, pa.string())
            columns[f"{level.rank}_probability"] = _floats(level.probabilities)
        return pa.table(columns)

    def _checked(
        self, indices: np.ndarray, top: np.ndarray, every: np.ndarray | None, allowed: np.ndarray, group: np.ndarray
    ) -> Iterator[tuple[str, pa.Array]]:
        """The likeliest class of the checklist, and its share of what the checklist has of the probability."""
        rows = np.arange(len(indices))
        if every is not None:
            kept = np.where(allowed[group], every, 0.0)
            best, mass = kept.argmax(axis=1), kept.sum(axis=1)
            ceiling, value = mass, kept[rows, best]
        else:
            kept = np.where(allowed[group[:, None], indices], top.astype(np.float64), 0.0)
            best, mass = indices[rows, kept.argmax(axis=1)], kept.sum(axis=1)
            # All that is not stored may be of the checklist, too
            ceiling, value = mass + np.maximum(1.0 - top.sum(axis=1, dtype=np.float64), 0.0), kept.max(axis=1)
        found = value > 0
        share = np.divide(value, ceiling, out=np.full(len(rows), np.nan), where=found)
        yield "checklist_prediction", pa.array(self.class_names[np.where(found, best, -1)], pa.string())
        yield "checklist_probability", _floats(share)
        yield "checklist_mass", _floats(mass)


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """(n, k) of a column of lists of equal length."""
    values = pc.list_flatten(column).combine_chunks().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1)


def _softmax(logits: np.ndarray) -> np.ndarray:
    grown = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: np.ndarray = grown / grown.sum(axis=1, keepdims=True)
    return shares


def _floats(values: np.ndarray) -> pa.Array:
    # A sum of rounded probabilities may be a little more than 1, which none is
    return pa.array(np.minimum(values, 1.0).astype(np.float32), from_pandas=True)

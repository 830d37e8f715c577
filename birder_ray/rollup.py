"""`rollup`: how far up the taxonomy each prediction is certain, beside what a regional checklist leaves of it.

Written to `rollup/`, one part per unit of `predictions`, in its order. A part has the name of its unit and replaces any
that stood there; `rollup/_about.json` goes first and comes last, so where it stands, the parts are all of its making.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from birder_ray.classes import RANKS
from birder_ray.commit import Ledger
from birder_ray.errors import ConfigError
from birder_ray.folder import to_json
from birder_ray.lineages import allowed_classes, common_names, lineages
from birder_ray.parts import encode
from birder_ray.record import Record
from birder_ray.schema import KEY_FIELDS, PREDICTIONS
from birder_ray.scores import Scores
from birder_ray.taxonomy import Taxonomy, lowest

ROLLUP, ABOUT = "rollup", "rollup/_about.json"
_AT_ONCE = 256
"""Rows whose logits are unpacked at once: 20 MB, of 10,000 classes."""

_PRODUCTS = 4_000_000
"""Pairs of stored classes compared at once, to see which are of one taxon."""
_KEYS = [field.name for field in KEY_FIELDS]


@dataclass(frozen=True)
class RolledUp:
    """What was made.

    Args:
        finished: whether the run had come to its end. confidence: that a taxon had to reach.
        exact: from all classes' probabilities; else from the stored top ones, and every probability is a lower bound.
        rows: images. ranks: images by the lowest rank that was certain enough, "none" where none was.
        without_taxon: classes of which no taxon is known. checklist: classes on it. not_classes: its names that are no
            taxon of the model.
    """

    recipe: str
    finished: bool
    confidence: float
    exact: bool
    rows: int
    ranks: Mapping[str, int]
    without_taxon: int
    checklist: int | None = None
    not_classes: tuple[str, ...] = ()


def rollup(
    url: str,
    options: Mapping[str, Any] | None = None,
    *,
    confidence: float = 0.65,
    taxonomy: str | None = None,
    names: str | None = None,
    checklist: str | None = None,
) -> RolledUp:
    """Add `rollup/` to a destination: for each image, the likeliest taxon of every rank, and the lowest certain one.

    A taxon is as likely as its classes together. As SpeciesNet does it: where no species reaches `confidence`, the
    likeliest genus may, and so on up.

    Args:
        url: of the destination. options: fsspec options for it. confidence: from 0 to 1.
        taxonomy: CSV or Parquet file with `class_name` and a column per rank, where the names of the classes carry
            none. names: JSON file of common names by class index, as birder's inat21-mapping.json.
        checklist: file of the taxa that occur where the photos are from, one a line, or a CSV file's first column.

    Raises:
        ConfigError: there is no taxonomy, a file is missing or is not what it should be, or the destination is damaged.
    """
    if not 0 < confidence <= 1:
        raise ConfigError(f"--confidence {confidence:g}: give a probability above 0, up to 1")
    scores = Scores(url, options)
    scores.needs(PREDICTIONS)
    classes = lineages(scores.classes, taxonomy)
    common = common_names(names, classes.num_rows) if names else None
    allowed, unknown = allowed_classes(checklist, classes) if checklist else (None, ())
    stored = scores.recipe.facts["tables"][PREDICTIONS]
    # With test-time augmentation the probabilities are a mean over views, which no mean of logits gives back
    exact = bool(stored["logits"] and not stored.get("tta"))
    table = _Table(Taxonomy(classes), classes["class_name"].to_pylist(), confidence, common, allowed)
    ledger, ranks, written = Ledger(scores.folder), Counter[str](), set[str]()
    scores.delete(ABOUT)
    columns = {PREDICTIONS: [*_KEYS, "top_indices", "top_probabilities", *(["logits"] if exact else [])]}
    for record, (predictions,) in scores.recorded(columns):
        made = table.of(predictions)
        ranks.update(name or "none" for name in made["rollup_rank"].to_pylist())
        scores.write(f"{ROLLUP}/{record.unit}.parquet", encode(made, _metadata(record)))
        written.add(record.unit)
    for unit in ledger.parts(ROLLUP) - written:
        scores.delete(f"{ROLLUP}/{unit}.parquet")
    size = None if allowed is None else int(allowed.sum())
    counts = dict(ranks.most_common())
    done = RolledUp(
        scores.recipe.key, scores.finished, confidence, exact, ranks.total(), counts, _without(classes), size, unknown
    )
    scores.write(ABOUT, to_json(asdict(done)))
    return done


def _without(classes: pa.Table) -> int:
    known = [classes[rank].is_valid().to_numpy() for rank in RANKS if rank in classes.column_names]
    return int((~np.any(known, axis=0)).sum())


def _metadata(record: Record) -> dict[str, str]:
    return {"birder_ray.unit": record.unit, "birder_ray.predictions": record.parts[PREDICTIONS].sha256}


class _Table:
    """Makes the rows of `rollup` from those of `predictions`."""

    def __init__(
        self,
        taxonomy: Taxonomy,
        class_names: list[str],
        confidence: float,
        common: np.ndarray | None,
        allowed: np.ndarray | None,
    ):
        self.taxonomy = taxonomy
        self.class_names = np.array([*class_names, None], object)
        self.confidence = confidence
        self.common = common
        self.allowed = allowed

    def of(self, predictions: pa.Table) -> pa.Table:
        width = len(predictions["top_indices"][0])
        step = _AT_ONCE if "logits" in predictions.column_names else max(1, _PRODUCTS // width**2)
        return pa.concat_tables(self._of(predictions.slice(at, step)) for at in range(0, len(predictions), step))

    def _of(self, predictions: pa.Table) -> pa.Table:
        indices = _matrix(predictions["top_indices"])
        top = _matrix(predictions["top_probabilities"])
        every = _softmax(_matrix(predictions["logits"])) if "logits" in predictions.column_names else None
        levels = list(self.taxonomy.of_some(indices, top) if every is None else self.taxonomy.of_all(every))
        columns = {name: predictions[name] for name in _KEYS}
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
        if self.allowed is not None:
            columns |= self._checked(indices, top, every)
        for level, names in zip(levels, taxa, strict=False):
            columns[level.rank] = pa.array(names, pa.string())
            columns[f"{level.rank}_probability"] = _floats(level.probabilities)
        return pa.table(columns)

    def _checked(
        self, indices: np.ndarray, top: np.ndarray, every: np.ndarray | None
    ) -> Iterator[tuple[str, pa.Array]]:
        """The likeliest class of the checklist, and its share of what the checklist has of the probability."""
        assert self.allowed is not None
        rows = np.arange(len(indices))
        if every is not None:
            kept = np.where(self.allowed, every, 0.0)
            best, mass = kept.argmax(axis=1), kept.sum(axis=1)
            ceiling, value = mass, kept[rows, best]
        else:
            kept = np.where(self.allowed[indices], top.astype(np.float64), 0.0)
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
    return pa.array(values.astype(np.float32), from_pandas=True)

"""What a report tells of a destination, gathered in one pass over each of its tables.

Memory: a few parts, one row per class, and the images and embeddings that are shown, however many rows there are.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from birder_ray.classes import short_names
from birder_ray.report.pace import Work, work
from birder_ray.report.vectors import Cloud, Levels, cloud, levels
from birder_ray.schema import EMBEDDINGS, ERRORS, FEATURES, PREDICTIONS
from birder_ray.scores import Scores

BINS = 50
EXAMPLES = 3
"""Quarantined samples shown of each cause."""
SUMMARY = "evaluation/summary.json"

_ROWS = 1 << 16
"""Rows worked on at once."""
_SHOWN = ("sample", "shard", "index", "prediction", "probability")


@dataclass(frozen=True)
class Image:
    """An image worth showing, and where it is."""

    sample: str
    shard: str
    index: int
    prediction: str
    probability: float


@dataclass(frozen=True)
class Histogram:
    """Counts in `BINS` bins of one width from 0 to `top`; what lies beyond is in the nearest."""

    top: float
    counts: np.ndarray

    @classmethod
    def empty(cls, top: float) -> "Histogram":
        return cls(top, np.zeros(BINS, np.int64))

    def add(self, values: pa.ChunkedArray) -> None:
        """Count `values`; one that is no number is not counted."""
        found, _ = np.histogram(np.clip(values.to_numpy(), 0, self.top), BINS, (0, self.top))
        self.counts[:] += found


@dataclass(frozen=True)
class Predicted:
    """What the predictions hold.

    Args:
        counts: images by predicted class, most first. classes: that the network knows. probabilities, entropies (nats).
        certain, unsure: images of the highest and lowest probability. best: the most certain of each top class.
    """

    counts: Mapping[str, int]
    classes: int
    probabilities: Histogram
    entropies: Histogram
    certain: Sequence[Image]
    unsure: Sequence[Image]
    best: Sequence[Image]

    @property
    def images(self) -> set[Image]:
        return {*self.certain, *self.unsure, *self.best}

    @property
    def effective(self) -> float:
        """Effective number of classes: e to the Shannon entropy of the counts (Hill number of order 1)."""
        shares = np.array([*self.counts.values()]) / max(1, sum(self.counts.values()))
        return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


@dataclass(frozen=True)
class Cause:
    """Samples that were quarantined at a step for one reason; `examples`: sample and message of the first ones."""

    step: str
    error_type: str
    count: int
    examples: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Facts:
    """All that is told.

    Args:
        short: how a class is called in a chart, where that is not its name.
        predicted, cloud, levels: None where the recipe has no such table. evaluation: what `evaluate` found, if run.
    """

    where: str
    manifest: Mapping[str, Any]
    finished: bool
    work: Work
    predicted: Predicted | None
    cloud: Cloud | None
    levels: Levels | None
    quarantine: Sequence[Cause]
    evaluation: Mapping[str, Any] | None
    short: Mapping[str, str]


def gather(scores: Scores, images: int, points: int) -> Facts:
    """Read all tables of a destination once.

    Args:
        images: at most so many are worth showing. points: embeddings on the map.

    Raises:
        ConfigError: a part, a commit record or classes.parquet is missing or damaged.
    """
    seen = predicted(scores, images) if PREDICTIONS in scores.tables else None
    return Facts(
        where=scores.where,
        manifest=scores.manifest,
        finished=scores.finished,
        work=work(scores),
        predicted=seen,
        cloud=cloud(scores, points) if EMBEDDINGS in scores.tables else None,
        levels=levels(scores) if FEATURES in scores.tables else None,
        quarantine=quarantine(scores),
        evaluation=_evaluation(scores),
        short=short_names(scores.class_names) if seen else {},
    )


def predicted(scores: Scores, images: int) -> Predicted:
    """Count the predictions, and choose images: a quarter of them certain, a quarter unsure, the others one a class."""
    counts: Counter[str] = Counter()
    known = len(scores.class_names)
    probabilities, entropies = Histogram.empty(1.0), Histogram.empty(math.log(max(2, known)))
    certain = unsure = best = None
    for rows in _batches(scores.stream(PREDICTIONS, [*_SHOWN, "entropy"])):
        rows = rows.filter(pc.and_(pc.is_valid(rows["prediction"]), pc.is_finite(rows["probability"])))
        for item in rows["prediction"].value_counts().to_pylist():
            counts[item["values"]] += item["counts"]
        probabilities.add(rows["probability"])
        entropies.add(rows["entropy"])
        rows = rows.select(_SHOWN)
        certain = _extreme(_joined(certain, rows), images // 4, "descending")
        unsure = _extreme(_joined(unsure, rows), images // 4, "ascending")
        best = _best_of_each(_joined(best, rows))
    ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    top = {name: rank for rank, name in enumerate([*ordered][: images - 2 * (images // 4)])}
    each = sorted((i for i in _images(best) if i.prediction in top), key=lambda i: top[i.prediction])
    return Predicted(ordered, known, probabilities, entropies, _images(certain), _images(unsure), each)


def quarantine(scores: Scores) -> list[Cause]:
    """Causes, the most frequent first."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for rows in scores.stream(ERRORS, ["sample", "step", "error_type", "message"]):
        for row in rows.to_pylist():
            cause = row["step"], row["error_type"]
            counts[cause] += 1
            if len(examples.setdefault(cause, [])) < EXAMPLES:
                examples[cause].append((row["sample"], row["message"]))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [Cause(*cause, count, examples[cause]) for cause, count in ordered]


def _batches(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows of `tables`, many at a time."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(each.num_rows for each in held) >= _ROWS:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _joined(held: pa.Table | None, rows: pa.Table) -> pa.Table:
    return rows if held is None else pa.concat_tables([held, rows])


def _extreme(rows: pa.Table, count: int, order: str) -> pa.Table:
    """The `count` rows of the highest (descending) or lowest probability; of equal ones, the first by sample."""
    keys = [("probability", order), ("sample", "ascending")]
    return rows.take(pc.select_k_unstable(rows, min(count, rows.num_rows), keys)) if count else rows.slice(0, 0)


def _best_of_each(rows: pa.Table) -> pa.Table:
    """The row of the highest probability of each class; of equal ones, the first by sample."""
    rows = rows.sort_by([("probability", "descending"), ("sample", "ascending")])
    numbered = rows.select(["prediction"]).append_column("row", pa.array(np.arange(rows.num_rows)))
    return rows.take(numbered.group_by("prediction").aggregate([("row", "min")])["row_min"])


def _images(rows: pa.Table | None) -> list[Image]:
    return [] if rows is None else [Image(**row) for row in rows.to_pylist()]


def _evaluation(scores: Scores) -> Mapping[str, Any] | None:
    try:
        found = scores.folder.read_json(SUMMARY)
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None

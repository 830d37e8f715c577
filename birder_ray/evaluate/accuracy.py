"""From counts to metrics: every number, and its interval, follows from a few tables of counts, however many the rows.

The intervals are of the bootstrap over images: counts are drawn again from a multinomial distribution, which is the
same as drawing images with replacement and counting them. Only the confidence within a bin is then its mean.
"""

from dataclasses import dataclass, field

import numpy as np

STEPS = 1000
"""Thresholds of the coverage-accuracy curve: 0, 1/1000, ..."""

_UNIT = 2**40
"""Confidence is summed in whole units of this fraction: in any order of rows, the sum is the same."""

_COMPACT_ABOVE = 65_536


@dataclass(frozen=True)
class Scalar:
    """A metric, and the bounds of its 95 % interval; None where there was no bootstrap."""

    value: float
    low: float | None = None
    high: float | None = None


class Confusions:
    """Counts of (label, prediction), kept sparse: as many numbers as there are pairs that occur."""

    def __init__(self, classes: int):
        self.classes = classes
        self._keys, self._counts = np.empty(0, np.int64), np.empty(0, np.int64)
        self._pending: list[np.ndarray] = []
        self._waiting = 0

    def add(self, labels: np.ndarray, predictions: np.ndarray) -> None:
        self._pending.append(labels.astype(np.int64) * self.classes + predictions)
        self._waiting += len(labels)
        if self._waiting >= max(_COMPACT_ABOVE, len(self._keys)):
            self._compact()

    def _compact(self) -> None:
        new, counts = np.unique(np.concatenate([np.empty(0, np.int64), *self._pending]), return_counts=True)
        keys, at = np.unique(np.concatenate([self._keys, new]), return_inverse=True)
        sums = np.zeros(len(keys), np.int64)
        np.add.at(sums, at, np.concatenate([self._counts, counts]))
        self._keys, self._counts, self._pending, self._waiting = keys, sums, [], 0

    def cells(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, predictions and counts of the pairs that occur, each (pairs,), by label and prediction."""
        self._compact()
        return self._keys // self.classes, self._keys % self.classes, self._counts


@dataclass
class Counts:
    """What is counted of rows that have a label.

    Args:
        classes: of the model. bins: of the calibration. k: classes stored for each image, 5 at most.

    Attributes:
        confusions: images by label and prediction. hits: (classes,) images by label whose label is among the top k.
        binned, summed: (2, bins) images by whether the top class is right and by bin, and their sum of confidence.
        stepped: (2, STEPS) images by whether the top class is right and by the highest threshold they reach.
    """

    classes: int
    bins: int
    k: int = 0
    confusions: Confusions = field(init=False)

    def __post_init__(self) -> None:
        self.confusions = Confusions(self.classes)
        self.hits = np.zeros(self.classes, np.int64)
        self.binned = np.zeros((2, self.bins), np.int64)
        self._units = np.zeros((2, self.bins), object)  # Python's integers, which do not overflow
        self.stepped = np.zeros((2, STEPS), np.int64)

    def add(self, labels: np.ndarray, top: np.ndarray, confidence: np.ndarray) -> None:
        """Count images.

        Args:
            labels: (n,) indices of classes. top: (n, k) indices, likeliest first. confidence: (n,) of the likeliest.
        """
        self.k = min(5, top.shape[1])
        self.confusions.add(labels, top[:, 0])
        self.hits += np.bincount(labels[(top[:, : self.k] == labels[:, None]).any(axis=1)], minlength=self.classes)
        right, sure = (top[:, 0] == labels).astype(np.int64), confidence.astype(np.float64)
        bins = _cell(sure, self.bins)
        np.add.at(self.binned, (right, bins), 1)
        units = np.zeros((2, self.bins), np.int64)
        np.add.at(units, (right, bins), np.rint(sure * _UNIT).astype(np.int64))
        self._units += units.astype(object)
        np.add.at(self.stepped, (right, _cell(sure, STEPS)), 1)

    @property
    def summed(self) -> np.ndarray:
        return (self._units / _UNIT).astype(np.float64)


def _cell(confidence: np.ndarray, cells: int) -> np.ndarray:
    """Which of `cells` equal parts of 0 to 1 each is in: lower bounds belong to a part, and 1 to the last."""
    # As what is stored: of float32, 0.9 is a little less than 0.9
    edges = np.linspace(0.0, 1.0, cells + 1).astype(np.float32)
    return np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, cells - 1)


def by_class(cells: tuple[np.ndarray, np.ndarray, np.ndarray], classes: int) -> tuple[np.ndarray, ...]:
    """Right, labelled and predicted images by class, each (classes,), of `Confusions.cells`."""
    labels, predictions, counts = cells
    same = labels == predictions
    return tuple(
        np.bincount(at, weights=weights, minlength=classes).astype(np.int64)
        for at, weights in ((labels[same], counts[same]), (labels, counts), (predictions, counts))
    )


def class_metrics(right: np.ndarray, labelled: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Of all classes together: F1 over classes with a label or a prediction, recall over those with a label."""
    total, either, known = labelled.sum(), labelled + predicted > 0, labelled > 0
    return {
        "top1": float(right.sum() / total),
        "macro_f1": float(np.mean(2 * right[either] / (labelled + predicted)[either])),
        "micro_f1": float(2 * right.sum() / (labelled.sum() + predicted.sum())),
        "balanced_accuracy": float(np.mean(right[known] / labelled[known])),
    }


def ece(binned: np.ndarray, summed: np.ndarray) -> float:
    """Expected calibration error: |right - confidence| of each bin, weighted by its images. Both (2, bins)."""
    return float(np.abs(binned[1] - summed.sum(axis=0)).sum() / binned.sum())


def coverage(stepped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images that reach each threshold, and those of them that are right, each (STEPS,)."""
    kept = np.cumsum(stepped[:, ::-1], axis=1)[:, ::-1]
    return kept.sum(axis=0), kept[1]


def aurc(stepped: np.ndarray) -> float:
    """Area under the risk-coverage curve: the share of errors among what is kept, averaged over all images, each at
    the highest threshold it reaches."""
    kept, right = coverage(stepped)
    risk = 1 - np.divide(right, kept, out=np.ones(STEPS), where=kept > 0)
    return float((stepped.sum(axis=0) * risk).sum() / stepped.sum())


def scalars(counts: Counts, replicates: int, seed: int) -> dict[str, Scalar]:
    """Every metric of the whole, with the 95 % percentile interval of `replicates` bootstrap samples."""
    cells = counts.confusions.cells()
    total, hits = int(cells[2].sum()), int(counts.hits.sum())
    top = f"top{counts.k}"
    found = class_metrics(*by_class(cells, counts.classes))
    if counts.k > 1:
        found[top] = hits / total
    found |= {"ece": ece(counts.binned, counts.summed), "aurc": aurc(counts.stepped)}
    if not replicates:
        return {name: Scalar(value) for name, value in found.items()}
    dice = np.random.default_rng(seed)
    means = np.divide(counts.summed, counts.binned, out=np.zeros_like(counts.summed), where=counts.binned > 0)
    drawn: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(replicates):
        again = class_metrics(*by_class((*cells[:2], _draw(dice, total, cells[2])), counts.classes))
        if counts.k > 1:
            again[top] = dice.binomial(total, hits / total) / total
        binned = _draw(dice, total, counts.binned)
        again |= {"ece": ece(binned, binned * means), "aurc": aurc(_draw(dice, total, counts.stepped))}
        for name, value in again.items():
            drawn[name].append(value)
    bounds = {name: np.quantile(values, (0.025, 0.975)) for name, values in drawn.items()}
    return {name: Scalar(value, *map(float, bounds[name])) for name, value in found.items()}


def _draw(dice: np.random.Generator, total: int, counts: np.ndarray) -> np.ndarray:
    """Counts of `total` images drawn with replacement from those that were counted; cells without any stay so."""
    flat = counts.reshape(-1)
    some = flat > 0
    drawn = np.zeros(len(flat), np.int64)
    drawn[some] = dice.multinomial(total, flat[some] / total)
    return drawn.reshape(counts.shape)

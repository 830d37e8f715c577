"""The vectors of a destination: a map of some embeddings, and what the channels of each feature level do."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from birder_ray.check import hashes_of
from birder_ray.schema import EMBEDDINGS, FEATURES, KEY_FIELDS, PREDICTIONS
from birder_ray.scores import Scores

_STILL = 1e-6
"""A channel whose standard deviation is below this fraction of its mean is the same in every image."""


@dataclass(frozen=True)
class Cloud:
    """A map of embeddings: their first two principal components.

    Args:
        total: embeddings there are. samples, predictions, probabilities: of those on the map; the latter two empty
            where the recipe has no predictions. places: N,2, scaled to -1..1.
        explained: share of the variance by axis; empty where there were too few embeddings for a map.
    """

    total: int
    samples: Sequence[str]
    predictions: Sequence[str]
    probabilities: Sequence[float]
    places: np.ndarray
    explained: Sequence[float]


@dataclass(frozen=True)
class Level:
    """One column of the features: numbers over all its channels and images.

    Args:
        mean: of all values. apart: standard deviation between the means of the channels.
        within: root of the mean variance of a channel between images. still: channels that are the same everywhere.
    """

    level: str
    pooling: str
    channels: int
    mean: float
    apart: float
    within: float
    still: int


@dataclass(frozen=True)
class Levels:
    """All levels, of so many images."""

    total: int
    each: Sequence[Level]


def cloud(scores: Scores, most: int) -> Cloud:
    """Map at most `most` embeddings, chosen by a hash of their sample: the same ones whatever the order of the rows."""
    told = ["prediction", "probability"] if PREDICTIONS in scores.tables else []
    columns = {EMBEDDINGS: ["sample", "embedding"], **({PREDICTIONS: told} if told else {})}
    held, total, limit = None, 0, np.uint64(2**64 - 1)
    for vectors, *others in scores.aligned(columns):
        total += vectors.num_rows
        hashes = hashes_of(vectors["sample"].to_numpy(zero_copy_only=False))
        rows = vectors.append_column("hash", pa.array(hashes))
        for name in told:
            rows = rows.append_column(name, others[0][name])
        if not (few := hashes <= limit).any():
            continue
        rows = rows.filter(pa.array(few))
        rows = rows if held is None else pa.concat_tables([held, rows])
        held = rows.take(pc.select_k_unstable(rows, min(most, rows.num_rows), [("hash", "ascending")]))
        if held.num_rows == most:
            limit = held["hash"][-1].as_py()
    if held is None:
        return Cloud(0, [], [], [], np.zeros((0, 2)), [])
    values = _matrix(held["embedding"])
    finite = np.isfinite(values).all(axis=1)
    held, values = held.filter(pa.array(finite)), values[finite]
    places, explained = _projected(values)
    predictions, probabilities = (held[name].to_pylist() for name in told) if told else ([], [])
    return Cloud(total, held["sample"].to_pylist(), predictions, probabilities, places, explained)


class _Running:
    """Mean and variance of each of some channels, of the values that are finite (Chan, Golub and LeVeque 1979)."""

    def __init__(self, channels: int):
        self.counts, self.means, self._squares = (np.zeros(channels) for _ in range(3))

    def add(self, values: np.ndarray) -> None:
        """N,channels more."""
        finite = np.isfinite(values)
        counts = finite.sum(axis=0)
        means = np.where(finite, values, 0.0).sum(axis=0) / np.maximum(counts, 1)
        squares = (np.where(finite, values - means, 0.0) ** 2).sum(axis=0)
        total, apart = np.maximum(self.counts + counts, 1), means - self.means
        self._squares += squares + apart**2 * self.counts * counts / total
        self.means = self.means + apart * counts / total
        self.counts = self.counts + counts

    @property
    def variances(self) -> np.ndarray:
        return self._squares / np.maximum(self.counts, 1)


def levels(scores: Scores) -> Levels:
    """What the channels of each level do, in one pass. Values that are not finite are left out, and so are channels
    without any other. Memory: a few parts, and three numbers per channel."""
    running: dict[str, _Running] = {}
    images = 0
    for rows in scores.stream(FEATURES):
        images += rows.num_rows
        for name in rows.column_names[len(KEY_FIELDS) :]:
            values = _matrix(rows[name])
            running.setdefault(name, _Running(values.shape[1])).add(values)
    return Levels(images, [_level(name, found) for name, found in running.items() if found.counts.any()])


def _level(name: str, found: _Running) -> Level:
    level, _, pooling = name.rpartition("_")
    known = found.counts > 0
    means, variances = found.means[known], found.variances[known]
    still = np.sqrt(variances) <= _STILL * np.abs(means)
    within = float(np.sqrt(variances.mean()))
    return Level(level, pooling, len(known), float(means.mean()), float(means.std()), within, int(still.sum()))


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """N,channels of a column of vectors, float64."""
    flat = pa.concat_arrays([chunk.flatten() for chunk in column.chunks]).to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float64).reshape(len(column), -1)


def _projected(values: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """The first two principal components, and their shares of the variance."""
    from sklearn.decomposition import PCA

    if min(values.shape) < 2 or np.ptp(values, axis=0).max() == 0:
        return np.zeros((len(values), 2)), []
    fitted = PCA(2, random_state=0)
    places = fitted.fit_transform(values)
    # Rounded: the last digits depend on the processor
    return np.round(places / np.abs(places).max(), 4), [
        round(float(share), 4) for share in fitted.explained_variance_ratio_
    ]

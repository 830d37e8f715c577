"""`similar`: the images of a destination that are nearest to one of them, or to any other image."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from birder_ray.chunk import Sample
from birder_ray.errors import ConfigError, printable
from birder_ray.neighbours.index import opened
from birder_ray.neighbours.rows import Rows
from birder_ray.neighbours.vectors import directions, have_direction
from birder_ray.schema import EMBEDDINGS, PREDICTIONS
from birder_ray.scores import Scores
from birder_ray.storage import filesystem, read_whole, redact


@dataclass(frozen=True)
class Neighbour:
    """An image that is near. `prediction` and `probability` are None where the recipe has no predictions."""

    rank: int
    cosine: float
    sample: str
    prediction: str | None
    probability: float | None


@dataclass(frozen=True)
class Similar:
    """What is near to a query.

    Args:
        query: what was asked for. sample: whether that is one of the destination. exact: whether all were looked at.
        without_direction: embeddings that are near to nothing, as they are zero or not finite.
    """

    query: str
    sample: bool
    exact: bool
    images: int
    without_direction: int
    neighbours: tuple[Neighbour, ...]
    notes: tuple[str, ...]

    def told(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)


def similar(
    url: str,
    query: str,
    options: Mapping[str, Any] | None = None,
    source_options: Mapping[str, Any] | None = None,
    *,
    k: int = 10,
    model: str | None = None,
) -> Similar:
    """Find the images whose embeddings have the highest cosine with that of `query`.

    Args:
        url: of the destination. options: fsspec options for it.
        query: a sample of it, which is not among what is found; or else an image, which the network of the run scores.
        source_options: fsspec options of the source, which are used for an image, too.
        k: how many. model: where the network's weights are now; None: where they were.

    Raises:
        ConfigError: no run has begun there, it has no embeddings, `query` is neither a sample nor an image, the weights
            are not here, a part is damaged, or a package is missing.
    """
    scores = Scores(url, options)
    rows = Rows(scores, EMBEDDINGS)
    index = opened(rows)
    own = rows.find(query)
    if own is None:
        vector = _scored(scores, query, source_options, model)
    else:
        vector = directions(rows.take(np.array([own]), ["embedding"])["embedding"])
    if not have_direction(vector)[0]:
        raise ConfigError(f"{redact(query)}: its embedding is zero or not finite, and so near to nothing")
    found = index.search(vector[0], 4 * k + 64)
    found = found[found != own] if own is not None else found
    nearest = _ranked(rows, found, vector[0], k)
    notes = [] if index.kept is None else [f"the index is not kept: {index.kept}"]
    if not scores.finished:
        notes.append("the run is unfinished: looked at is what is committed by now")
    return Similar(
        redact(query), own is not None, index.flat, len(rows), index.without_direction, nearest, tuple(notes)
    )


def _ranked(rows: Rows, found: np.ndarray, vector: np.ndarray, k: int) -> tuple[Neighbour, ...]:
    """The nearest of `found`, by their stored embeddings."""
    held = rows.take(found, ["sample", "embedding"])
    if not len(found):
        return ()
    cosines = np.clip(directions(held["embedding"]).astype(np.float64) @ vector, -1, 1)
    samples = held["sample"].to_pylist()
    best = sorted(range(len(found)), key=lambda at: (-cosines[at], samples[at]))[:k]
    told = [(None, None)] * len(best)
    if rows.names == PREDICTIONS:
        those = rows.take(found[best], ["prediction", "probability"], PREDICTIONS)
        told = [(row["prediction"], round(row["probability"], 6)) for row in those.to_pylist()]
    return tuple(
        Neighbour(rank, round(float(cosines[at]), 6), samples[at], *prediction)
        for rank, (at, prediction) in enumerate(zip(best, told, strict=True), 1)
    )


def _scored(scores: Scores, query: str, source_options: Mapping[str, Any] | None, model: str | None) -> np.ndarray:
    """The direction of an image, 1,D, scored as the run did."""
    from birder_ray.rescorer import Rescorer

    try:
        data = read_whole(*filesystem(query, source_options))
    except Exception as error:  # every filesystem has exceptions of its own
        raise ConfigError(
            f"{redact(query)}: no sample of {scores.where}, and no image that can be read "
            f"({type(error).__name__}: {error}); give a sample as the tables have it, or a path or URL"
        ) from None
    score = Rescorer(scores.manifest, source_options, model)
    chunk = score("query", [Sample(query, 0, None, query)], [data])
    if chunk.errors:
        (failed,) = chunk.errors
        raise ConfigError(f"{redact(query)}: cannot be scored: {failed.error_type}: {failed.message}")
    return directions(pa.ipc.open_stream((chunk.tables or {})[EMBEDDINGS]).read_all()["embedding"])


def lines(found: Similar) -> Iterator[str]:
    """What was found, in words: rank, cosine, sample, prediction and its probability."""
    for each in found.neighbours:
        what = "" if each.prediction is None else f"  {each.prediction} {each.probability:.1%}"
        yield printable(f"{each.rank:4}  {each.cosine:.4f}  {each.sample}{what}")
    if found.without_direction:
        yield f"note  {found.without_direction:,} embeddings are zero or not finite, and near to nothing"
    for note in found.notes:
        yield printable(f"note  {note}")

"""How the work went: sums, and images per second over time, from the commit records alone."""

import math
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from birder_ray.commit import Ledger
from birder_ray.runs import RUNS
from birder_ray.scores import Scores
from birder_ray.totals import Totals

_BINS, _SHORTEST_S = 60, 5.0


@dataclass(frozen=True)
class Stretch:
    """One run's part of the work.

    Args:
        began, ended: ISO 8601, UTC; the beginning of its first unit's commit where the run left no record.
        offset: seconds of work of the runs before it. length: of its own. images: it read.
        times: middle of each bin, seconds of work. rates: images per second in each.
    """

    run: str
    began: str
    ended: str
    offset: float
    length: float
    images: int
    times: Sequence[float]
    rates: Sequence[float]


@dataclass(frozen=True)
class Work:
    """Sums over the commits, and the runs that made them, in order."""

    totals: Totals
    stretches: Sequence[Stretch]
    engines: Mapping[str, int]


def work(scores: Scores) -> Work:
    """Sum up the commits of a destination. Memory: 16 bytes per unit.

    Raises:
        ConfigError: a commit record is damaged.
    """
    totals, engines = Totals(), defaultdict[str, int](int)
    ends: dict[str, array[float]] = defaultdict(lambda: array("d"))
    images: dict[str, array[int]] = defaultdict(lambda: array("q"))
    for record in Ledger(scores.folder).records(scores.units):
        if record.recipe != scores.recipe.key:
            continue
        totals.add(record)
        for engine, rows in record.engines.items():
            engines[engine] += rows
        try:
            ends[record.run].append(datetime.fromisoformat(record.finished).timestamp())
        except ValueError:
            continue  # it says no time
        images[record.run].append(record.samples)
    began = {run: min(_began(scores, run), np.min(times)) for run, times in ends.items()}
    lengths = {run: max(_SHORTEST_S, max(times) - began[run]) for run, times in ends.items()}
    width = max(_SHORTEST_S, sum(lengths.values()) / _BINS)
    stretches, offset = [], 0.0
    for run in sorted(began, key=lambda run: (began[run], run)):
        bins = max(1, round(lengths[run] / width))
        edges = np.linspace(0.0, lengths[run], bins + 1)
        counted, _ = np.histogram(np.array(ends[run]) - began[run], edges, weights=np.array(images[run]))
        times = [round(offset + float(middle), 1) for middle in (edges[1:] + edges[:-1]) / 2]
        rates = [round(float(rate), 3) for rate in counted / np.diff(edges)]
        told = (_iso(began[run]), _iso(max(ends[run])))
        stretches.append(Stretch(run, *told, offset, lengths[run], sum(images[run]), times, rates))
        offset += lengths[run]
    return Work(totals, stretches, dict(sorted(engines.items())))


def _began(scores: Scores, run: str) -> float:
    """When `run` began, seconds since the epoch; without end where it left no record that says so."""
    try:
        return datetime.fromisoformat(scores.folder.read_json(f"{RUNS}/{run}.json")["started"]).timestamp()
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return math.inf


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

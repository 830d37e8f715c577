"""`verify --deep`: some images of a destination are scored once more, and what is stored compared with what comes out.

Reads the source and the model, so it needs torch; Ray it does not.
"""

import io
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import cycle, islice, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from birder_ray.chunk import Sample
from birder_ray.commit import Ledger
from birder_ray.errors import BirderRayError, ConfigError, SampleError
from birder_ray.folder import Folder
from birder_ray.manifest import begun, lacking_options
from birder_ray.parts import part_name
from birder_ray.record import Record
from birder_ray.rescorer import Rescorer
from birder_ray.schema import EMBEDDINGS
from birder_ray.source import list_shards, read_samples
from birder_ray.source.base import Shard

Row = dict[str, Any]
"""All columns of one image, by name."""

_PROBABILITIES = {"probability", "top_probabilities"}
_CLASSES = {"prediction", "top_indices", "top_classes"}
_PROBABILITY, _VALUE, _HALF, _LOW_PRECISION = 1e-5, 1e-4, 1e-3, 3e-2
"""Differences that are rounding: of probabilities and other float32 numbers; of vectors stored in float16, relative; of
anything computed in a low precision, where the order of additions tells."""


@dataclass
class Rescored:
    """What came of scoring some images again.

    Args:
        asked: images chosen. same: those whose numbers came out again.
        wrong: one line for each image whose stored numbers do not. skipped: one line for each reason why images could
        not be scored again.
    """

    asked: int = 0
    same: int = 0
    wrong: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def rescore(
    url: str,
    images: int,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    source_options: Mapping[str, Any] | None = None,
    model: str | None = None,
) -> Rescored:
    """Score a random sample of the images of a destination again, from as many units as there are.

    A tar is read from its start to the last image chosen in it.

    Args:
        images: how many. seed: of the choice. source_options: fsspec options of the source, which no manifest holds.
        model: where the weights are now; None: where they were.

    Raises:
        ConfigError: no run has begun there.
    """
    folder = Folder(url, dict(options or {}))
    manifest = begun(folder)
    chosen, result = _choose(Ledger(folder), manifest["recipe"]["key"], images, seed), Rescored()
    result.asked = sum(len(rows) for units in chosen.values() for rows in units.values())
    if not result.asked:
        return result
    try:
        scorer = _Scorer(Rescorer(manifest, source_options, model), manifest["recipe"]["facts"])
        shards = {shard.name: shard for shard in list_shards(scorer.source)}
    except BirderRayError as error:
        result.skipped.append(f"{result.asked} images: {error}{lacking_options(manifest, source_options)}")
        return result
    inputs = {each["name"]: each["fingerprint"] for each in manifest["inputs"]}
    for name, units in sorted(chosen.items()):
        shard, count = shards.get(name), sum(map(len, units.values()))
        if shard is None or shard.fingerprint != inputs.get(name):
            fate = "is not in the source any more" if shard is None else "changed since it was scored"
            result.skipped.append(f"{count} images of shard {name}, which {fate}")
            continue
        try:
            rows = (row for unit, at in units.items() for row in _stored(folder, scorer.score.tables, unit, at))
            scorer(shard, {row["index"]: row for row in rows}, result)
        except (BirderRayError, FileNotFoundError, pa.ArrowException) as error:
            result.skipped.append(f"{count} images of shard {name}: {error}")
    return result


def _choose(ledger: Ledger, recipe: str, images: int, seed: int) -> dict[str, dict[str, list[int]]]:
    """Rows by shard and unit, spread over as many units as there are."""
    dice, names = random.Random(seed), sorted(ledger.units())
    readable = (record for unit in dice.sample(names, len(names)) if (record := _record(ledger, unit)) is not None)
    records = list(islice((r for r in readable if r.recipe == recipe and r.rows), images))
    wanted, left = Counter[str](), min(images, sum(record.rows for record in records))
    for record in cycle(records):
        if not left:
            break
        if wanted[record.unit] < record.rows:
            wanted[record.unit] += 1
            left -= 1
    chosen: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for record in records:
        chosen[record.shard][record.unit] = sorted(dice.sample(range(record.rows), wanted[record.unit]))
    return chosen


def _record(ledger: Ledger, unit: str) -> Record | None:
    try:
        return ledger.read(unit)
    except ConfigError:
        return None  # verify tells


def _stored(folder: Folder, tables: Iterable[str], unit: str, rows: list[int]) -> list[Row]:
    """What the tables hold of some rows of a unit, by column."""
    found: list[Row] = [{} for _ in rows]
    for table in tables:
        part = pq.read_table(io.BytesIO(folder.read(part_name(table, unit))))
        for row, values in zip(found, part.take(rows).to_pylist(), strict=True):
            row.update(values)
    return found


class _Scorer:
    """Reads images, scores them and compares.

    Args:
        score: the network of the run. facts: of its recipe.
    """

    def __init__(self, score: Rescorer, facts: Mapping[str, Any]):
        self.score = score
        self.source = score.config.source
        compute = score.config.compute
        exact = compute.dtype == "float32" and not compute.amp and compute.decode_on == "cpu"
        self.compare = _Comparison(None if exact else _LOW_PRECISION, facts["tables"].get(EMBEDDINGS))

    def __call__(self, shard: Shard, stored: Mapping[int, Row], result: Rescored) -> None:
        """Score the images at these indices of a shard and add to `result` what comes of it."""
        left = dict(stored)
        samples: list[Sample] = []
        data: list[bytes] = []
        items = read_samples(shard, self.source, min(left), left.__contains__)
        for sample, content in items:
            row = left.pop(sample.index, None)
            if row is not None and isinstance(content, SampleError):
                result.skipped.append(f"1 image, {row['sample']}: {content.error_type}: {content}")
            elif row is not None and isinstance(content, bytes):
                samples.append(sample)
                data.append(content)
            if not left:
                break
        result.wrong += [f"{row['sample']}: not in its shard" for row in left.values()]
        chunk = self.score(shard.name, samples, data)
        result.wrong += [f"{each.sample}: {each.error_type} now: {each.message}" for each in chunk.errors]
        fresh: list[Row] = [{} for _ in chunk.samples]
        for table in (chunk.tables or {}).values():
            for row, values in zip(fresh, pa.ipc.open_stream(table).read_all().to_pylist(), strict=True):
                row.update(values)
        for row in fresh:
            differing = self.compare(row, stored[row["index"]])
            result.wrong += [f"{row['sample']}: {', '.join(differing)}"] if differing else []
            result.same += not differing


class _Comparison:
    """Compares rows by column.

    Args:
        low: tolerance of everything, where it was computed in a low precision. embeddings: the options of that table.
    """

    def __init__(self, low: float | None, embeddings: Mapping[str, Any] | None):
        self.low = low
        self.half = embeddings is not None and embeddings["dtype"] == "float16"

    def __call__(self, fresh: Row, stored: Row) -> list[str]:
        """What differs by more than rounding."""
        if fresh.keys() != stored.keys():
            return ["its columns are others now"]
        return [text for name in stored if (text := self._column(name, fresh, stored))]

    def _column(self, name: str, fresh: Row, stored: Row) -> str:
        one, other = fresh[name], stored[name]
        if name in _CLASSES:
            return "" if self._same_classes(one, other, stored) else f"{name} was {other}, is {one}"
        if isinstance(other, str | int | None):
            return "" if one == other else f"{name} was {other}, is {one}"
        new, old = np.atleast_1d(np.array(one, np.float64)), np.atleast_1d(np.array(other, np.float64))
        tolerance = self.low or (_PROBABILITY if name in _PROBABILITIES else _VALUE)
        if name == "embedding" and self.half:
            tolerance = max(tolerance, _HALF)
        relative = 0.0 if name in _PROBABILITIES else tolerance
        if new.shape == old.shape and np.allclose(new, old, rtol=relative, atol=tolerance):
            return ""
        by = np.abs(new - old).max() if new.shape == old.shape else f"{new.shape} and {old.shape}"
        return f"{name} differs by {by:.2g}" if isinstance(by, float) else f"{name} differs in shape: {by}"

    def _same_classes(self, one: Any, other: Any, stored: Row) -> bool:
        """Classes may change places where their probabilities are as good as equal, and at the end of the list, where
        the next probability is not known."""
        new, old = (value if isinstance(value, list) else [value] for value in (one, other))
        odds, near = stored["top_probabilities"], 2 * (self.low or _PROBABILITY)
        apart = [rank for rank in range(len(old)) if new[rank : rank + 1] != old[rank : rank + 1]]
        ties = [abs(a - b) <= near for a, b in pairwise(odds)]
        tied = [any(ties[max(0, rank - 1) : rank + 1]) or rank == len(odds) - 1 for rank in range(len(odds))]
        return len(new) == len(old) and all(tied[rank] for rank in apart)

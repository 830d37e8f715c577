"""`leakage`: images of a test set that a training set has, too, or as good as."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from birder_ray.errors import ConfigError, printable
from birder_ray.intervals import wilson
from birder_ray.manifest import difference
from birder_ray.neighbours.duplicates import BYTES, EMBEDDING, IMAGE, MAX_BITS, MIN_COSINE, WITHOUT_DIRECTION, images_of
from birder_ray.neighbours.matches import Matches, same_bytes, same_embedding, same_look
from birder_ray.neighbours.rows import Rows
from birder_ray.schema import EMBEDDINGS
from birder_ray.scores import Scores

SCHEMA = pa.schema(
    [pa.field(name, pa.string()) for name in ("kind", "sample", "train_sample")] + [pa.field("distance", pa.float32())]
)
_NOT_OF_THE_VECTORS = {"tables", "image_column", "id_column"}
_EXAMPLES = 5


@dataclass(frozen=True)
class Leaked:
    """Images of TEST with a counterpart in TRAIN, of one kind.

    Args:
        kind: bytes, image or embedding. limit: of the distance: 0; bits; 1 - cosine.
        count, total: of images of TEST that were looked at. rate: their share; None where none was.
        low, high: its 95 % Wilson score interval. train: images of TRAIN that were looked at.
        test_left_out, train_left_out: those that were not, by reason.
    """

    kind: str
    limit: float
    count: int
    total: int
    rate: float | None
    low: float | None
    high: float | None
    train: int
    test_left_out: Mapping[str, int]
    train_left_out: Mapping[str, int]


@dataclass(frozen=True)
class Leakage:
    """What was found. `table` has a row for each kind and image of TEST that has a counterpart, and its nearest one.
    `unfinished`: those of both whose run has not come to its end."""

    train: str
    test: str
    found: tuple[Leaked, ...]
    notes: tuple[str, ...]
    table: pa.Table
    unfinished: tuple[str, ...] = ()

    def told(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        return {"train": self.train, "test": self.test, "found": [asdict(each) for each in self.found],
                "notes": list(self.notes)}  # fmt: skip


def leakage(
    train: str,
    test: str,
    options: Mapping[str, Any] | None = None,
    source_options: Mapping[str, Any] | None = None,
    *,
    by: str = EMBEDDING,
    min_cosine: float = MIN_COSINE,
    max_bits: int = MAX_BITS,
) -> Leakage:
    """Look for the images of the destination `test` in the destination `train`.

    The index of `train` and the hashes of both are kept there, if they may be written.

    Args:
        options: fsspec options for both. source_options: those of their sources.
        by, min_cosine, max_bits: as of `duplicates`.

    Raises:
        ConfigError: no run has begun at one of them, it has no embeddings, those are of different networks, a part is
            damaged, or a package is missing. RunFailed: too little temporary space.
    """
    sides = Scores(train, options), Scores(test, options)
    if by != IMAGE:
        _comparable(*sides)
    unfinished = tuple(each.where for each in sides if not each.finished)
    notes = [f"{where} is unfinished: looked at is what it holds by now" for where in unfinished]
    found, tables = [], [SCHEMA.empty_table()]
    if by != EMBEDDING:
        a, b = (images_of(each, source_options, by, notes) for each in sides)
        matches = same_bytes(a, b)
        found.append(_leaked(BYTES, 0, matches, a.read, b.read, a.unread, b.unread))
        tables.append(_table(BYTES, matches, a.rows, b.rows))
        matches = same_look(a, b, max_bits)
        found.append(_leaked(IMAGE, max_bits, matches, a.seen, b.seen, a.unseen, b.unseen))
        tables.append(_table(IMAGE, matches, a.rows, b.rows))
    if by != IMAGE:
        ours, theirs = (Rows(each, EMBEDDINGS) for each in sides)
        matches, good, good_too = same_embedding(ours, theirs, min_cosine, notes)
        without, without_too = (
            {} if each.all() else {WITHOUT_DIRECTION: int((~each).sum())} for each in (good, good_too)
        )
        most = round(1 - min_cosine, 6)
        found.append(_leaked(EMBEDDING, most, matches, good, good_too, without, without_too))
        tables.append(_table(EMBEDDING, matches, ours, theirs))
    table = pa.concat_tables(tables)
    return Leakage(sides[0].where, sides[1].where, tuple(found), tuple(notes), table, unfinished)


def writer(to: str) -> Callable[[Leakage], None]:
    """What writes the table to a local file. Raises ConfigError where that is of another kind, or cannot be written."""
    writers = {".parquet": pq.write_table, ".csv": csv.write_csv}
    write = next((each for suffix, each in writers.items() if to.endswith(suffix)), None)
    if write is None:
        raise ConfigError(f"--to {to}: give a file that ends in {' or '.join(writers)}")
    if not os.path.isdir(os.path.dirname(to) or "."):
        raise ConfigError(f"--to {to}: cannot be written: there is no such folder")

    def save(found: Leakage) -> None:
        try:
            write(found.table, to)
        except OSError as error:
            raise ConfigError(f"--to {to}: cannot be written: {error}") from None

    return save


def violations(found: Leakage, max_rate: float) -> list[str]:
    """One line for each rate that is too high, or may be: an image that was not looked at, or that a run has yet to
    score, may have leaked."""
    over = [f"{where} is unfinished, and what it lacks may have leaked" for where in found.unfinished]
    for each in found.found:
        unseen, unseen_train = sum(each.test_left_out.values()), sum(each.train_left_out.values())
        worst = (each.count + unseen) / max(1, each.total + unseen)
        if each.rate is None:
            over.append(f"{each.kind}: no image was looked at, so --max-rate {max_rate:g} does not hold")
        elif each.rate > max_rate:
            over.append(f"{each.kind}: {each.count:,} of {each.total:,} ({each.rate:.4%})")
        elif worst > max_rate or unseen_train / max(1, each.train + unseen_train) > max_rate:
            over.append(f"{each.kind}: {unseen + unseen_train:,} images could not be looked at, and may have leaked")
    return over


def _comparable(train: Scores, test: Scores) -> None:
    for each in (train, test):
        each.needs(EMBEDDINGS)
    ours, theirs = (
        {name: value for name, value in each.recipe.facts.items() if name not in _NOT_OF_THE_VECTORS}
        for each in (train, test)
    )
    if differs := difference(theirs, ours):
        raise ConfigError(
            f"{train.where} and {test.where} have embeddings that cannot be compared: {differs}; score one of them as "
            "the other was, or compare the images themselves with --by image"
        )


def _leaked(
    kind: str,
    limit: float,
    matches: Matches,
    train: np.ndarray,
    test: np.ndarray,
    train_left_out: Mapping[str, int],
    test_left_out: Mapping[str, int],
) -> Leaked:
    count, total = len(matches[0]), int(test.sum())
    low, high = wilson(count, total) if total else (None, None)
    rate = count / total if total else None
    return Leaked(kind, limit, count, total, rate, low, high, int(train.sum()), dict(sorted(test_left_out.items())),
                  dict(sorted(train_left_out.items())))  # fmt: skip


def _table(kind: str, matches: Matches, train: Rows, test: Rows) -> pa.Table:
    rows, others, apart = matches
    names = (side.take(at, ["sample"], side.names)["sample"] for side, at in ((test, rows), (train, others)))
    return pa.table([pa.array([kind] * len(rows)), *names, pa.array(np.round(apart, 6))], SCHEMA.names).cast(SCHEMA)


def lines(found: Leakage) -> Iterator[str]:
    """What was found, in words."""
    for each in found.found:
        share = "" if each.rate is None else f" = {each.rate:.3%} ({each.low:.3%} to {each.high:.3%})"
        yield f"{each.kind:9} {each.count:,} of {each.total:,} images{share} are in TRAIN, which has {each.train:,}"
        for side, left_out in (("TEST", each.test_left_out), ("TRAIN", each.train_left_out)):
            for why, count in left_out.items():
                yield printable(f"left out  {count:,} of {side}: {why}")
    for row in found.table.slice(0, _EXAMPLES).to_pylist():
        yield printable(f"          {row['sample']} is {row['train_sample']} ({row['kind']}, {row['distance']:.4g})")
    for note in found.notes:
        yield printable(f"note      {note}")

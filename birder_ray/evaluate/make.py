"""Counts the rows of a destination against their labels, and writes `evaluation/`; summary.json last of all."""

from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from birder_ray.errors import ConfigError
from birder_ray.evaluate.accuracy import Counts, Scalar, scalars
from birder_ray.evaluate.labels import OfFile, OfRun, class_by_label, from_file
from birder_ray.evaluate.tables import tables
from birder_ray.folder import to_json
from birder_ray.manifest import versions
from birder_ray.parts import encode
from birder_ray.schema import PREDICTIONS
from birder_ray.scores import Scores
from birder_ray.storage import redact

EVALUATION = "evaluation"
SUMMARY = f"{EVALUATION}/summary.json"
_NAMED = 10
_UNLABELLED, _UNKNOWN = -1, -2


@dataclass(frozen=True)
class Evaluation:
    """What was found, as summary.json has it; definitions: docs/evaluation.md.

    Args:
        recipe: key of that of the run. finished: whether the run had come to its end. labels: the file, without
            credentials; None: those of the run. labels_sha256: of the file. matching: how labels name classes.
        scored: samples. evaluated: those whose label is a class; metrics are of them. unlabelled, unknown: those
            without a label, and whose label is no class. unknown_labels: the most frequent of those, and how often.
        unscored: samples with a label in the file that were not scored. quarantined: those of them that have errors.
        classes: with a label or a prediction. metrics: by name.
    """

    recipe: str
    finished: bool
    labels: str | None
    labels_sha256: str | None
    matching: str
    scored: int
    evaluated: int
    unlabelled: int
    unknown: int
    unknown_labels: Mapping[str, int]
    unscored: int
    quarantined: int
    classes: int
    metrics: Mapping[str, Scalar]
    bins: int
    bootstrap: int
    seed: int
    versions: Mapping[str, str]


def evaluate(
    url: str,
    labels: str | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    sample_column: str = "sample",
    label_column: str = "label",
    bins: int = 15,
    bootstrap: int = 1000,
    seed: int = 0,
    memory: str = "1GB",
) -> Evaluation:
    """Hold the predictions of a destination against labels, and write `evaluation/` into it.

    Memory: a few parts, the pairs of label and prediction that occur, and with a file what `memory` allows DuckDB.

    Args:
        url: of the destination. labels: CSV or Parquet file, by sample; None: those of the run. options: fsspec options
            for the destination. sample_column, label_column: of the file. bins: of the calibration. bootstrap: samples
            of it, 0 for no intervals. seed: of the bootstrap. memory: as "1GB".

    Raises:
        ConfigError: there are no predictions or labels, none of them matches, the file is not what it should be, or the
            destination is damaged. RunFailed: DuckDB needs more memory or disk.
    """
    if bins < 1 or bootstrap < 0 or seed < 0:
        raise ConfigError(f"--bins {bins}, --bootstrap {bootstrap}, --seed {seed}: give at least 1, 0 and 0")
    scores = Scores(url, options)
    scores.needs(PREDICTIONS)
    classes = scores.classes
    opened = from_file(scores, labels, sample_column, label_column, memory) if labels else nullcontext(OfRun(scores))
    with opened as source:
        found = source.distinct()
        if not found:
            where = redact(labels) if labels else f"{scores.where}, column label of predictions"
            raise ConfigError(f"{where}: there are no labels; give --labels FILE that has some")
        matching, codes = class_by_label(found, classes)
        counts = Counts(classes.num_rows, bins)
        seen, unknown = _count(counts, source, codes)
        evaluated = seen["evaluated"]
        if not evaluated:
            raise ConfigError(_nothing(scores, source, seen, unknown, found))
        unscored, quarantined = source.unscored(evaluated + unknown.total())
        sha256 = source.sha256
    done = Evaluation(
        scores.recipe.key,
        scores.finished,
        redact(labels) if labels else None,
        sha256,
        matching,
        seen.total() + unknown.total(),
        evaluated,
        seen["unlabelled"],
        unknown.total(),
        dict(sorted(unknown.items(), key=lambda each: (-each[1], each[0]))[:_NAMED]),
        unscored,
        quarantined,
        int(np.unique(np.concatenate(counts.confusions.cells()[:2])).size),
        scalars(counts, bootstrap, seed),
        bins,
        bootstrap,
        seed,
        versions(),
    )
    scores.delete(SUMMARY)  # not before: a mistake in the question leaves the last answer
    for name, table in tables(counts, classes["class_name"].to_pylist()).items():
        scores.write(f"{EVALUATION}/{name}.parquet", encode(table, {"birder_ray.recipe": done.recipe}))
    scores.write(SUMMARY, to_json(asdict(done)))
    return done


def _count(counts: Counts, source: OfRun | OfFile, codes: Mapping[str, int]) -> tuple[Counter[str], Counter[str]]:
    """Fill `counts`; returns evaluated and unlabelled samples, and those of each label that is no class."""
    seen, unknown = Counter[str](), Counter[str]()
    for rows in source.rows():
        if not rows.num_rows:
            continue
        encoded = rows["label"].combine_chunks().dictionary_encode()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        words = [label.strip() for label in encoded.dictionary.to_pylist()]
        code = np.array([codes.get(word, _UNKNOWN) if word else _UNLABELLED for word in [*words, ""]], np.int64)
        at = encoded.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)
        label = code[at]
        for word, n in zip(words, np.bincount(at, minlength=len(words) + 1), strict=False):
            if word and word not in codes:
                unknown[word] += int(n)
        known = label >= 0
        seen.update(evaluated=int(known.sum()), unlabelled=int((label == _UNLABELLED).sum()))
        if known.any():
            top = pc.list_flatten(rows["top_indices"]).to_numpy().reshape(rows.num_rows, -1)
            counts.add(label[known], top[known], rows["probability"].to_numpy()[known])
    return seen, unknown


def _nothing(
    scores: Scores, source: OfRun | OfFile, seen: Counter[str], unknown: Counter[str], labels: list[str]
) -> str:
    if unknown or isinstance(source, OfRun):
        return f"{scores.where}: no scored sample has a label that is a class of the model; labels are as {labels[:3]}"
    samples = next((rows["sample"][0].as_py() for rows in scores.stream(PREDICTIONS, ["sample"])), "(none)")
    return (
        f"{redact(source.file)}: none of its samples was scored: they are as {source.example()!r}, those of "
        f"{scores.where} as {samples!r}; give --sample-column with these ids"
    )


def lines(evaluation: Evaluation) -> list[str]:
    """What was found, in words for a terminal."""
    e = evaluation
    told = [
        f"{'labels':18} {e.labels or 'of the run'}, by {e.matching}",
        f"{'evaluated':18} {e.evaluated:,} of {e.scored:,} scored images, {e.classes:,} classes",
    ]
    if e.unlabelled:
        told.append(f"{'without a label':18} {e.unlabelled:,}")
    if e.unknown:
        some = ", ".join(f"{name} ({count:,})" for name, count in list(e.unknown_labels.items())[:3])
        told.append(f"{'label is no class':18} {e.unknown:,}: {some}")
    if e.unscored:
        told.append(f"{'not scored':18} {e.unscored:,} with a label, {e.quarantined:,} of them quarantined")
    for name, each in e.metrics.items():
        bounds = "" if each.low is None or each.high is None else f"  ({each.low:.4f} to {each.high:.4f})"
        told.append(f"{name.replace('_', ' '):18} {each.value:.4f}{bounds}")
    if not e.finished:
        told.append("the run has not come to its end: these are the images scored by now")
    return told

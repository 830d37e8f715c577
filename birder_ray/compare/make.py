"""Makes a comparison: asks the joined tables, and turns what they count into rates, shares and intervals."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from birder_ray.compare.comparison import (
    Change,
    ClassShift,
    Comparison,
    Confident,
    Embeddings,
    Failing,
    Flip,
    Predictions,
    Rate,
    Samples,
    Shift,
    Side,
)
from birder_ray.compare.joined import STEPS, Joined, joined
from birder_ray.compare.similarity import similarity
from birder_ray.intervals import paired
from birder_ray.schema import EMBEDDINGS, PREDICTIONS
from birder_ray.scores import Scores

_EXAMPLES, _LISTED = 20, 50
_THRESHOLDS = (0.5, 0.9)
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_BINS = 40


def compare(
    a: str,
    b: str,
    a_options: Mapping[str, Any] | None = None,
    b_options: Mapping[str, Any] | None = None,
    *,
    samples: int = 10_000,
    seed: int = 0,
    memory: str = "1GB",
) -> Comparison:
    """Say what changed from the destination at `a` to that at `b`, over the samples that both have.

    Args:
        a_options, b_options: fsspec options for each. samples: whose embeddings are compared, at most, chosen by
            `seed`. memory: that the join may take before it goes to disk; embeddings come on top, 8 bytes a value.

    Raises:
        ConfigError: no run has begun at one of them, it is damaged, or DuckDB is missing. RunFailed: too little memory
            or temporary space.
    """
    before, after = Scores(a, a_options), Scores(b, b_options)
    lacking = {
        table: [name for name, scores in (("A", before), ("B", after)) if table not in scores.tables]
        for table in (PREDICTIONS, EMBEDDINGS)
    }
    with joined(before, after, memory) as tables:
        found = _samples(tables)
        sides = _side(before, tables, "a"), _side(after, tables, "b")
        comparable = found.both > 0
        predictions = _predictions(tables, before, after) if comparable and not lacking[PREDICTIONS] else None
        chosen = tables.chosen(samples, seed) if comparable and not lacking[EMBEDDINGS] else []
    # After the join has given its memory back
    embeddings = similarity(before, after, chosen) if chosen else None
    notes = list(_notes(*sides, found, lacking, predictions, embeddings))
    return Comparison(*sides, found, predictions, embeddings, tuple(notes))


def _side(scores: Scores, tables: Joined, name: str) -> Side:
    model = scores.manifest["model"]
    return Side(
        scores.where,
        scores.recipe.key,
        model["name"],
        model["network"],
        model["weights_sha256"],
        scores.finished,
        tuple(scores.tables),
        len(scores.class_names),
        tables.count(name),
        tables.count(f"{name}_errors"),
    )


def _samples(tables: Joined) -> Samples:
    in_a, both = tables.count("a"), tables.count("shared")
    failing, recovered = tables.count("a JOIN b_errors USING (sample)"), tables.count("b JOIN a_errors USING (sample)")
    examples = tables.ask(
        "SELECT sample, step, error_type, message FROM b_errors SEMI JOIN a USING (sample) "
        f"ORDER BY sample LIMIT {_EXAMPLES}"
    )
    missing = in_a - both - failing
    names = tables.ask(
        f"SELECT sample FROM a ANTI JOIN b USING (sample) ANTI JOIN b_errors USING (sample) ORDER BY sample "
        f"LIMIT {_EXAMPLES}"
    )
    damaged = tables.ask(
        f"SELECT sample FROM b_shards ANTI JOIN a_shards USING (sample) ORDER BY sample LIMIT {_EXAMPLES}"
    )
    return Samples(
        both,
        Rate.of(missing, in_a),
        tables.count("b") - both - recovered,
        Rate.of(failing, in_a),
        recovered,
        tables.count("a_errors JOIN b_errors USING (sample)"),
        tables.error_types(),
        tuple(Failing(*row) for row in examples),
        tuple(name for (name,) in names),
        tables.count("b_shards ANTI JOIN a_shards USING (sample)"),
        tuple(name for (name,) in damaged),
    )


def _predictions(tables: Joined, a: Scores, b: Scores) -> Predictions:
    counts = tables.classes()
    total = sum(of_a for _, of_a, _, _ in counts)
    shifts = [
        ClassShift(name, of_a, of_b, of_b - same, of_a - same, of_b - of_a, (of_b - of_a) / total,
                   *paired(of_b - same, of_a - same, total))
        for name, of_a, of_b, same in counts
    ]  # fmt: skip
    shifts.sort(key=lambda each: (-abs(each.net), each.name))
    steps = tables.shifts()
    pairs, kinds = tables.pairs(_LISTED)
    probability = _shift(steps)
    assert probability is not None
    return Predictions(
        len(set(a.class_names) & set(b.class_names)),
        Rate.of(sum(each.lost for each in shifts), total),
        tuple(_confident(tables, threshold) for threshold in _THRESHOLDS),
        tuple(Flip(*pair) for pair in pairs),
        kinds,
        tuple(shifts[:_LISTED]),
        len(shifts),
        sum(abs(each.net) for each in shifts) / (2 * total),
        probability,
        _shift([row for row in steps if row[0]]),
        tuple(Change(*row) for row in tables.changes(_EXAMPLES)),
    )


def _confident(tables: Joined, threshold: float) -> Confident:
    one, of_one, two, of_two = tables.confident(threshold)
    return Confident(threshold, Rate.of(one, of_one), Rate.of(two, of_two))


def _shift(rows: list[tuple[bool, int, int, float, float, float, float]]) -> Shift | None:
    """Of the rows of `Joined.shifts`; quantiles by steps, so that no list of all shifts is needed."""
    if not rows:
        return None
    steps = np.zeros(2 * STEPS + 1, np.int64)
    for _, step, samples, *_ in rows:
        steps[step + STEPS] += samples
    total, passed = int(steps.sum()), steps.cumsum()
    at = {q: int(np.searchsorted(passed, q * total)) - STEPS for q in _QUANTILES}
    # The last step, of 1.0, belongs to the last bin
    bins = np.minimum(np.arange(len(steps)) * _BINS // (2 * STEPS), _BINS - 1)
    histogram = np.bincount(bins, weights=steps, minlength=_BINS).astype(int)
    return Shift(
        total,
        sum(row[3] for row in rows) / total,
        sum(row[4] for row in rows) / total,
        min(row[5] for row in rows),
        max(row[6] for row in rows),
        {str(q): step / STEPS for q, step in at.items()},
        tuple(histogram.tolist()),
    )


def _notes(
    a: Side,
    b: Side,
    samples: Samples,
    lacking: Mapping[str, list[str]],
    predictions: Predictions | None,
    embeddings: Embeddings | None,
) -> Iterator[str]:
    for name, side in (("A", a), ("B", b)):
        if not side.finished:
            yield f"{name} is unfinished: compared is what it holds by now"
    for table, names in lacking.items():
        for name in names:
            yield f"{name} has no table {table}: {table} are not compared"
    if samples.both == 0:
        yield "no sample is scored in both: only the counts are compared"
    if predictions and not predictions.names_shared == a.classes == b.classes:
        yield f"the class lists share {predictions.names_shared:,} names of {a.classes:,} in A and {b.classes:,} in B"
    if samples.both and not embeddings and not lacking[EMBEDDINGS]:
        yield "no sample has embeddings in both: embeddings are not compared"
    if embeddings and embeddings.cosine and a.weights_sha256 != b.weights_sha256:
        yield "the weights differ, and so may the axes of the embeddings: rely on CKA rather than on cosine"
    if embeddings and not embeddings.cosine:
        yield (
            f"embeddings have {embeddings.size_a:,} values in A and {embeddings.size_b:,} in B: no cosine, only CKA"
            if embeddings.size_a != embeddings.size_b
            else "the embeddings have length 0 in both: no cosine"
        )

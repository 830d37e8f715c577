"""Limits to a change, what exceeds them, and a comparison in words."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from birder_ray.compare.comparison import Comparison, Rate
from birder_ray.errors import printable

_SHOWN = 5


@dataclass(frozen=True)
class Limits:
    """What a comparison may show at most, or at least; None: anything.

    Args:
        max_flip_rate: share of the samples scored in both whose top class is another. max_new_errors: share of the
            samples scored in A that B quarantined. min_cosine: of the mean. max_share_shift: largest absolute change of
            a class's share. max_missing: share of the samples scored in A of which B has nothing.
    """

    max_flip_rate: float | None = None
    max_new_errors: float | None = None
    min_cosine: float | None = None
    min_cka: float | None = None
    max_share_shift: float | None = None
    max_missing: float | None = None


def violations(comparison: Comparison, limits: Limits) -> list[str]:
    """One line for each limit that does not hold. One whose number could not be measured does not hold either."""
    predictions, embeddings = comparison.predictions, comparison.embeddings
    cosine = embeddings.cosine if embeddings else None
    measured = {
        "max_flip_rate": ("flip rate", predictions.flips.rate if predictions else None),
        "max_new_errors": ("newly failing", comparison.samples.newly_failing.rate),
        "min_cosine": ("mean cosine", cosine.mean if cosine else None),
        "min_cka": ("CKA", embeddings.cka if embeddings else None),
        "max_share_shift": ("largest share shift", predictions.largest_shift if predictions else None),
        "max_missing": ("missing samples", comparison.samples.missing.rate),
    }
    found = []
    for field in fields(limits):
        limit, (name, value) = getattr(limits, field.name), measured[field.name]
        option = f"--{field.name.replace('_', '-')}"
        least = field.name.startswith("min_")
        if limit is None:
            continue
        if value is None:
            found.append(f"{name} was not measured, so {option} {limit:g} does not hold")
        elif value < limit if least else value > limit:
            found.append(f"{name} {value:.6g} is {'below' if least else 'above'} {option} {limit:g}")
    return found


def lines(comparison: Comparison) -> list[str]:
    """The comparison for a terminal: what matters most, a line each."""
    return [printable(line) for line in _lines(comparison)]


def _lines(told: Comparison) -> Iterator[str]:
    for name, side in (("A", told.a), ("B", told.b)):
        yield (
            f"{name:9}{side.url} ({side.model}, recipe {side.recipe}): {side.scored:,} scored, "
            f"{side.quarantined:,} quarantined"
        )
    found = told.samples
    yield f"samples  {found.both:,} in both, {found.missing.count:,} missing in B, {found.added:,} only in B"
    types = ", ".join(f"{name} {count:,}" for name, count in list(found.error_types.items())[:_SHOWN])
    yield (
        f"errors   {found.newly_failing.count:,} newly failing{f' ({types})' if types else ''}, "
        f"{found.recovered:,} recovered, {found.failing_in_both:,} in both"
    )
    if found.newly_damaged_shards:
        yield f"shards   newly damaged in B: {', '.join(found.newly_damaged_shards[:_SHOWN])}"
    if told.predictions:
        predictions = told.predictions
        yield f"flips    {_rate(predictions.flips)}"
        for confident in predictions.confident:
            yield f"         where both are {confident.threshold:.0%} sure: {_rate(confident.both)}"
        for flip in predictions.pairs[:_SHOWN]:
            yield f"         {flip.count:,} {flip.before} -> {flip.after}"
        yield (
            f"shares   total variation {predictions.total_variation:.4f}, over {predictions.classes_seen:,} classes "
            "that were predicted"
        )
        for each in predictions.classes[:_SHOWN]:
            if each.gained or each.lost:
                yield (
                    f"         {each.name} {each.shift:+.2%} ({each.low:+.2%} to {each.high:+.2%}): "
                    f"{each.a:,} to {each.b:,}"
                )
        shift = predictions.probability
        yield (
            f"top-1    probability {shift.mean:+.4f} in the mean, {shift.mean_absolute:.4f} in absolute terms, "
            f"{shift.min:+.4f} to {shift.max:+.4f}"
        )
    if told.embeddings:
        embeddings = told.embeddings
        cosine, cka = embeddings.cosine, embeddings.cka
        alike = f"cosine {cosine.mean:.6f} in the mean, {cosine.min:.6f} at least; " if cosine else ""
        yield f"vectors  {alike}CKA {'none' if cka is None else f'{cka:.6f}'}, over {embeddings.samples:,} samples"
    for note in told.notes:
        yield f"note     {note}"


def _rate(rate: Rate) -> str:
    if rate.rate is None:
        return "no samples"
    return f"{rate.rate:.3%} ({rate.low:.3%} to {rate.high:.3%}): {rate.count:,} of {rate.total:,}"

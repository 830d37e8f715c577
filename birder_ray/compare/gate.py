"""Limits to a change, what exceeds them, and a comparison in words."""

from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True)
class Check:
    """A limit that is given. option: of the command. name: of what it limits. value: of that; None: not measured."""

    option: str
    name: str
    limit: float
    value: float | None
    least: bool

    @property
    def holds(self) -> bool:
        """Whether it does; one whose number could not be measured does not."""
        return self.value is not None and (self.value >= self.limit if self.least else self.value <= self.limit)

    @property
    def said(self) -> str:
        """That it does not, and why."""
        if self.value is None:
            return f"{self.name} was not measured, so {self.option} {self.limit:g} does not hold"
        return f"{self.name} {self.value:.6g} is {'below' if self.least else 'above'} {self.option} {self.limit:g}"


def checks(comparison: Comparison, limits: Limits) -> list[Check]:
    """The limits that are given, held against the comparison."""
    samples, predictions, embeddings = comparison.samples, comparison.predictions, comparison.embeddings
    cosine = embeddings.cosine if embeddings else None
    tried = samples.both + samples.newly_failing.count  # by B, of what A scored: what it never saw cannot fail
    measured = {
        "max_flip_rate": ("flip rate", predictions.flips.rate if predictions else None),
        "max_new_errors": ("newly failing", samples.newly_failing.rate if tried else None),
        "min_cosine": ("mean cosine", cosine.mean if cosine else None),
        "min_cka": ("CKA", embeddings.cka if embeddings else None),
        "max_share_shift": ("largest share shift", predictions.largest_shift if predictions else None),
        "max_missing": ("missing samples", samples.missing.rate),
    }
    return [
        Check(f"--{field.name.replace('_', '-')}", name, limit, value, field.name.startswith("min_"))
        for field in fields(limits)
        for name, value in (measured[field.name],)
        if (limit := getattr(limits, field.name)) is not None
    ]


def broken(comparison: Comparison, checked: Sequence[Check]) -> list[str]:
    """One line for each of these limits that does not hold and, where there are any, for each destination that is
    unfinished: nobody knows of what it lacks."""
    over = [each.said for each in checked if not each.holds]
    sides = (comparison.a, comparison.b) if checked else ()
    return over + [f"{side.url} is unfinished, so no limit holds for all of it" for side in sides if not side.finished]


def violations(comparison: Comparison, limits: Limits) -> list[str]:
    """What `broken` says of the limits that are given."""
    return broken(comparison, checks(comparison, limits))


def lines(comparison: Comparison) -> list[str]:
    """The comparison for a terminal: what matters most, a line each."""
    return [printable(line) for line in _lines(comparison)]


def _lines(whole: Comparison) -> Iterator[str]:
    for name, side in (("A", whole.a), ("B", whole.b)):
        yield (
            f"{name:9}{side.url} ({side.model}, recipe {side.recipe}): {side.scored:,} scored, "
            f"{side.quarantined:,} quarantined"
        )
    found = whole.samples
    yield f"samples  {found.both:,} in both, {found.missing.count:,} missing in B, {found.added:,} only in B"
    types = ", ".join(f"{name} {count:,}" for name, count in list(found.error_types.items())[:_SHOWN])
    yield (
        f"errors   {found.newly_failing.count:,} newly failing{f' ({types})' if types else ''}, "
        f"{found.recovered:,} recovered, {found.failing_in_both:,} in both"
    )
    if found.newly_damaged:
        more = ", ..." if found.newly_damaged > _SHOWN else ""
        names = ", ".join(found.newly_damaged_shards[:_SHOWN])
        yield f"shards   {found.newly_damaged:,} newly damaged in B: {names}{more}"
    if whole.predictions:
        predictions = whole.predictions
        yield f"flips    {told(predictions.flips)}"
        for confident in predictions.confident:
            yield f"         where both are {confident.threshold:.0%} sure: {told(confident.both)}"
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
    if whole.embeddings:
        embeddings = whole.embeddings
        cosine, cka = embeddings.cosine, embeddings.cka
        alike = f"cosine {cosine.mean:.6f} in the mean, {cosine.min:.6f} at least; " if cosine else ""
        yield f"vectors  {alike}CKA {'none' if cka is None else f'{cka:.6f}'}, over {embeddings.samples:,} samples"
    for note in whole.notes:
        yield f"note     {note}"


def told(rate: Rate) -> str:
    """A rate with its interval and counts, for people."""
    if rate.rate is None:
        return "no samples"
    return f"{rate.rate:.3%} ({rate.low:.3%} to {rate.high:.3%}): {rate.count:,} of {rate.total:,}"

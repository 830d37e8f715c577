"""What stands in those sections of the page that are about predictions and embeddings."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from birder_ray.classes import short_names
from birder_ray.compare import charts
from birder_ray.compare.comparison import Embeddings, Predictions, Shift
from birder_ray.compare.gate import told
from birder_ray.page import details, figure, paragraph, plural, table, text

_DRAWN = 15


def short_in(of: Predictions) -> Mapping[str, str]:
    """What the classes of the page are called where there is little room."""
    names = [name for flip in of.pairs for name in (flip.before, flip.after)]
    names += [name for change in of.changes for name in (change.before, change.after)]
    return short_names(list(dict.fromkeys([*names, *(each.name for each in of.classes)])))


def flips(of: Predictions, short: Mapping[str, str]) -> str:
    body = paragraph(text(f"Predicted as another class in B: {told(of.flips)}."))
    if of.pairs:
        drawn = of.pairs[:_DRAWN]
        many = f", the {len(drawn)} most frequent of {of.pairs_seen:,} kinds" if of.pairs_seen > len(drawn) else ""
        most = " to ".join(short.get(name, name) for name in (of.pairs[0].before, of.pairs[0].after))
        said = f"Flips from a class to another{many}. The most frequent is {most}, {of.pairs[0].count:,}."
        rows = [(each.before, each.after, each.count) for each in of.pairs]
        numbers = table(first("Flips", len(rows), of.pairs_seen), ("in A", "in B", "samples"), rows)
        body += figure("pairs", charts.pairs(drawn, short), said, details("The numbers", numbers))
    sure = [(f"{e.threshold:.0%}", told(e.either), told(e.both)) for e in of.confident]
    head = ("top probability at least", "flips where it is in A or in B", "flips where it is in both")
    return body + table("Flips among the sure ones", head, sure)


def shares(of: Predictions, short: Mapping[str, str]) -> str:
    moved = [each for each in of.classes if each.gained or each.lost]
    said = (
        f"Total variation {of.total_variation:.4f}: half the sum of the changes of all shares, over "
        f"{plural(of.classes_seen, 'class that was', 'classes that were')} predicted."
    )
    body = paragraph(text(said))
    if not moved:
        return body + paragraph("No sample has left its class.")
    drawn = [each for each in moved if each.net][:_DRAWN]
    rows = [
        (e.name, e.a, e.b, e.gained, e.lost, 100 * e.shift, f"{100 * e.low:+.3g} to {100 * e.high:+.3g}") for e in moved
    ]
    head = ("class", "in A", "in B", "gained", "lost", "shift, points", "95 % interval")
    numbers = table(first("Classes", len(rows), of.classes_seen), head, rows)
    if not drawn:
        return body + paragraph("The shares are as before: classes traded samples.") + numbers
    largest = drawn[0]
    caption = (
        f"Changes of the classes' shares from A to B, the {len(drawn)} largest, with 95 % intervals; hollow points may "
        f"be chance. The largest is {short.get(largest.name, largest.name)}, {100 * largest.shift:+.3g} points."
    )
    return body + figure("shifts", charts.shifts(drawn, short), caption, details("The numbers", numbers))


def probability(of: Predictions, short: Mapping[str, str]) -> str:
    shift = of.probability
    said = (
        f"The top class's probability in B less that in A: {shift.mean:+.4f} in the mean, {shift.mean_absolute:.4f} in "
        "absolute terms. Each step of the vertical axis is ten times as many."
    )
    columns = [("all", shift), *([("not flipped", of.same)] if of.same else [])]
    head = ("", *(name for name, _ in columns))
    numbers = table("Changes of the top probability", head, _quantiles([each for _, each in columns]))
    bins = [-1 + 2 * at / len(shift.histogram) for at in range(len(shift.histogram) + 1)]
    counts = [
        (f"{bins[at]:+.2f} to {bins[at + 1]:+.2f}", every, flipped)
        for at, (every, flipped) in enumerate(zip(shift.histogram, charts.flips_of(shift, of.same), strict=True))
        if every
    ]
    numbers += table("Samples by bin, empty ones left out", ("from, to", "all", "flipped"), counts)
    body = figure("shift", charts.probabilities(shift, of.same), said, details("The numbers", numbers))
    if not of.changes:
        return body
    rows = [
        (
            each.sample,
            f"{short.get(each.before, each.before)} {each.probability_before:.4f}",
            f"{short.get(each.after, each.after)} {each.probability_after:.4f}",
            each.change,
        )
        for each in of.changes
    ]
    head = ("sample", "class and probability in A", "class and probability in B", "change")
    return body + table("Samples that changed most", head, rows)


def _quantiles(columns: Sequence[Shift]) -> Iterator[tuple[Any, ...]]:
    yield "samples", *(f"{each.samples:,}" for each in columns)
    yield "least", *(f"{each.min:+.4f}" for each in columns)
    for quantile in columns[0].quantiles:
        yield f"{float(quantile):.0%} are below", *(f"{each.quantiles[quantile]:+.3f}" for each in columns)
    yield "greatest", *(f"{each.max:+.4f}" for each in columns)


def embeddings(of: Embeddings) -> str:
    rows: list[tuple[str, str]] = [
        ("samples", f"{of.samples:,}"),
        ("values in A", f"{of.size_a:,}"),
        ("values in B", f"{of.size_b:,}"),
        ("CKA of the two spaces", "not defined" if of.cka is None else f"{of.cka:.6f}"),
    ]
    if of.cosine:
        rows += [("mean cosine", f"{of.cosine.mean:.6f}"), ("least cosine", f"{of.cosine.min:.6f}")]
        rows += [(f"{float(q):.0%} are below", f"{value:.6f}") for q, value in of.cosine.quantiles.items()]
    said = (
        "How alike the embeddings of a sample are in A and in B (cosine), and how alike the two spaces are up to "
        "rotation and scale (CKA). 1 is the same."
    )
    return paragraph(said) + table("Embeddings", ("what", "value"), rows)


def first(what: str, listed: int, total: int) -> str:
    """The caption of a list that may not be whole."""
    return f"{what}, the first {listed} of {total:,}" if listed < total else f"{what} ({total:,})"

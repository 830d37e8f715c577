"""What stands in each section of the page about a comparison: the runs and their samples, here, and what changed, from
`findings`."""

from collections.abc import Sequence

from birder_ray.compare import findings
from birder_ray.compare.comparison import Comparison, Side
from birder_ray.compare.gate import Check, broken, told
from birder_ray.page import Section, details, number, paragraph, plural, table, text, tiles


def note(found: Comparison, checked: Sequence[Check]) -> str:
    """What has to be known before anything else. HTML."""
    over = broken(found, checked)
    said = []
    if over:
        why = text("; ".join(over))
        said.append(f"<strong>B changed more than is allowed:</strong> {why}.")
    said += [text(f"{each[0].upper()}{each[1:]}.") for each in found.notes]
    return "".join(f'<p class="note" role="note">{each}</p>\n' for each in said)


def sections(found: Comparison, checked: Sequence[Check]) -> list[Section]:
    """All sections, in order."""
    predictions = found.predictions
    short = findings.short_in(predictions) if predictions else {}
    without = paragraph("Not compared: the notes above say why.")
    return [
        Section("overview", "Overview", _overview(found, checked)),
        Section("gate", "Limits", _gate(found, checked)),
        Section("runs", "The two runs", _runs(found.a, found.b)),
        Section("samples", "Samples", _samples(found)),
        Section("failing", "Newly failing", _failing(found)),
        Section("flips", "Flips", findings.flips(predictions, short) if predictions else without),
        Section("shares", "Shares", findings.shares(predictions, short) if predictions else without),
        Section("probability", "Probability", findings.probability(predictions, short) if predictions else without),
        Section("embeddings", "Embeddings", findings.embeddings(found.embeddings) if found.embeddings else without),
    ]


def _overview(found: Comparison, checked: Sequence[Check]) -> str:
    facts: list[tuple[str, object]] = [("Samples in both", number(found.samples.both))]
    if found.predictions:
        facts += [
            ("Flipped", f"{found.predictions.flips.rate:.3%}"),
            ("Largest share shift", f"{found.predictions.classes[0].shift:+.2%}"),
        ]
    if found.embeddings and found.embeddings.cosine:
        facts.append(("Mean cosine", f"{found.embeddings.cosine.mean:.4f}"))
    facts += [("Newly failing", number(found.samples.newly_failing.count))]
    facts += [("Missing in B", number(found.samples.missing.count))]
    holding = sum(each.holds for each in checked)
    facts.append(("Limits that hold", f"{holding} of {len(checked)}" if checked else "none given"))
    return tiles(facts)


def _gate(found: Comparison, checked: Sequence[Check]) -> str:
    if not checked:
        return paragraph("No limits were given, e.g. <code>--max-flip-rate 0.01</code>.")
    rows = [
        (
            each.option,
            "holds" if each.holds else "does not hold",
            "not measured" if each.value is None else f"{each.value:.6g}",
            f"at {'least' if each.least else 'most'} {each.limit:g}",
            each.name,
        )
        for each in checked
    ]
    over = sum(not each.holds for each in checked)
    said = f"{plural(over, 'limit does', 'limits do')} not hold." if over else "All limits hold."
    if not (found.a.finished and found.b.finished):
        said += " They are held against what is there by now, of a destination that is unfinished."
    return paragraph(said) + table("Limits", ("option", "verdict", "measured", "limit", "of"), rows)


def _runs(a: Side, b: Side) -> str:
    def facts(side: Side) -> dict[str, str]:
        return {
            "Model": side.model,
            "Network": side.network,
            "Weights, sha256": side.weights_sha256,
            "Recipe": side.recipe,
            "Tables": ", ".join(side.tables),
            "Classes": number(side.classes),
            "Scored": number(side.scored),
            "Quarantined": number(side.quarantined),
            "Finished": "yes" if side.finished else "no",
        }

    of_a, of_b = facts(a), facts(b)
    other = [name.partition(",")[0].lower() for name in of_a if of_a[name] != of_b[name]]
    said = f"They differ in: {', '.join(other)}." if other else "They differ in none of these."
    rows = [("Destination", a.url, b.url), *((name, of_a[name], of_b[name]) for name in of_a)]
    return paragraph(said) + table("The two runs", ("what", "A", "B"), rows)


def _samples(found: Comparison) -> str:
    of = found.samples
    rows = [
        ("scored in both", of.both),
        ("scored in A, missing in B", of.missing.count),
        ("only in B", of.added),
        ("scored in A, quarantined in B", of.newly_failing.count),
        ("quarantined in A, scored in B", of.recovered),
        ("quarantined in both", of.failing_in_both),
    ]
    body = paragraph(text(f"Missing in B, of those scored in A: {told(of.missing)}."))
    body += table("Samples", ("where", "samples"), rows)
    if of.missing_examples:
        names = [(name,) for name in of.missing_examples]
        body += details(
            findings.first("Missing in B", len(names), of.missing.count), table("Missing in B", ("sample",), names)
        )
    return body


def _failing(found: Comparison) -> str:
    of = found.samples
    body = paragraph(text(f"Quarantined in B, of those scored in A: {told(of.newly_failing)}."))
    if of.error_types:
        body += table("Newly failing, by cause", ("cause", "samples"), of.error_types.items())
        examples = [(e.sample, f"{e.error_type}, at {e.step}", e.message) for e in of.newly_failing_examples]
        summary = findings.first("Newly failing", len(examples), of.newly_failing.count)
        body += details(summary, table("Newly failing", ("sample", "cause", "message"), examples))
    if of.newly_damaged:
        shards = [(name,) for name in of.newly_damaged_shards]
        said = f"Could not be read to their end in B, and could in A: {plural(of.newly_damaged, 'shard')}."
        summary = findings.first("Newly damaged shards", len(shards), of.newly_damaged)
        body += paragraph(said) + details(summary, table("Newly damaged shards", ("shard",), shards))
    return body

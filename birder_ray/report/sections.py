"""What stands in each section of a report: the run, here, and what came of it, from `findings`."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from birder_ray.page import Section, details, figure, number, paragraph, plural, table, text, tiles
from birder_ray.report import charts, findings
from birder_ray.report.facts import SUMMARY, Facts
from birder_ray.report.thumbnails import Thumbnails
from birder_ray.schema import EMBEDDINGS, FEATURES, OUTPUT_TABLES, PREDICTIONS

_LISTED, _INPUTS = 200, 20


def note(facts: Facts) -> str:
    """What has to be known before anything else. HTML."""
    if facts.finished:
        return ""
    said = (
        f"The report shows what is committed by now: {plural(facts.work.totals.units, 'unit')}. Run the same command "
        "again to resume."
    )
    return f'<p class="note" role="note"><strong>Unfinished.</strong> {text(said)}</p>\n'


def sections(facts: Facts, pictures: Thumbnails) -> list[Section]:
    """All sections, in order."""
    seen = facts.predicted
    without = findings.absent(facts, PREDICTIONS)
    found = [
        Section("overview", "Overview", _overview(facts)),
        Section("run", "What was run", _run(facts)),
        Section("balance", "Balance", _balance(facts)),
        Section("throughput", "Throughput", _throughput(facts)),
        Section("classes", "Classes", findings.classes(facts, seen) if seen else without),
        Section("certainty", "Certainty", findings.certainty(seen) if seen else without),
        Section("images", "Images", findings.pictures(seen, pictures) if seen else without),
        Section("embeddings", "Embeddings", findings.embeddings(facts)),
        Section("features", "Features", findings.features(facts)),
        Section("quarantine", "Quarantine", _quarantine(facts)),
    ]
    if facts.evaluation is not None:
        found.append(Section("evaluation", "Evaluation", _evaluation(facts, facts.evaluation)))
    return found


def _overview(facts: Facts) -> str:
    totals, seen = facts.work.totals, facts.predicted
    told: list[tuple[str, object]] = [
        ("Images read", number(totals.samples)),
        ("Scored", number(totals.rows)),
        ("Quarantined", number(totals.errors)),
    ]
    if seen:
        told.append(("Classes seen", f"{number(len(seen.counts))} of {number(seen.classes)}"))
    told += [("Images/s at work", number(_pace(facts))), ("Slowest step", facts.work.totals.slowest or "none")]
    return tiles(told)


def _pace(facts: Facts) -> float:
    """Images per second over the whole of the work."""
    stretches = facts.work.stretches
    seconds = stretches[-1].offset + stretches[-1].length if stretches else 0.0
    return facts.work.totals.samples / seconds if seconds else 0.0


def _run(facts: Facts) -> str:
    manifest, recipe = facts.manifest, facts.manifest["recipe"]
    size = " x ".join(map(str, manifest["model"]["size"]))
    rows = [
        ("Model", manifest["model"]["name"]),
        ("Network", manifest["model"]["network"]),
        ("Weights, sha256", manifest["model"]["weights_sha256"]),
        ("Input, height x width", f"{size} px"),
        ("Source", ", ".join(manifest["config"]["source"]["uri"])),
        ("Tables", ", ".join(name for name in OUTPUT_TABLES if name in recipe["tables"])),
        ("Recipe", recipe["key"]),
        ("Engine", ", ".join(f"{name}: {count:,} images" for name, count in facts.work.engines.items()) or "none yet"),
        ("Begun", _time(manifest.get("created") or "unknown")),
        ("Finished", _time(manifest.get("finished") or "not yet")),
    ]
    inputs = manifest["inputs"]
    sizes = [each["size"] for each in inputs if each["size"] is not None]
    few = [(each["name"] or each["uri"], _bytes(each["size"]), each["fingerprint"]) for each in inputs[:_INPUTS]]
    more = f", the first {_INPUTS}" if len(inputs) > _INPUTS else ""
    listed = table(f"{len(inputs):,} inputs, {_bytes(sum(sizes))} in all{more}", ("input", "size", "fingerprint"), few)
    return (
        table("The run", ("what", "value"), rows)
        + details("Every option that determines values", table("Recipe", ("option", "value"), _flat(recipe["facts"])))
        + details("Versions", table("Versions", ("package", "version"), manifest.get("versions", {}).items()))
        + details(f"Inputs ({len(inputs):,})", listed)
    )


def _balance(facts: Facts) -> str:
    totals = facts.work.totals
    rows = [("read", totals.samples), ("scored", totals.rows), ("quarantined", totals.errors)]
    told = f"{totals.samples:,} read = {totals.rows:,} scored + {totals.errors:,} quarantined"
    counted = [sum(each.count for each in facts.quarantine) == totals.errors]
    rows_of = {
        PREDICTIONS: facts.predicted and sum(facts.predicted.counts.values()),
        EMBEDDINGS: facts.cloud and facts.cloud.total,
        FEATURES: facts.levels and facts.levels.total,
    }
    adding = facts.manifest.get("adding") or []
    counted += [found == totals.rows for name, found in rows_of.items() if found is not None and name not in adding]
    holds = totals.samples == totals.rows + totals.errors and all(counted)
    said = (
        f"{told}. The rows of the tables, counted, agree with the commit records."
        if holds
        else f"{told}. The rows of the tables do not agree with the commit records: a run was at work meanwhile, or "
        "birder-ray verify names the damage."
    )
    if adding:
        said += f" A run is adding {' and '.join(adding)}, which the units have in part."
    return (
        paragraph(text(said), "" if holds else "note")
        + table("Images by outcome", ("outcome", "images"), rows)
        + paragraph("A shard that could not be read to its end counts as one quarantined image.", "soft")
    )


def _throughput(facts: Facts) -> str:
    work = facts.work
    if not work.stretches:
        return paragraph("Nothing is committed yet.")
    runs = [(each.run or "unnamed", _time(each.began), _time(each.ended), each.images) for each in work.stretches]
    pace = f"Images per second over the time worked: {number(_pace(facts))} on average, in {plural(len(runs), 'run')}."
    seconds = sorted(work.totals.seconds.items(), key=lambda item: -item[1])
    told = f"Seconds of all workers by step. The slowest is {work.totals.slowest}"
    share = work.totals.steps[work.totals.slowest] / max(1e-9, work.totals.worked_s) if work.totals.slowest else 0.0
    told += f", with {share:.0%} of what the steps took. Wait and transfer lie between the steps, and block no worker."
    return figure(
        "pace",
        charts.throughput(work),
        pace,
        details("The runs", table("Runs", ("run", "began", "last commit", "images"), runs)),
    ) + figure(
        "steps", charts.steps(work), told, details("The numbers", table("Seconds by step", ("step", "s"), seconds))
    )


def _quarantine(facts: Facts) -> str:
    if not facts.quarantine:
        return paragraph("Nothing was quarantined.")
    causes = [(f"{each.error_type}, at {each.step}", each.count) for each in facts.quarantine[:_LISTED]]
    examples = [
        (sample, f"{each.error_type}, at {each.step}", message)
        for each in facts.quarantine[:_LISTED]
        for sample, message in each.examples
    ]
    return table("Quarantined images by cause", ("cause", "images"), causes) + table(
        "Examples, the first of each cause", ("sample", "cause", "message"), examples
    )


def _evaluation(facts: Facts, summary: Mapping[str, Any]) -> str:
    rows = islice(_flat(summary), _LISTED)
    now = facts.manifest["recipe"]["key"], facts.work.totals.rows
    told = "It is of other predictions than those here now: run <code>birder-ray evaluate</code> again."
    stale = "" if (summary.get("recipe"), summary.get("scored")) == now else paragraph(told, "note")
    return (
        stale
        + paragraph(f"As <code>{SUMMARY}</code> has it; in brackets, intervals.")
        + table("Evaluation", ("measure", "value"), rows)
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[Sequence[Any]]:
    """Nested values as rows of a dotted name and a text; a value with bounds is one row."""
    for name, value in values.items():
        if not isinstance(value, Mapping):
            yield f"{prefix}{name}", _said(value)
        elif value.keys() == {"value", "low", "high"}:
            bounds = f" ({_said(value['low'])} to {_said(value['high'])})" if value["low"] is not None else ""
            yield f"{prefix}{name}", f"{_said(value['value'])}{bounds}"
        else:
            yield from _flat(value, f"{prefix}{name}.")


def _said(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value)) if len(value) <= 8 else f"{len(value)} values"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return number(value) if isinstance(value, int | float) else str(value)


def _time(told: str) -> str:
    """An ISO 8601 time as people write it."""
    return told.replace("T", " ").replace("+00:00", " UTC")


def _bytes(size: float | None) -> str:
    if size is None:
        return "unknown"
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"

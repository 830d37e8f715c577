"""The commands that find something out from a destination: arguments to calls, results to words."""

import json
from dataclasses import asdict
from typing import Any

import click
from rich.markup import escape

from birder_ray.arguments import destination, pairs
from birder_ray.console import results
from birder_ray.errors import LimitExceeded


@click.command()
@destination
@click.option("--to", metavar="FILE", help="local file to write instead of DEST/report.html")
@click.option(
    "--thumbnails", type=click.IntRange(0), default=48, show_default=True, help="images read from the source to show"
)
@click.option(
    "--source-option", "source_options", multiple=True, metavar="KEY=VALUE", help="fsspec option of the source"
)
def report(
    dest: str, options: tuple[str, ...], to: str | None, thumbnails: int, source_options: tuple[str, ...]
) -> None:
    """Write one HTML page about DEST: what was run, what came out, what went wrong."""
    from birder_ray.report import report as write

    source = pairs("--source-option", source_options)
    where = write(dest, pairs("--option", options), source, to=to, thumbnails=thumbnails)
    results.print(f"report   {escape(where)}", soft_wrap=True)


@click.command()
@destination
@click.option("--labels", metavar="FILE", help="CSV or Parquet, by sample [default: the labels that the run found]")
@click.option("--sample-column", default="sample", show_default=True, help="of the file: ids as in the tables")
@click.option("--label-column", default="label", show_default=True, help="of the file: class name, index or species")
@click.option("--bins", type=click.IntRange(1), default=15, show_default=True, help="of the calibration")
@click.option("--bootstrap", type=click.IntRange(0), default=1000, show_default=True, help="samples; 0: no intervals")
@click.option("--seed", type=click.IntRange(0), default=0, help="of the bootstrap")
@click.option("--memory", default="1GB", show_default=True, help="for the join; what is more goes to TMPDIR")
def evaluate(dest: str, options: tuple[str, ...], labels: str | None, **told: Any) -> None:
    """Hold the predictions of DEST against labels: accuracy, F1, calibration, confusions; adds DEST/evaluation/."""
    from birder_ray.evaluate import evaluate as hold
    from birder_ray.evaluate import lines

    for line in lines(hold(dest, labels, pairs("--option", options), **told)):
        results.print(escape(line))


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="fsspec option of both")
@click.option("--json", "file", type=click.File("w", lazy=True), help="write all numbers there; - for the terminal")
@click.option(
    "--samples", default=10_000, show_default=True, type=click.IntRange(1), help="whose embeddings are compared"
)
@click.option("--memory", default="1GB", show_default=True, help="for the join; what is more goes to TMPDIR")
@click.option("--max-flip-rate", type=click.FloatRange(0, 1), help="samples whose top class is another")
@click.option("--max-new-errors", type=click.FloatRange(0, 1), help="samples scored in A and quarantined in B")
@click.option("--max-missing", type=click.FloatRange(0, 1), help="samples scored in A of which B has nothing")
@click.option("--max-share-shift", type=click.FloatRange(0, 1), help="largest change of a class's share")
@click.option("--min-cosine", type=click.FloatRange(-1, 1), help="mean similarity of embeddings")
@click.option("--min-cka", type=click.FloatRange(-1, 1), help="the same for embeddings of different sizes")
def compare(
    a: str, b: str, options: tuple[str, ...], file: Any, samples: int, memory: str, **limits: float | None
) -> None:
    """Say what changed from destination A to B, sample by sample; exit code 1 where it is more than a limit allows."""
    from birder_ray.compare import Limits, lines, violations
    from birder_ray.compare import compare as join

    opened, allowed = pairs("--option", options), Limits(**limits)
    found = join(a, b, opened, opened, samples=samples, memory=memory)
    over = violations(found, allowed)
    if file:
        json.dump({**found.told(), "limits": asdict(allowed), "violations": over}, file, indent=1, ensure_ascii=False)
        file.write("\n")
    if not file or file.name != "-":
        for line in lines(found):
            results.print(escape(line))
    if over:
        raise LimitExceeded(f"{found.b.url} changed more than is allowed: {'; '.join(over)}")


@click.command()
@destination
@click.option("--confidence", default=0.65, show_default=True, help="that a taxon must reach, 0 to 1")
@click.option("--taxonomy", metavar="FILE", help="CSV or Parquet: class_name and ranks, if the class names have none")
@click.option("--common-names", "names", metavar="FILE", help="JSON: names by class index")
@click.option("--checklist", metavar="FILE", help="the taxa that occur there, one a line, or a CSV's first column")
def rollup(dest: str, options: tuple[str, ...], **told: Any) -> None:
    """Add to DEST how far up the taxonomy each prediction is certain, and what a regional checklist leaves of it."""
    from birder_ray.rollup import rollup as roll

    done = roll(dest, pairs("--option", options), **told)
    for rank, count in done.ranks.items():
        results.print(f"{rank:8} {count:,} images ({count / done.rows:.1%})")
    bound = "" if done.exact else "; probabilities are lower bounds, as only the top classes are stored (--logits)"
    results.print(f"rollup   {done.rows:,} images at {done.confidence:g}{bound}")
    if not done.finished:
        results.print("note     the run is unfinished: rolled up is what is committed by now")
    if done.without_taxon:
        results.print(f"no taxon {done.without_taxon:,} classes")
    if done.not_classes:
        shown = ", ".join(done.not_classes[:5]) + (", ..." if len(done.not_classes) > 5 else "")
        results.print(f"no class {len(done.not_classes):,} names of the checklist: {escape(shown)}")

"""The commands that find something out from a destination: arguments to calls, results to words."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click
from rich.markup import escape

from birder_ray.arguments import destination, pairs
from birder_ray.console import results
from birder_ray.errors import LimitExceeded

_source_option = click.option(
    "--source-option", "source_options", multiple=True, metavar="KEY=VALUE", help="fsspec option of the source"
)


def _alike(command: Any) -> Any:
    """Decorator: the options that say what is alike."""
    for option in (
        click.option("--max-bits", type=click.IntRange(0, 7), default=4, show_default=True,
                     help="of 64 that may differ between perceptual hashes"),
        click.option("--min-cosine", type=click.FloatRange(0.5, 1), default=0.95, show_default=True,
                     help="between embeddings"),
        click.option("--by", type=click.Choice(["embedding", "image", "all"]), default="embedding", show_default=True,
                     help="image: reads every image again, for copies of files and perceptual hashes"),
        _source_option,
    ):  # fmt: skip
        command = option(command)
    return command


@click.command()
@destination
@click.option("--to", metavar="FILE", help="local file to write instead of DEST/report.html")
@click.option(
    "--thumbnails", type=click.IntRange(0), default=48, show_default=True, help="images read from the source to show"
)
@_source_option
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
@click.option("--html", "page", metavar="FILE", help="local file to write a page of all of it to")
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
    a: str,
    b: str,
    options: tuple[str, ...],
    file: Any,
    page: str | None,
    samples: int,
    memory: str,
    **limits: float | None,
) -> None:
    """Say what changed from destination A to B, sample by sample; exit code 1 where it is more than a limit allows."""
    from birder_ray.compare import Limits, lines, violations, write_html
    from birder_ray.compare import compare as join
    from birder_ray.page import needs

    if page:
        needs("--html")
    opened, allowed = pairs("--option", options), Limits(**limits)
    found = join(a, b, opened, opened, samples=samples, memory=memory)
    over = violations(found, allowed)
    if file:
        json.dump({**found.told(), "limits": asdict(allowed), "violations": over}, file, indent=1, ensure_ascii=False)
        file.write("\n")
    if page:
        write_html(found, allowed, page)
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
@click.option(
    "--checklist", metavar="FILE", help="taxa that occur there, one a line, or a table with bounds beside them"
)
@click.option("--photos", metavar="FILE", help="CSV or Parquet: date, latitude and longitude, for a list with bounds")
@click.option("--sample-column", default="sample", show_default=True, help="of the photos: ids as in the tables")
@click.option("--memory", default="1GB", show_default=True, help="for the photos; what is more goes to TMPDIR")
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
    if done.photos:
        known = f"{done.photos.dates:,} with a date, {done.photos.places:,} with a place"
        results.print(f"photos   {known}, of {done.rows:,} images")
    if done.without_taxon:
        results.print(f"no taxon {done.without_taxon:,} classes")
    if done.not_classes:
        shown = ", ".join(done.not_classes[:5]) + (", ..." if len(done.not_classes) > 5 else "")
        results.print(f"no class {len(done.not_classes):,} names of the checklist: {escape(shown)}")


@click.command()
@destination
@click.argument("query")
@click.option("-k", type=click.IntRange(1, 1000), default=10, show_default=True, help="how many")
@click.option("--json", "file", type=click.File("w", lazy=True), help="write them there; - for the terminal")
@click.option("--model", metavar="PATH", help="where the weights of the run are now, to score an image")
@_source_option
def similar(
    dest: str, query: str, options: tuple[str, ...], source_options: tuple[str, ...], file: Any, **told: Any
) -> None:
    """Find the images of DEST nearest to QUERY, a sample of it or else the path or URL of an image."""
    from birder_ray.neighbours import similar as find
    from birder_ray.neighbours.similar import lines

    found = find(dest, query, pairs("--option", options), pairs("--source-option", source_options), **told)
    _tell(found.told(), lines(found), file)


@click.command()
@destination
@_alike
def duplicates(dest: str, options: tuple[str, ...], source_options: tuple[str, ...], **told: Any) -> None:
    """Find images that DEST has twice, as copies, by perceptual hash or by embedding; adds DEST/duplicates/."""
    from birder_ray.neighbours import duplicates as find
    from birder_ray.neighbours.duplicates import lines

    for line in lines(find(dest, pairs("--option", options), pairs("--source-option", source_options), **told)):
        results.print(escape(line), soft_wrap=True)


@click.command()
@click.argument("train")
@click.argument("test")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="fsspec option of both")
@_alike
@click.option("--json", "file", type=click.File("w", lazy=True), help="write all numbers there; - for the terminal")
@click.option("--to", metavar="FILE", help="write the images of TEST there, with their counterparts: .parquet or .csv")
@click.option("--max-rate", type=click.FloatRange(0, 1), help="images of TEST that may be in TRAIN, of each kind")
def leakage(
    train: str,
    test: str,
    options: tuple[str, ...],
    source_options: tuple[str, ...],
    file: Any,
    to: str | None,
    max_rate: float | None,
    **told: Any,
) -> None:
    """Find images of TEST that TRAIN has, too, or as good as; exit code 1 where that is more than --max-rate."""
    from birder_ray.neighbours import leakage as find
    from birder_ray.neighbours import violations
    from birder_ray.neighbours.leakage import lines, writer

    save = writer(to) if to else None
    found = find(train, test, pairs("--option", options), pairs("--source-option", source_options), **told)
    over = [] if max_rate is None else violations(found, max_rate)
    if save:
        save(found)
    _tell({**found.told(), "max_rate": max_rate, "violations": over}, lines(found), file)
    if over:
        raise LimitExceeded(f"{found.test} has more of {found.train} than is allowed: {'; '.join(over)}")


def _tell(numbers: dict[str, Any], lines: Iterable[str], file: Any) -> None:
    """All numbers to `file`, if there is one, and the words to the terminal, unless that is it."""
    if file:
        json.dump(numbers, file, indent=1, ensure_ascii=False)
        file.write("\n")
    if not file or file.name != "-":
        for line in lines:
            results.print(escape(line), soft_wrap=True)


@click.command()
@destination
@click.option(
    "--to", required=True, type=click.Choice(["csv", "dwca", "megadetector", "coco", "huggingface"]), help="format"
)
@click.option(
    "-o", "--output", required=True, metavar="OUT", help="file to make, for huggingface a folder; any fsspec URL"
)
@click.option("--output-option", "output_options", multiple=True, metavar="KEY=VALUE", help="fsspec option of OUT")
@click.option("--overwrite", is_flag=True, help="replace what is at OUT")
@click.option("--taxonomy", metavar="FILE", help="CSV or Parquet: class_name and ranks, if the class names have none")
@click.option("--no-rollup", is_flag=True, help="leave out what birder-ray rollup has added")
@click.option("--photos", metavar="FILE", help="CSV or Parquet, by sample: date, latitude, longitude")
@click.option("--sample-column", default="sample", show_default=True, help="of --photos: ids as in the tables")
@click.option("--memory", default="1GB", show_default=True, help="for that join; what is more goes to TMPDIR")
@click.option("--blank", multiple=True, metavar="NAME", help="class or taxon that stands for no animal; repeatable")
@click.option("--person", multiple=True, metavar="NAME", help="the same for people")
@click.option("--vehicle", multiple=True, metavar="NAME", help="the same for vehicles")
@click.option("--min-probability", type=click.FloatRange(0, 1), default=0.0, help="dwca: that an occurrence must reach")
@click.option("--metadata", metavar="FILE", help="YAML: title, description, creators, licence (dwca, huggingface)")
@click.option("--media-url", metavar="URL", help="dwca: below which the photos are published")
@click.option("--escape-formulas", is_flag=True, help="csv: an apostrophe before what a spreadsheet would execute")
def export(
    dest: str, options: tuple[str, ...], to: str, output: str, output_options: tuple[str, ...], **told: Any
) -> None:
    """Write DEST as CSV, Darwin Core Archive, MegaDetector or COCO JSON, or a Hugging Face data set."""
    from birder_ray.export import Options, lines
    from birder_ray.export import export as make

    overwrite, rollup = told.pop("overwrite"), not told.pop("no_rollup")
    opened, place = pairs("--option", options), pairs("--output-option", output_options)
    for line in lines(make(dest, to, output, Options(rollup=rollup, **told), opened, place, overwrite)):
        results.print(escape(line), soft_wrap=True)

"""The commands that look after a destination: arguments to calls, results to words."""

from typing import Any

import click
from rich.markup import escape

from birder_ray.arguments import destination, pairs
from birder_ray.console import results, show_status
from birder_ray.errors import VerifyFailed
from birder_ray.schema import ERRORS, OUTPUT_TABLES


@click.command()
@destination
def status(dest: str, options: tuple[str, ...]) -> None:
    """Say how far the run that writes DEST is, from its commits alone."""
    from birder_ray.verify import status as read_status

    show_status(read_status(dest, pairs("--option", options)))


@click.command()
@destination
@click.option("--deep", is_flag=True, help="decode and check every value, and score some images again")
@click.option("--rescore", type=click.IntRange(0), help="with --deep: how many images to score again [default: 16]")
@click.option("--seed", default=0, help="of the choice of those images")
@click.option(
    "--source-option", "source_options", multiple=True, metavar="KEY=VALUE", help="fsspec option of the source"
)
@click.option("--model", help="where the weights are now, if not where the run had them")
def verify(dest: str, options: tuple[str, ...], deep: bool, rescore: int | None, **told: Any) -> None:
    """Prove that DEST is complete and unharmed; exit code 1 and a list of what is wrong if not."""
    from birder_ray.verify import verify as check

    if not deep and (rescore is not None or told["model"] or told["source_options"]):
        raise click.UsageError("--rescore, --model and --source-option go with --deep")
    opened = pairs("--option", options)
    totals = check(dest, opened, deep)
    results.print(
        f"ok: {totals.samples:,} samples read = {totals.rows:,} rows in each table + {totals.errors:,} quarantined, "
        f"in {totals.units:,} units, every part as committed{', every value sound' if deep else ''}"
    )
    if deep and rescore != 0:
        _rescore(dest, opened, 16 if rescore is None else rescore, **told)


def _rescore(
    dest: str, options: dict[str, Any], images: int, seed: int, source_options: tuple[str, ...], model: str | None
) -> None:
    from birder_ray.rescore import rescore

    found = rescore(dest, images, seed, options, pairs("--source-option", source_options), model)
    for line in found.skipped:
        results.print(f"not scored again: {escape(line)}")
    if found.wrong or (found.asked and not found.same):
        wrong = "; ".join(found.wrong[:10]) or "--rescore 0 leaves that out"
        raise VerifyFailed(
            f"{found.same} of {found.asked} images scored again gave the numbers that are stored: {wrong}"
        )
    results.print(f"ok: {found.same} of {found.asked} images scored again gave the numbers that are stored")


@click.command()
@destination
@click.option("--deep", is_flag=True, help="go by every value, too, as verify --deep does")
def repair(dest: str, options: tuple[str, ...], deep: bool) -> None:
    """Take back the units of DEST that verify finds damaged, so that the same command as before scores them again."""
    from birder_ray.repair import repair as mend

    done = mend(dest, pairs("--option", options), deep)
    if not done.findings:
        results.print(f"{escape(done.destination)}: nothing is damaged")
        return
    for finding in done.findings[:10]:
        results.print(f"found    {escape(str(finding))}")
    if len(done.findings) > 10:
        results.print(f"         and {len(done.findings) - 10:,} more")
    results.print(
        f"done     {len(done.units):,} units taken back, {len(done.strays):,} files removed that no commit knows"
    )
    results.print("next     run the same command as before: it scores what is missing and finishes")


@click.command()
@destination
@click.option("--at", help="date or time, UTC: list the parts of that state instead, one URL a line")
@click.option("--table", type=click.Choice([*OUTPUT_TABLES, ERRORS]), default="predictions", help="with --at")
def snapshots(dest: str, options: tuple[str, ...], at: str | None, table: str) -> None:
    """List what DEST held and when; with --at, where the parts of a table as it was are now."""
    from birder_ray import history
    from birder_ray.folder import Folder

    folder = Folder(dest, pairs("--option", options))
    folder.check()
    if at is not None:
        click.echo("\n".join(history.files(folder, at, (table,))[table]))
        return
    for name in history.names(folder):
        found = history.read(folder, name)
        results.print(f"{name}  {found.samples:,} images of {len(found.inputs):,} shards, recipe {found.recipe}")

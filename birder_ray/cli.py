"""The command line: arguments to a RunConfig, results to words. No logic of its own."""

import json
import os
import sys
from functools import cache
from typing import Any

import click
from rich.markup import escape

from birder_ray import cli_destination, cli_findings
from birder_ray.arguments import config_of, job_options
from birder_ray.config import RunConfig
from birder_ray.console import Console, fail, messages, results, show_probe, show_rerun, show_summary
from birder_ray.errors import LOG_FORMAT, BirderRayError, ConfigError, Stopped, printable
from birder_ray.jsonlog import JsonLog
from birder_ray.stop import STOPPED, Stop


@cache
def _log() -> JsonLog | None:
    """Where messages go instead of to people."""
    if os.environ.get(LOG_FORMAT) != "json":
        return None
    log = JsonLog()
    log.listen()
    return log


def _run(config: RunConfig) -> None:
    from birder_ray.pipeline import run

    observer = _log() or Console()
    with _stop(config, observer).on_signals() as stop:
        summary = run(config, observer, stop)
    observer.done(summary)
    show_summary(summary)


def _stop(config: RunConfig, observer: Console | JsonLog) -> Stop:
    last_words = observer.last_words if isinstance(observer, JsonLog) else lambda: STOPPED
    return Stop(config.run.stop_within_s, observer.notice, last_words)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="birder-ray")
@click.option(
    "--log", type=click.Choice(["text", "json"]), default="text", envvar=LOG_FORMAT, help="form of the messages"
)
def app(log: str) -> None:
    """Score millions of wildlife photos with pretrained birder networks, exactly once."""
    os.environ[LOG_FORMAT] = log


@app.command()
@click.argument("source", nargs=-1, required=True)
@job_options
def score(source: tuple[str, ...], **told: Any) -> None:
    """Score SOURCE...: directories, images, globs, tar shards, Parquet files or manifests, on any fsspec URL.

    Running the same command again resumes, and does nothing where all is done.
    """
    _run(config_of(source, told))


@app.command()
@click.argument("pipeline")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="override a field, e.g. model.size=384")
def run(pipeline: str, overrides: tuple[str, ...]) -> None:
    """Score as the file PIPELINE (YAML) says."""
    _run(RunConfig.from_yaml(pipeline, overrides))


@app.command()
@click.argument("pipeline")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="override a field, e.g. model.size=384")
@click.option("--keep", type=click.IntRange(1), help="snapshots to keep [default: all]")
@click.option("--json", "as_json", is_flag=True, help="print what was done as JSON, for a scheduler")
def rerun(pipeline: str, overrides: tuple[str, ...], keep: int | None, as_json: bool) -> None:
    """Bring the output of PIPELINE up to date: score what is new or changed in its source, retire what has left it."""
    from birder_ray.rerun import rerun as follow

    config, observer = RunConfig.from_yaml(pipeline, overrides), _log() or Console()
    with _stop(config, observer).on_signals() as stop:
        done = follow(config, observer, stop, keep)
    observer.done(done.summary)
    if as_json:
        click.echo(json.dumps(done.told(), ensure_ascii=False))
    else:
        show_rerun(done)


@app.command()
@click.argument("source", nargs=-1, required=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="override a field of a pipeline file")
@click.option(
    "--probe", "probing", is_flag=True, help="measure each step on a bit of SOURCE, and predict the rate here"
)
@job_options
def plan(source: tuple[str, ...], overrides: tuple[str, ...], probing: bool, **told: Any) -> None:
    """Say what `score SOURCE...` or `run PIPELINE.yaml` would do; scores nothing."""
    from birder_ray.preview import preview

    if len(source) == 1 and source[0].endswith((".yaml", ".yml")):
        if any(told.values()):
            raise click.UsageError("a pipeline file takes --set KEY=VALUE, not score's options")
        config = RunConfig.from_yaml(source[0], overrides)
    elif overrides:
        raise click.UsageError("--set is for pipeline files; give score's options here")
    else:
        config = config_of(source, told)
    found = preview(config)
    size = "size unknown" if found.bytes is None else f"{found.bytes / 1e9:,.2f} GB"
    results.print(f"source   {found.shards:,} shards, {size}, {_count(found.samples)} images")
    results.print(f"units    {found.units_done:,} done, {_count(found.units_todo)} to do")
    if found.units_foreign:
        results.print(f"         {found.units_foreign:,} in the output belong to other inputs or another recipe")
    if found.units_growing:
        results.print(f"adds     {' and '.join(found.adds)} to {found.units_growing:,} of them that are there")
    if found.differs:
        fate = "replaced" if config.run.overwrite else "refused "
        results.print(f"{fate} the output holds results of another recipe: {escape(found.differs)}")
    s = found.sizes
    each = f"{s.gpus_per_actor:g} GPU" if s.gpus_per_actor else f"{s.inference_threads} threads and no GPU"
    results.print(
        f"actors   here: {s.preprocess_actors} preprocess, {s.inference_actors} inference with {each} each, batches of "
        f"{s.batch_size or 'the best size'}"
    )
    if probing:
        from birder_ray.probe import probe

        show_probe(probe(config, found))


def _count(number: int | None) -> str:
    return "an unknown number of" if number is None else f"{number:,}"


@app.command()
@click.argument("pattern", default="*")
def models(pattern: str) -> None:
    """List birder's pretrained classification models whose names match PATTERN (inat21, 'hgnet_v2*')."""
    from rich.table import Column, Table

    from birder_ray.backbone import catalogue

    entries = catalogue(pattern)
    if not entries:
        raise ConfigError(f"{pattern}: no pretrained model matches; birder-ray models lists all")
    table = Table(Column("name", no_wrap=True, min_width=max(len(entry.name) for entry in entries)), box=None)
    for heading in ("size (px)", "classes", "params (M)", "on this machine"):
        table.add_column(heading)
    for entry in entries:
        height, width = entry.size
        classes = "" if entry.classes is None else f"{entry.classes:,}"
        size = f"{height}" if height == width else f"{height}x{width}"
        table.add_row(entry.name, size, classes, f"~{entry.file_mb / 4:.1f}", escape(printable(entry.path or "")))
    results.print(table)
    results.print("params: from the size of the float32 file; classes: known once the file is here", style="dim")


@app.command()
@click.argument("folder", default="birder-ray-demo")
def demo(folder: str) -> None:
    """Score bundled real photos with real weights into FOLDER, offline, and show what came out."""
    from birder_ray import demo as demonstration

    config = RunConfig(**demonstration.prepare(folder))
    _run(config)
    demonstration.show(config.destination)


for each in (*vars(cli_destination).values(), *vars(cli_findings).values()):
    if isinstance(each, click.Command):
        app.add_command(each)


def _fail(error: BirderRayError) -> int:
    log = _log()
    return log.failed(error) if log else fail(error)


def main() -> None:
    """Entry point: every error of the user's is one plain line."""
    try:
        app(standalone_mode=False)
    except BirderRayError as error:
        sys.exit(_fail(error))
    except click.ClickException as error:
        sys.exit(_fail(ConfigError(error.format_message())))
    except (KeyboardInterrupt, click.Abort):
        if log := _log():
            log.failed(Stopped(STOPPED))
        else:
            messages.print(STOPPED)
        sys.stdout.flush()
        os._exit(1)  # threads that were in the midst of importing torch can crash an interpreter that ends in order
    except Exception as error:
        if os.environ.get("BIRDER_RAY_DEBUG"):
            raise
        text = f"{type(error).__name__}: {error} (a fault of birder-ray; BIRDER_RAY_DEBUG=1 shows where)"
        sys.exit(_fail(BirderRayError(text)))

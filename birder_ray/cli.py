"""The command line: arguments to a RunConfig, results to words. No logic of its own."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
from rich.markup import escape

from birder_ray.config import RunConfig, override, put
from birder_ray.console import Console, duration, fail, messages, results, show_summary
from birder_ray.errors import BirderRayError, ConfigError

F = TypeVar("F", bound=Callable[..., Any])


def _option(flag: str, path: str, **attributes: Any) -> Callable[[F], F]:
    """An option of the field at dotted `path`, its help text taken from the field."""
    model: Any = RunConfig
    *blocks, name = path.split(".")
    for block in blocks:
        annotation = model.model_fields[block].annotation
        model = next(t for t in (annotation, *getattr(annotation, "__args__", ())) if hasattr(t, "model_fields"))
    field = model.model_fields[name]
    text = attributes.pop("help", None) or field.description or f"{name.replace('_', ' ')}, auto or a number"
    if (
        isinstance(field.default, str | int | float | tuple)
        and field.default is not False
        and "flag_value" not in attributes
    ):
        default = field.default if not isinstance(field.default, tuple) else ",".join(field.default)
        text += f" [default: {default}]"
    return click.option(flag, path.replace(".", "__"), default=None, help=text, **attributes)


_JOB_OPTIONS = [
    _option("--model", "model.name"),
    click.option("-o", "--output", "destination", help="local path or fsspec URL of the folder to write"),
    _option("--network", "model.network"),
    _option("--size", "model.size"),
    _option("--center-crop", "model.center_crop"),
    _option("--simple-crop", "model.simple_crop", is_flag=True),
    _option("--tta", "model.tta", is_flag=True),
    _option("--decoder", "model.decoder"),
    _option("--weights-mirror", "model.weights_mirror"),
    click.option("--outputs", "outputs", help="tables to write, of predictions,embeddings,features [default: all]"),
    _option("--top-k", "outputs.predictions.top_k"),
    _option("--logits", "outputs.predictions.logits", is_flag=True),
    _option("--embedding-dtype", "outputs.embeddings.dtype"),
    _option("--levels", "outputs.features.levels"),
    _option("--pooling", "outputs.features.pooling"),
    _option("--format", "source.format"),
    _option("--image-column", "source.image_column"),
    _option("--id-column", "source.id_column"),
    _option("--label-column", "source.label_column"),
    _option("--limit", "source.limit"),
    click.option("--anonymous", is_flag=True, help="read s3:// sources without credentials"),
    click.option("--endpoint-url", help="S3 endpoint of source and output, e.g. of MinIO or Ceph"),
    _option("--source-option", "source.options", multiple=True, metavar="KEY=VALUE"),
    _option("--output-option", "destination_options", multiple=True, metavar="KEY=VALUE"),
    _option("--dtype", "compute.dtype"),
    _option("--amp", "compute.amp", is_flag=True),
    _option("--engine", "compute.engine"),
    _option("--compile", "compute.engine", flag_value="compiled", help="same as --engine compiled"),
    _option("--batch-size", "compute.batch_size"),
    _option("--preprocess-actors", "compute.preprocess_actors"),
    _option("--inference-actors", "compute.inference_actors"),
    _option("--gpus-per-actor", "compute.gpus_per_actor"),
    _option("--unit-rows", "compute.unit_rows"),
    _option("--ray-address", "compute.ray_address"),
    _option("--max-error-rate", "run.max_error_rate"),
    _option("--overwrite", "run.overwrite", is_flag=True),
    _option("--retry-errors", "run.retry_errors", is_flag=True),
]


def _job_options(command: F) -> F:
    for option in reversed(_JOB_OPTIONS):
        command = option(command)
    return command


def _pairs(flag: str, texts: tuple[str, ...]) -> dict[str, Any]:
    """`KEY=VALUE` texts of an option, values in YAML; dots nest."""
    nested: dict[str, Any] = {}
    for text in texts:
        override(nested, text, flag)
    return nested


def _config(sources: tuple[str, ...], told: dict[str, Any]) -> RunConfig:
    """The RunConfig of command-line arguments; options left out keep their defaults."""
    if not told["model__name"] or not told["destination"]:
        raise ConfigError(
            "give --model and --output, e.g.: birder-ray score photos/ --model hgnet_v2_b2_danube-delta -o scores/"
        )
    fields: dict[str, Any] = {"source": {"uri": list(sources)}}
    anonymous, endpoint = told.pop("anonymous"), told.pop("endpoint_url")
    source_options = _pairs("--source-option", told.pop("source__options"))
    output_options = _pairs("--output-option", told.pop("destination_options"))
    if endpoint and any(uri.startswith("s3") for uri in sources):
        source_options["endpoint_url"] = endpoint
    if endpoint and told["destination"].startswith("s3"):
        output_options["endpoint_url"] = endpoint
    if anonymous:
        source_options["anon"] = True
    names = [name.strip() for name in (told.pop("outputs") or "predictions,embeddings,features").split(",")]
    fields["outputs"] = {name: {} for name in names}
    for name, value in told.items():
        path = name.replace("__", ".")
        if value is None or value is False:
            continue
        if path.startswith("outputs.") and path.split(".")[1] not in names:
            raise ConfigError(f"{path} is an option of a table that --outputs leaves out")
        if path.startswith(("outputs.features.levels", "outputs.features.pooling")) and value != "all":
            value = [part.strip() for part in value.split(",")]
        put(fields, path, value)
    fields["source"]["options"], fields["destination_options"] = source_options, output_options
    return RunConfig(**fields)


def _run(config: RunConfig) -> None:
    from birder_ray.pipeline import run

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    show_summary(run(config, Console()))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="birder-ray")
def app() -> None:
    """Score millions of wildlife photos with pretrained birder networks, exactly once."""


@app.command()
@click.argument("source", nargs=-1, required=True)
@_job_options
def score(source: tuple[str, ...], **told: Any) -> None:
    """Score SOURCE...: directories, images, globs, tar shards, Parquet files or manifests, on any fsspec URL.

    Running the same command again resumes, and does nothing where all is done.
    """
    _run(_config(source, told))


@app.command()
@click.argument("pipeline")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="override a field, e.g. model.size=384")
def run(pipeline: str, overrides: tuple[str, ...]) -> None:
    """Score as the file PIPELINE (YAML) says."""
    _run(RunConfig.from_yaml(pipeline, overrides))


@app.command()
@click.argument("source", nargs=-1, required=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="override a field of a pipeline file")
@_job_options
def plan(source: tuple[str, ...], overrides: tuple[str, ...], **told: Any) -> None:
    """Say what `score SOURCE...` or `run PIPELINE.yaml` would do; scores nothing."""
    from birder_ray.preview import preview

    if len(source) == 1 and source[0].endswith((".yaml", ".yml")):
        if any(told.values()):
            raise click.UsageError("a pipeline file takes --set KEY=VALUE, not score's options")
        config = RunConfig.from_yaml(source[0], overrides)
    elif overrides:
        raise click.UsageError("--set is for pipeline files; give score's options here")
    else:
        config = _config(source, told)
    found = preview(config)
    size = "size unknown" if found.bytes is None else f"{found.bytes / 1e9:,.2f} GB"
    results.print(f"source   {found.shards:,} shards, {size}, {_count(found.samples)} images")
    results.print(f"units    {found.units_done:,} done, {_count(found.units_todo)} to do")
    if found.units_foreign:
        results.print(f"         {found.units_foreign:,} in the output belong to other inputs or another recipe")
    if found.differs:
        fate = "replaced" if config.run.overwrite else "refused "
        results.print(f"{fate} the output holds results of another recipe: {escape(found.differs)}")
    s = found.sizes
    results.print(
        f"actors   here, without a GPU: {s.preprocess_actors} preprocess, {s.inference_actors} inference with "
        f"{s.inference_threads} threads, batches of {s.batch_size}"
    )


def _count(number: int | None) -> str:
    return "an unknown number of" if number is None else f"{number:,}"


@app.command()
@click.argument("dest")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="fsspec option, e.g. endpoint_url=...")
def status(dest: str, options: tuple[str, ...]) -> None:
    """Say how far the run that writes DEST is, from its commits alone."""
    from birder_ray.verify import status as read_status

    found = read_status(dest, _pairs("--option", options))
    totals = found.totals
    state = f"finished {found.finished}" if found.finished else "unfinished; run the same command again to go on"
    results.print(f"{found.destination}: {state}")
    results.print(f"model    {found.model}")
    results.print(f"shards   {found.ended:,} of {found.shards:,} done")
    results.print(f"images   {totals.rows:,} scored, {totals.errors:,} quarantined, in {totals.units:,} units")
    results.print(
        f"bytes    {', '.join(f'{table} {size / 1e6:,.1f} MB' for table, size in totals.bytes.items()) or '0'}"
    )
    results.print(f"seconds  {', '.join(f'{step} {duration(spent)}' for step, spent in totals.seconds.items()) or '0'}")


@app.command()
@click.argument("dest")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="fsspec option, e.g. endpoint_url=...")
def verify(dest: str, options: tuple[str, ...]) -> None:
    """Prove that DEST is complete and unharmed; exit code 1 and a list of what is wrong if not."""
    from birder_ray.verify import verify as check

    totals = check(dest, _pairs("--option", options))
    results.print(
        f"ok: {totals.samples:,} samples read = {totals.rows:,} rows in each table + {totals.errors:,} quarantined, "
        f"in {totals.units:,} units, every part as committed"
    )


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
        table.add_row(entry.name, size, classes, f"~{entry.file_mb / 4:.1f}", entry.path or "")
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


def main() -> None:
    """Entry point: every error of the user's is one plain line."""
    try:
        app(standalone_mode=False)
    except BirderRayError as error:
        sys.exit(fail(error))
    except click.ClickException as error:
        sys.exit(fail(ConfigError(error.format_message())))
    except (KeyboardInterrupt, click.Abort):
        messages.print("stopped; what is committed stands, and the same command goes on from there")
        sys.exit(1)
    except Exception as error:
        if os.environ.get("BIRDER_RAY_DEBUG"):
            raise
        text = f"{type(error).__name__}: {error} (a fault of birder-ray; BIRDER_RAY_DEBUG=1 shows where)"
        sys.exit(fail(BirderRayError(text)))

"""The options of a job on the command line, each its field of a RunConfig, and the RunConfig that they make."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from birder_ray.config import RunConfig
from birder_ray.errors import ConfigError
from birder_ray.fields import override, put

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
    _option("--allow-local-uris", "source.allow_local_uris", is_flag=True),
    click.option("--anonymous", is_flag=True, help="read s3:// sources without credentials"),
    click.option("--endpoint-url", help="S3 endpoint of source and output, e.g. of MinIO or Ceph"),
    _option("--source-option", "source.options", multiple=True, metavar="KEY=VALUE"),
    _option("--output-option", "destination_options", multiple=True, metavar="KEY=VALUE"),
    _option("--dtype", "compute.dtype"),
    _option("--amp", "compute.amp", is_flag=True),
    _option("--engine", "compute.engine"),
    _option("--compile", "compute.engine", flag_value="compiled", help="same as --engine compiled"),
    _option("--decode-on", "compute.decode_on"),
    _option("--batch-size", "compute.batch_size"),
    _option("--preprocess-actors", "compute.preprocess_actors"),
    _option("--inference-actors", "compute.inference_actors"),
    _option("--gpus-per-actor", "compute.gpus_per_actor"),
    _option("--unit-rows", "compute.unit_rows"),
    _option("--ray-address", "compute.ray_address"),
    _option("--max-error-rate", "run.max_error_rate"),
    _option("--stop-within-s", "run.stop_within_s"),
    _option("--sample-timeout-s", "run.sample_timeout_s"),
    _option("--overwrite", "run.overwrite", is_flag=True),
    _option("--incremental", "run.incremental", is_flag=True),
    _option("--retry-errors", "run.retry_errors", is_flag=True),
]


def job_options(command: F) -> F:
    for option in reversed(_JOB_OPTIONS):
        command = option(command)
    return command


def pairs(flag: str, texts: tuple[str, ...]) -> dict[str, Any]:
    """`KEY=VALUE` texts of an option, values in YAML; dots nest."""
    nested: dict[str, Any] = {}
    for text in texts:
        override(nested, text, flag)
    return nested


def config_of(sources: tuple[str, ...], told: dict[str, Any]) -> RunConfig:
    """The RunConfig of command-line arguments; options left out keep their defaults."""
    if not told["model__name"] or not told["destination"]:
        raise ConfigError(
            "give --model and --output, e.g.: birder-ray score photos/ --model hgnet_v2_b2_danube-delta -o scores/"
        )
    fields: dict[str, Any] = {"source": {"uri": list(sources)}}
    anonymous, endpoint = told.pop("anonymous"), told.pop("endpoint_url")
    source_options = pairs("--source-option", told.pop("source__options"))
    output_options = pairs("--output-option", told.pop("destination_options"))
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


def destination(command: F) -> F:
    """Decorator: the argument DEST, and the options that open it."""
    option = click.option(
        "--option", "options", multiple=True, metavar="KEY=VALUE", help="fsspec option, e.g. endpoint_url=..."
    )
    return click.argument("dest")(option(command))

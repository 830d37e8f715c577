"""RunConfig: everything a run is told, checked once, before anything starts.

A pipeline file, the command line and Python all end here. Units stand in the names (`_px`, `_rows`) or in the
field's description; every `auto` is resolved later, where the hardware and the model are known.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from birder_ray.errors import ConfigError
from birder_ray.fields import read_fields

Auto = Literal["auto"]
Pooling = Literal["mean", "max", "std", "gem"]
DType = Literal["float32", "bfloat16", "float16"]
StorageOptions = dict[str, Any]


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _as_size(value: Any) -> Any:
    """384, "384" and "384x512" (height x width), as (height, width)."""
    sides: list[Any] = value.lower().split("x") if isinstance(value, str) else value
    sides = list(sides) if isinstance(sides, list | tuple) else [sides, sides]
    sides = [int(side) if isinstance(side, str) and side.strip().isdecimal() else side for side in sides]
    if isinstance(value, str) and len(sides) == 1:
        sides *= 2
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError("give pixels as 384, or height x width as 384x512")
    return tuple(sides)


def _distinct(value: Any) -> Any:
    if isinstance(value, tuple) and len(set(value)) < len(value):
        raise ValueError("each name may stand once")
    return value


def _share(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError("give a fraction below 1, or a whole number")
    return value


Size = Annotated[tuple[int, int], BeforeValidator(_as_size)]


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceConfig(_Block):
    """Where the images are."""

    uri: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_tuple)] = Field(
        min_length=1, description="one or more directories, files, globs, brace ranges, shards or manifests"
    )
    format: Literal["auto", "images", "tar", "parquet", "manifest"] = Field(
        "auto", description="what the files are; auto: from their names and, for Parquet and CSV, their columns"
    )
    image_column: str | None = Field(None, description="Parquet: the column of image bytes; manifest: of image URIs")
    id_column: str | None = Field(None, description="manifest: the column that names a sample")
    label_column: str | None = Field(None, description="Parquet, manifest, tar .json: the field that holds the label")
    options: StorageOptions = Field(
        default_factory=dict, description="fsspec options of the source, e.g. {anon: true, endpoint_url: ...}"
    )
    limit: Annotated[int, Field(gt=0)] | None = Field(None, description="score only the first so many samples")
    allow_local_uris: bool = Field(
        False, description="let a manifest from elsewhere name files of this machine and hosts of its network"
    )


class ModelConfig(_Block):
    """Which network, and how an image becomes its input."""

    name: str = Field(description="a birder pretrained name, or a path or URL of a .pt or .safetensors checkpoint")
    network: str | None = Field(None, description="birder network of a checkpoint whose file name does not say")
    size: Size | None = Field(None, description="input height and width in pixels; null: the checkpoint's own")
    center_crop: float = Field(1.0, gt=0, le=1, description="fraction of the resized image that the crop keeps")
    simple_crop: bool = Field(False, description="resize the short side and crop, keeping the aspect ratio")
    tta: bool = Field(False, description="probabilities are the mean over birder's five crops")
    decoder: Literal["torchvision", "pil"] = Field(
        "torchvision", description="torchvision: equals birder-predict; pil: equals the model card's infer_image"
    )
    weights_mirror: str | None = Field(None, description="fsspec URL of a folder that holds birder's weight files")


class PredictionsConfig(_Block):
    """Options of the predictions table."""

    top_k: int = Field(5, gt=0, description="classes kept per image")
    logits: bool = Field(False, description="keep the whole vector of logits")


class EmbeddingsConfig(_Block):
    """Options of the embeddings table."""

    dtype: Literal["float32", "float16"] = Field("float32", description="type the vectors are stored in")


class FeaturesConfig(_Block):
    """Options of the features table."""

    levels: (
        Literal["all"]
        | Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_as_tuple), AfterValidator(_distinct)]
    ) = Field("all", description="feature levels, e.g. [stage3, stage4]")
    pooling: Annotated[tuple[Pooling, ...], BeforeValidator(_as_tuple), AfterValidator(_distinct)] = Field(
        ("mean", "max", "std"), min_length=1, description="summaries per level, of mean, max, std, gem"
    )


class OutputsConfig(_Block):
    """Tables to write; one that is left out is not written. Leaving out the whole block writes all three."""

    predictions: PredictionsConfig | None = None
    embeddings: EmbeddingsConfig | None = None
    features: FeaturesConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _named_means_wanted(cls, value: Any) -> Any:
        if isinstance(value, dict):  # `embeddings:` with nothing under it is a table with its defaults
            given = {name: {} if options in (None, True) else options for name, options in value.items()}
            return {name: None if options is False else options for name, options in given.items()}
        return value

    @model_validator(mode="after")
    def _not_empty(self) -> "OutputsConfig":
        if not self.tables:
            raise ValueError("name at least one of predictions, embeddings, features")
        return self

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables to write, in the order of the layout."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)

    @classmethod
    def all(cls) -> "OutputsConfig":
        return cls(predictions=PredictionsConfig(), embeddings=EmbeddingsConfig(), features=FeaturesConfig())


class ComputeConfig(_Block):
    """How the work is done; nothing here changes what is written beyond rounding, except dtype, amp and decode_on."""

    dtype: DType = Field("float32", description="type of the weights and activations")
    amp: bool = Field(False, description="run under torch.autocast in the device's default low precision")
    engine: Literal["auto", "eager", "compiled"] = Field(
        "auto", description="compiled: to native code, once per machine; auto: where the job is long enough"
    )
    decode_on: Literal["cpu", "gpu"] = Field(
        "cpu", description="gpu: JPEGs are decoded there, for CPUs that cannot feed it; other pixels by a rounding"
    )
    batch_size: Annotated[int, Field(gt=0)] | Auto = Field("auto", description="images per forward pass")
    preprocess_actors: Annotated[int, Field(gt=0)] | Auto = "auto"
    inference_actors: Annotated[int, Field(gt=0)] | Auto = "auto"
    gpus_per_actor: Annotated[float, Field(ge=0), AfterValidator(_share)] | Auto = Field(
        "auto", description="GPUs per inference actor, e.g. 0.5 for two on each"
    )
    unit_rows: int = Field(2048, gt=0, description="samples committed at once")
    ray_address: str | None = Field(None, description="auto or host:port of a cluster; null: a private local Ray")
    max_cpus: float = Field(0, ge=0, description="CPUs that the cluster's autoscaler may grow to; 0: those there are")
    max_gpus: float = Field(0, ge=0, description="GPUs that it may grow to; 0: those there are")


class RunOptions(_Block):
    """What this one invocation does with what is there already."""

    overwrite: bool = Field(False, description="replace the results of another recipe in the destination")
    incremental: bool = Field(False, description="follow the source: score what is new, retire what has left it")
    retry_errors: bool = Field(False, description="redo the units that hold quarantined samples")
    max_error_rate: float = Field(
        0.5, ge=0, le=1, description="stop when more than this fraction of the samples is quarantined"
    )
    stop_within_s: float = Field(
        25.0, gt=0, description="seconds that Ctrl-C or SIGTERM leave the units in flight to finish in"
    )
    sample_timeout_s: float = Field(
        60.0, gt=0, description="a sample that takes longer than this to decode, in seconds, is quarantined"
    )


class RunConfig(_Block):
    """One run. `source` and `model` may be given as plain strings.

    Example:
        >>> RunConfig(source="photos/", model="hgnet_v2_b2_danube-delta", destination="scores/").outputs.tables
        ('predictions', 'embeddings', 'features')
    """

    source: SourceConfig
    model: ModelConfig
    outputs: OutputsConfig = Field(default_factory=OutputsConfig.all)
    destination: str = Field(min_length=1, description="local path or fsspec URL of the folder to write")
    destination_options: StorageOptions = Field(default_factory=dict, description="fsspec options of the destination")
    compute: ComputeConfig = Field(default_factory=ComputeConfig)
    run: RunOptions = Field(default_factory=RunOptions)

    @model_validator(mode="before")
    @classmethod
    def _from_strings(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        short = {"source": "uri", "model": "name"}
        return {
            key: {short[key]: item} if key in short and isinstance(item, str | list | tuple) else item
            for key, item in value.items()
            if not (item is None and key in {"outputs", "compute", "run", "destination_options"})
        }

    def __init__(self, **fields: Any):
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ConfigError(_plain(error)) from None

    @classmethod
    def from_yaml(cls, path: str, overrides: tuple[str, ...] = ()) -> "RunConfig":
        """Read a pipeline file (local path or fsspec URL).

        Args:
            path: the file. overrides: `dotted.key=value` texts, their values in YAML.

        Raises:
            ConfigError: the file is missing or is no YAML mapping, or a field is wrong.
        """
        return cls(**read_fields(path, overrides))


def _plain(error: ValidationError) -> str:
    """The first wrong field and what is wrong with it, as its user would say it."""
    first, *rest = error.errors(include_url=False)
    if first["type"] in ("extra_forbidden", "missing"):
        name = ".".join(map(str, first["loc"]))
        return f"{name}: no such option" if first["type"] == "extra_forbidden" else f"{name}: must be given"
    where = _where(first["loc"])
    # a field of several types (`auto` or a number) has one error for each
    alike = [first, *(other for other in rest if _where(other["loc"]) == where)]
    message = ", or ".join(dict.fromkeys(_message(each["msg"]) for each in alike))
    shown = "" if "options" in where else f" (got {first['input']!r:.80})"  # options may hold credentials
    return f"{where}: {message}{shown}" if where else message


def _where(location: tuple[int | str, ...]) -> str:
    """The dotted path that the user wrote: pydantic adds the names of a union's members, as in `constrained-int`."""
    return ".".join(str(part) for part in location if isinstance(part, int) or part.isidentifier())


def _message(text: str) -> str:
    text = re.sub(r"valid dictionary or instance of \w+", "mapping", text)
    return re.sub("^(Value error, |Input |Tuple |String )", "", text).replace(" after validation", "")

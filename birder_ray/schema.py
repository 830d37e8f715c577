"""Names, types and metadata of the output tables: the one place where they are written down."""

from collections.abc import Mapping

import pyarrow as pa

SCHEMA_VERSION = 1

PREDICTIONS = "predictions"
EMBEDDINGS = "embeddings"
FEATURES = "features"
ERRORS = "errors"
OUTPUT_TABLES = (PREDICTIONS, EMBEDDINGS, FEATURES)

READ, DECODE, INFER = "read", "decode", "infer"

WAIT, TRANSFER = "wait", "transfer"
"""Seconds of chunks besides those of the steps: ready between two of them, and unpacked out of the object store."""

ROLLUP, ROLLUP_ABOUT = "rollup", "rollup/_about.json"
"""What `rollup` adds: one part per unit of predictions, and what it says of itself, written last."""

WHOLE_SHARD = -1
"""`index` of the errors row that stands for a shard, not for one of its samples."""

KEY_FIELDS = (
    pa.field("sample", pa.string(), nullable=False),
    pa.field("shard", pa.string(), nullable=False),
    pa.field("index", pa.int64(), nullable=False),
)

ERRORS_SCHEMA = pa.schema(
    [
        *KEY_FIELDS,
        pa.field("step", pa.string(), nullable=False),
        pa.field("error_type", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
    ]
)

CLASSES_KEY_FIELDS = (pa.field("class_index", pa.int32(), nullable=False), pa.field("class_name", pa.string()))


def predictions_schema(num_classes: int, logits: bool) -> pa.Schema:
    """Schema of `predictions`; `logits` adds a vector of `num_classes` float32."""
    fields = [
        *KEY_FIELDS,
        pa.field("label", pa.string()),
        pa.field("prediction", pa.string()),
        pa.field("probability", pa.float32()),
        pa.field("entropy", pa.float32()),
        pa.field("top_indices", pa.list_(pa.int32())),
        pa.field("top_classes", pa.list_(pa.string())),
        pa.field("top_probabilities", pa.list_(pa.float32())),
    ]
    if logits:
        fields.append(pa.field("logits", pa.list_(pa.float32(), num_classes)))
    return pa.schema(fields)


def embeddings_schema(size: int, dtype: str) -> pa.Schema:
    """Schema of `embeddings`: one vector of `size` values, `dtype` float32 or float16."""
    value = pa.float16() if dtype == "float16" else pa.float32()
    return pa.schema([*KEY_FIELDS, pa.field("embedding", pa.list_(value, size))])


def feature_column(level: str, pooling: str) -> str:
    """Column name of one pooled feature level, e.g. `stage1_mean`."""
    return f"{level}_{pooling}"


def features_schema(channels: Mapping[str, int], poolings: tuple[str, ...]) -> pa.Schema:
    """Schema of `features`.

    Args:
        channels: number of channels by feature level, in order, e.g. `{"stage1": 96}`.
        poolings: names of the summaries, e.g. `("mean", "max", "std")`.
    """
    vectors = [
        pa.field(feature_column(level, pooling), pa.list_(pa.float32(), size))
        for level, size in channels.items()
        for pooling in poolings
    ]
    return pa.schema([*KEY_FIELDS, *vectors])


def part_metadata(recipe: str, unit: str) -> dict[str, str]:
    """Key-value metadata that every part carries."""
    return {
        "birder_ray.schema_version": str(SCHEMA_VERSION),
        "birder_ray.recipe": recipe,
        "birder_ray.unit": unit,
    }

"""Arrow tables of a chunk from arrays of numbers."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from birder_ray.chunk import Sample

Columns = dict[str, np.ndarray]
"""Numbers by column name: one row per image, (N, D)."""


def build(
    schema: pa.Schema, shard: str, samples: Sequence[Sample], columns: Columns, class_names: Sequence[str]
) -> pa.Table:
    """Fill `schema`, one row per sample.

    Args:
        schema: from `schema.py`. shard: name of the shard of all samples. samples: N, in order.
        columns: arrays (N, D) by column name; for predictions `top_indices` and `top_probabilities` (N, k) and
            `entropy` (N, 1), from which the other columns follow. class_names: by class index.
    """

    def column(field: pa.Field) -> pa.Array:
        match field.name:
            case "sample" | "index" | "label":
                return pa.array([getattr(sample, field.name) for sample in samples], field.type)
            case "shard":
                return pa.repeat(pa.scalar(shard), len(samples))
            case "prediction":
                return pa.array([class_names[index] for index in columns["top_indices"][:, 0]], field.type)
            case "probability":
                return pa.array(columns["top_probabilities"][:, 0], field.type)
            case "entropy":
                return pa.array(columns["entropy"][:, 0], field.type)
            case "top_classes":
                return _lists(columns["top_indices"], pa.array(class_names, pa.string()))
            case "top_indices" | "top_probabilities":
                return _lists(columns[field.name])
            case _:
                values = pa.array(columns[field.name].reshape(-1), field.type.value_type)
                return pa.FixedSizeListArray.from_arrays(values, type=field.type)

    return pa.table([column(field) for field in schema], schema=schema)


def _lists(rows: np.ndarray, names: pa.Array | None = None) -> pa.Array:
    count, width = rows.shape
    values = pa.array(rows.reshape(-1))
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, values if names is None else names.take(values))


def to_ipc(table: pa.Table) -> bytes:
    """Arrow IPC stream of `table`."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data

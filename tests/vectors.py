"""Destinations whose embeddings are given: parts and records as a run commits them, without its steps."""

import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from birder_ray.commit import Ledger
from birder_ray.folder import Folder
from birder_ray.parts import encode, part_name
from birder_ray.plan import split_name, unit_name
from birder_ray.record import record_name
from birder_ray.schema import EMBEDDINGS, PREDICTIONS, embeddings_schema
from tests.built import NAMES, SCHEMAS, build

SHARD = "a.tar"


def destination(folder: Folder, units: Iterable[np.ndarray], dtype: str = "float32", first: int = 0) -> None:
    """Write embeddings, N,D of each unit, as those of one shard; predictions follow from the row.

    Args:
        first: number of the first unit, where there are some already.
    """
    if not first:
        build(folder, {SHARD: 5}, outputs={"predictions": {}, "embeddings": {"dtype": dtype}})
    unit = next(iter(Ledger(folder).units()))
    prefix, record = split_name(unit)[0], folder.read_json(record_name(unit))
    start = sum(each.rows for each in Ledger(folder).records(Ledger(folder).units())) if first else 0
    for number, vectors in enumerate(units, first):
        name, rows = unit_name(prefix, number), len(vectors)
        index = np.arange(start, start + rows)
        keys = [pa.array([f"{SHARD}/{at}" for at in index]), pa.array([SHARD] * rows), pa.array(index)]
        flat = pa.array(vectors.astype(dtype).ravel())
        schema = embeddings_schema(vectors.shape[1], dtype)
        vector = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        told = SCHEMAS[PREDICTIONS]
        known = dict(zip(told.names, keys, strict=False))
        known |= {"prediction": pa.array(np.array(NAMES)[index % 3]), "probability": pa.array(index % 10 / 10)}
        columns = [known.get(each.name, pa.nulls(rows, each.type)).cast(each.type) for each in told]
        parts = {}
        for table, rows_of in {
            EMBEDDINGS: pa.table([*keys, vector], schema=schema),
            PREDICTIONS: pa.table(columns, schema=told),
        }.items():
            data = encode(rows_of, {"birder_ray.unit": name})
            folder.write(part_name(table, name), data)
            parts[table] = {"rows": rows, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        counts = {"samples": rows, "rows": rows, "errors": 0, "unit": name, "parts": parts}
        folder.write_json(record_name(name), {**record, **counts})
        start += rows

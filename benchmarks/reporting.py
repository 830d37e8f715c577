"""Seconds and peak memory of `birder-ray report`, on a made-up destination of the real format.

    PYTHONPATH=. python benchmarks/reporting.py [--rows 1000000] [--classes 10000] [--size 256] [--keep FOLDER]

Units of 2,048 rows; predictions, and float16 embeddings of `--size` values. There is no source, so no pictures. The
report is a process of its own; its peak is the RSS of that.
"""

import argparse
import hashlib
import tempfile

import numpy as np
import pyarrow as pa
from measuring import again

from birder_ray.commit import Ledger
from birder_ray.folder import Folder
from birder_ray.parts import encode, part_name
from birder_ray.plan import split_name, unit_name
from birder_ray.record import record_name
from birder_ray.report import report
from birder_ray.schema import EMBEDDINGS, PREDICTIONS, embeddings_schema, predictions_schema
from tests import built

UNIT = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=256, help="of an embedding")
    parser.add_argument("--keep", metavar="FOLDER", help="where the destination is made, and stays")
    parser.add_argument("--of", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.of:
        report(told.of, thumbnails=48)
        return
    with tempfile.TemporaryDirectory(prefix="br-report-") as folder:
        folder = told.keep or folder
        if not Folder(folder).exists("manifest.json"):
            make(Folder(folder), told.rows, told.classes, told.size)
        seconds, peak = again("--of", folder)
    print("| rows | s | peak, MiB |\n|---|---|---|")
    print(f"| {told.rows:,} | {seconds:.1f} | {peak:,.0f} |")


def make(folder: Folder, rows: int, classes: int, size: int) -> None:
    """A destination of one shard."""
    built.NAMES[:] = [f"{n:05d}_Animalia_Chordata_Aves_Order_Family_Genus_species-{n}" for n in range(classes)]
    outputs = {"predictions": {}, "embeddings": {"dtype": "float16"}}
    built.build(folder, {"a.tar": 5}, outputs=outputs)
    (unit,) = Ledger(folder).units()
    prefix, record = split_name(unit)[0], folder.read_json(record_name(unit))
    names, dice = np.array(built.NAMES), np.random.default_rng(0)
    for number in range(-(-rows // UNIT)):
        index = np.arange(number * UNIT, min(rows, (number + 1) * UNIT))
        n = len(index)
        predicted = np.minimum(dice.pareto(1, n) * 10, classes - 1).astype(int)
        near = dice.standard_normal((n, size), np.float32) + np.sin(predicted[:, None] + np.arange(size))
        known = {
            "sample": pa.array([f"shard-{i // 10000:06d}.tar/{i * 7919 % 100000007:012x}.jpg" for i in index]),
            "shard": pa.array(["a.tar"] * n),
            "index": pa.array(index),
            "prediction": pa.array(names[predicted]),
            "probability": pa.array(dice.beta(5, 2, n).astype(np.float32)),
            "entropy": pa.array(dice.random(n, np.float32) * 5),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(near.astype(np.float16).ravel()), size),
        }
        schemas = {PREDICTIONS: predictions_schema(classes, False), EMBEDDINGS: embeddings_schema(size, "float16")}
        parts, name = {}, unit_name(prefix, number)
        for table, schema in schemas.items():
            made = pa.table([known.get(field.name, pa.nulls(n, field.type)) for field in schema], schema=schema)
            data = encode(made, {"birder_ray.unit": name})
            folder.write(part_name(table, name), data)
            parts[table] = {"rows": n, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        counts = {"samples": n, "rows": n, "errors": 0}
        folder.write_json(record_name(name), {**record, **counts, "unit": name, "parts": parts})


if __name__ == "__main__":
    main()

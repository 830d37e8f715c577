"""Seconds, peak memory and size of `birder-ray export`, over predictions that are made up.

    python benchmarks/exporting.py [--rows 1000000] [--to csv dwca ...] [--folder /tmp]

A destination of one shard: 1,000 classes with their taxonomy, the five likeliest stored, units of 2,048, names of 33
characters; predictions alone, and a file with date and place of each. Each export is a process of its own; its peak is
the RSS of that.
"""

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measuring import again

from birder_ray.classes import classes_table
from birder_ray.commit import CLASSES, Ledger
from birder_ray.export import FORMATS, Options, export
from birder_ray.folder import Folder
from birder_ray.parts import encode, part_name
from birder_ray.plan import split_name, unit_name
from birder_ray.record import record_name
from birder_ray.schema import PREDICTIONS, predictions_schema
from tests.built import build

UNIT, COUNT, TOP = 2048, 1000, 5
LETTERS = ["".join(chr(97 + int(digit)) for digit in f"{n:04d}") for n in range(COUNT)]
NAMES = [
    f"{n:05d}_Animalia_Chordata_Aves_Order{each[1]}_Family{each[2]}_Genus{each[2:]}_{each}"
    for n, each in enumerate(LETTERS)
]
METADATA = "title: Made up\ndescription: For a benchmark.\nlicence: CC0-1.0\ncreators: [{organization: birder-ray}]\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--to", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--folder", help="in which temporary files are made")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="br-export-", dir=told.folder) as folder:
        make(Path(folder), told.rows)
        print("| format | samples | s | peak, MiB | size, MB |\n|---|---|---|---|---|")
        for to in told.to:
            seconds, peak = again(folder, to)
            out = Path(folder, to)
            files = [out] if out.is_file() else [each for each in out.rglob("*") if each.is_file()]
            size = sum(each.stat().st_size for each in files) / 1e6
            print(f"| {to} | {told.rows:,} | {seconds:.1f} | {peak:,.0f} | {size:,.0f} |", flush=True)


def make(place: Path, rows: int) -> None:
    """The destination, and the files that go with it."""
    folder = Folder(str(place / "scores"))
    build(folder, {"a.tar": 2}, outputs={"predictions": {"top_k": TOP}})
    folder.write(CLASSES, encode(classes_table(NAMES), {}))
    (place / "metadata.yaml").write_text(METADATA)
    (unit,) = Ledger(folder).units()
    prefix, record = split_name(unit)[0], folder.read_json(record_name(unit))
    schema, dice, names = predictions_schema(COUNT, logits=False), np.random.default_rng(0), np.array(NAMES)
    dated = pa.schema(
        [("sample", pa.string()), ("date", pa.date32()), ("latitude", pa.float64()), ("longitude", pa.float64())]
    )
    with pq.ParquetWriter(place / "photos.parquet", dated) as photos:
        for number in range(-(-rows // UNIT)):
            index = np.arange(number * UNIT, min(rows, (number + 1) * UNIT))
            n = len(index)
            first = np.minimum(dice.pareto(1, n) * 10, COUNT - 1).astype(np.int32)
            top = (first[:, None] + np.arange(TOP, dtype=np.int32) * 7) % COUNT
            probabilities = -np.sort(-dice.dirichlet(np.full(TOP + 1, 0.3), n).astype(np.float32), axis=1)[:, :TOP]
            offsets = pa.array(np.arange(0, n * TOP + 1, TOP, dtype=np.int32))
            known = {
                "sample": pa.array([f"shard-{i // 10000:06d}.tar/{i * 7919 % 100000007:012x}.jpg" for i in index]),
                "shard": pa.array(["a.tar"] * n),
                "index": pa.array(index),
                "prediction": pa.array(names[first]),
                "probability": pa.array(probabilities[:, 0]),
                "entropy": pa.array(dice.random(n, np.float32)),
                "top_indices": pa.ListArray.from_arrays(offsets, pa.array(top.ravel())),
                "top_classes": pa.ListArray.from_arrays(offsets, pa.array(names[top.ravel()])),
                "top_probabilities": pa.ListArray.from_arrays(offsets, pa.array(probabilities.ravel())),
            }
            table = pa.table([known.get(field.name, pa.nulls(n, field.type)) for field in schema], schema=schema)
            name = unit_name(prefix, number)
            data = encode(table, {"birder_ray.unit": name})
            folder.write(part_name(PREDICTIONS, name), data)
            part = {"rows": n, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            counts = {"samples": n, "rows": n, "errors": 0}
            folder.write_json(record_name(name), {**record, **counts, "unit": name, "parts": {PREDICTIONS: part}})
            where = [
                pa.array((20000 + index % 365).astype(np.int32)).cast(pa.date32()),
                dice.random(n) * 90,
                dice.random(n) * 90,
            ]
            photos.write_table(pa.table([known["sample"], *map(pa.array, where)], schema=dated))


def one(folder: str, to: str) -> None:
    photos = {"photos": f"{folder}/photos.parquet"} if to in ("csv", "dwca", "coco") else {}
    metadata = {"metadata": f"{folder}/metadata.yaml"} if to in ("dwca", "huggingface") else {}
    export(f"{folder}/scores", to, f"{folder}/{to}", Options(**photos, **metadata))


if __name__ == "__main__":
    if len(sys.argv) == 3 and not sys.argv[1].startswith("-"):
        one(sys.argv[1], sys.argv[2])
    else:
        main()

"""Seconds and peak memory of `birder-ray compare`, over predictions that are made up.

    python benchmarks/comparing.py [--rows 1000000] [--memory 1GB 256MB]

Two destinations of as many samples: 1,000 classes, units of 2,048, names of 33 characters, about 6 % flips. Each
comparison is a process of its own; its peak is the RSS of that.
"""

import argparse
import hashlib
import sys
import tempfile

import numpy as np
import pyarrow as pa
from measuring import again

from birder_ray.commit import Ledger
from birder_ray.compare import compare
from birder_ray.folder import Folder
from birder_ray.parts import encode, part_name
from birder_ray.plan import split_name, unit_name
from birder_ray.record import record_name
from birder_ray.schema import PREDICTIONS, predictions_schema
from tests.built import build

UNIT, CLASSES, FLIPS = 2048, 1000, 0.03
NAMES = np.array([f"{n:05d}_Animalia_Chordata_Aves_Order_Family_Genus_species{n}" for n in range(CLASSES)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--memory", nargs="+", default=["1GB", "256MB"])
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="br-compare-") as folder:
        sides = [f"{folder}/{name}" for name in ("a", "b")]
        for seed, side in enumerate(sides, 1):
            make(Folder(side), told.rows, seed)
        print("| samples on each side | `--memory` | s | peak, MiB |\n|---|---|---|---|")
        for memory in told.memory:
            seconds, peak = again(*sides, memory)
            print(f"| {told.rows:,} | {memory} | {seconds:.1f} | {peak:,.0f} |", flush=True)


def make(folder: Folder, rows: int, seed: int) -> None:
    """A destination of one shard; `seed` says which samples are predicted otherwise, at random."""
    build(folder, {"a.tar": 5}, outputs={"predictions": {}})
    (unit,) = Ledger(folder).units()
    prefix, record = split_name(unit)[0], folder.read_json(record_name(unit))
    schema = predictions_schema(CLASSES, logits=False)
    first, dice = np.random.default_rng(0), np.random.default_rng(seed)
    for number in range(-(-rows // UNIT)):
        index = np.arange(number * UNIT, min(rows, (number + 1) * UNIT))
        n = len(index)
        predicted = np.minimum(first.pareto(1, n) * 10, CLASSES - 1).astype(int)
        predicted = np.where(dice.random(n) < FLIPS, dice.integers(0, CLASSES, n), predicted)
        known = {
            "sample": pa.array([f"shard-{i // 10000:06d}.tar/{i * 7919 % 100000007:012x}.jpg" for i in index]),
            "shard": pa.array(["a.tar"] * n),
            "index": pa.array(index),
            "prediction": pa.array(NAMES[predicted]),
            "probability": pa.array(dice.random(n, np.float32)),
            "entropy": pa.array(dice.random(n, np.float32)),
        }
        table = pa.table([known.get(field.name, pa.nulls(n, field.type)) for field in schema], schema=schema)
        name = unit_name(prefix, number)
        data = encode(table, {"birder_ray.unit": name})
        folder.write(part_name(PREDICTIONS, name), data)
        part = {"rows": n, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        counts = {"samples": n, "rows": n, "errors": 0}
        folder.write_json(record_name(name), {**record, **counts, "unit": name, "parts": {PREDICTIONS: part}})


if __name__ == "__main__":
    if len(sys.argv) == 4 and not sys.argv[1].startswith("-"):
        compare(sys.argv[1], sys.argv[2], memory=sys.argv[3])
    else:
        main()

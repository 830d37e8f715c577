"""Time and peak memory of `evaluate`, on a made-up destination of the real format.

    python benchmarks/evaluating.py [--rows 1000000] [--classes 10000] [--file] [--bootstrap 1000]

Rows are made and written unit by unit. `evaluate` runs in a process of its own, whose peak memory (RSS) is told.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from birder_ray.evaluate import evaluate, lines
from birder_ray.folder import Folder
from tests.graded import graded


def rows(classes: int, start: int, stop: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Predictions that are right for two of three images; a wrong class is any other."""
    dice, n = np.random.default_rng(start), stop - start
    top = (dice.integers(0, classes, (n, 1)) + np.arange(5) * 7) % classes
    other = dice.integers(0, classes, n)
    labels = np.where(dice.random(n) < 0.67, top[:, 0], other)
    first = dice.beta(5, 2, n)
    probabilities = np.column_stack([first, *[(1 - first) / 8] * 4])
    return [f"class {each}" for each in labels], top, probabilities


def make(folder: str, told: argparse.Namespace) -> None:
    names = [f"class {n}" for n in range(told.classes)]
    graded(Folder(folder), names, {"a.tar": told.rows}, lambda _, *at: rows(told.classes, *at), unit_rows=2048)
    with open(f"{folder}/../labels.csv", "w") as file:
        file.write("sample,label\n")
        for start in range(0, told.rows, 2048):
            for n, label in enumerate(rows(told.classes, start, min(told.rows, start + 2048))[0], start):
                file.write(f"a.tar/{n}.jpg,{label}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=10_000)
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument("--file", action="store_true", help="labels from a file, joined; else those of the run")
    parser.add_argument("--of", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.of:
        started = time.monotonic()
        found = evaluate(told.of, f"{told.of}/../labels.csv" if told.file else None, bootstrap=told.bootstrap)
        seconds = time.monotonic() - started
        print("\n".join(lines(found)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{told.rows:,} rows, {told.bootstrap} bootstrap samples: {seconds:.1f} s, peak RSS {peak:.0f} MiB")
        return
    with tempfile.TemporaryDirectory(prefix="br-bench-") as place:
        folder = f"{place}/out"
        make(folder, told)
        for bootstrap in dict.fromkeys((0, told.bootstrap)):
            again = [*sys.argv, "--of", folder, "--bootstrap", str(bootstrap)]
            subprocess.run([sys.executable, *again], check=True)


if __name__ == "__main__":
    main()

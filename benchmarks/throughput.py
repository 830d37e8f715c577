"""images/s of birder-ray with all three outputs, of the forward pass alone, and of `birder-predict`, in one run.

    python benchmarks/throughput.py [--network hieradet_small] [--engine eager] [--rounds 3] [--skip-predict]
    python benchmarks/throughput.py --network efficientnet_lite0 --source tar folder parquet s3

Photos are those of ../shared/photos, repeated; networks with seeded random weights. The contestants take turns in each
round. The forward passes give predictions only, on pixels that are in memory already, in as many processes of one
thread as there are cores, and in one process of as many threads, with either engine; packages of the compiled one are
made before the first round. A ceiling is the larger rate of a round. birder-ray's rate is that from the commit after a
third of its units to the last one, birder-predict's what it says of itself; it has a quarter of the photos.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from measuring import FIRST, RATE, WALL, Figures, Found, PeakMemory, note, publish, steady_rate
from photos import as_files, sources


class Network(NamedTuple):
    """As published, and so many images that birder-ray takes about a minute for them on two cores."""

    title: str
    classes: int
    size_px: int
    images: int


NETWORKS = {
    "hgnet_v2_b2": Network("HGNet v2 B2", 368, 256, 2560),
    "hieradet_small": Network("HieraDet Small", 10_000, 384, 192),
    "efficientnet_lite0": Network("EfficientNet-Lite0", 1000, 224, 2560),
}
OURS = "birder-ray"
FORWARD_S = 10
PREDICT = {
    "birder-predict, outputs + embeddings": ["--save-output", "--save-embeddings"],
    "birder-predict, detection features": ["--save-detection-features"],
}

SCORE = """
import json, sys
from birder_ray import RunConfig, run
summary = run(RunConfig(**json.loads(sys.argv[1])))
print(json.dumps({"images": summary.images}))
"""

FORWARD = """
import json, sys, time
import torch
from birder_ray.config import ComputeConfig, ModelConfig, OutputsConfig
from birder_ray.infer import Infer
checkpoint, engine, tables, threads, batch_size, seconds = sys.argv[1:]
outputs = OutputsConfig.all() if tables == "all" else OutputsConfig(predictions={})
told = {"threads": int(threads), "batch_size": int(batch_size)}
infer = Infer(ModelConfig(name=checkpoint), outputs, ComputeConfig(engine=engine), **told)
pixels = torch.randint(0, 256, (int(batch_size), *infer.backbone.size, 3), dtype=torch.uint8)
with torch.inference_mode():
    while infer.engine(pixels) and infer.engine.name != engine:
        time.sleep(3)  # the compiler needs the core
    infer.engine(pixels)
    print("ready", flush=True)
    sys.stdin.readline()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < float(seconds):
        infer.engine(pixels)
        done += len(pixels)
print(json.dumps({"images_per_s": done / (time.perf_counter() - started)}))
"""


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What the benchmarks of whole runs are told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="hgnet_v2_b2")
    parser.add_argument("--engine", choices=("eager", "compiled"), default="compiled")
    parser.add_argument("--images", type=int, help="a multiple of 64; default: what suits the network")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--json", help="also write the figures to this file")
    return parser


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--source", nargs="+", choices=("tar", "folder", "parquet", "s3"), default=["tar"])
    parser.add_argument("--skip-predict", action="store_true")
    told = parser.parse_args()
    told.images = told.images or NETWORKS[told.network].images
    with tempfile.TemporaryDirectory(prefix="br-bench-") as folder:
        found = measure(Path(folder), told)
    publish(f"Throughput: {title(told)}", with_derived(found, told.engine), told.json, f"{OURS}, {told.source[0]}")


def title(told: argparse.Namespace) -> str:
    network = NETWORKS[told.network]
    return (
        f"{network.title} at {network.size_px} px, {told.images:,} photos, {told.engine} engine, "
        f"batches of {told.batch_size}, {rounds(told)}"
    )


def rounds(told: argparse.Namespace) -> str:
    return "1 round" if told.rounds == 1 else f"{told.rounds} rounds"


def measure(folder: Path, told: argparse.Namespace) -> Found:
    checkpoint = prepare(folder, told)
    shapes = sorted({(os.cpu_count() or 1, 1), (1, os.cpu_count() or 1)})
    for _, threads in shapes:
        forward(checkpoint, "compiled", "predictions", 1, threads, told.batch_size, 0)
    few = None if told.skip_predict else as_files(folder / "few", max(16, told.images // 4))
    found: Found = {}
    with sources(told.source, folder, told.images) as made:
        for _ in range(told.rounds):
            for kind, source in made.items():
                note(found, f"{OURS}, {kind}", score(folder, checkpoint, source, told))
            for engine in ("compiled", "eager"):
                for workers, threads in shapes:
                    rate = forward(checkpoint, engine, "predictions", workers, threads, told.batch_size, FORWARD_S)
                    note(found, f"forward only, {engine}, {workers} x {threads} threads", {RATE: rate})
            for name, options in PREDICT.items() if few else ():
                note(found, name, {RATE: predict(folder, few, options, told)})
    return found


def prepare(folder: Path, told: argparse.Namespace) -> Path:
    """A checkpoint of random weights, and a cache that holds the packages that birder-ray needs for it."""
    from birder_ray.testing import tiny_checkpoint

    os.environ.setdefault("BIRDER_RAY_CACHE", str(folder / "cache"))  # `make bench` has one for all its scripts
    network, checkpoint = NETWORKS[told.network], folder / "models" / f"{told.network}_bench.pt"
    checkpoint.parent.mkdir()
    tiny_checkpoint(str(checkpoint), network=told.network, num_classes=network.classes, size=network.size_px)
    if told.engine == "compiled":
        forward(checkpoint, "compiled", "all", 1, 1, told.batch_size, 0)
    return checkpoint


def forward(
    checkpoint: Path, engine: str, tables: str, workers: int, threads: int, batch_size: int, seconds: float
) -> float:
    """images/s of `workers` processes together, after a warm-up that also compiles what is not there."""
    arguments = [str(checkpoint), engine, tables, str(threads), str(batch_size), str(seconds)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", FORWARD, *arguments], **pipes) for _ in range(workers)]
    for process in processes:
        if process.stdout.readline() != "ready\n":
            sys.exit(f"the forward pass failed: {arguments}")
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(json.loads(process.communicate()[0])["images_per_s"] for process in processes)


def score(
    folder: Path, checkpoint: Path, source: dict[str, Any], told: argparse.Namespace, pss: bool = False
) -> Figures:
    """A run in a process of its own, into `folder`/out; first output: the first commit, from the start of the process.

    pss: see `PeakMemory`.
    """
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    config = {
        "source": source,
        "model": str(checkpoint),
        "destination": str(out),
        "compute": {"batch_size": told.batch_size, "unit_rows": unit_rows(told.images), "engine": told.engine},
    }
    started = time.time()
    command = [sys.executable, "-c", SCORE, json.dumps(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    memory = PeakMemory(process.pid, pss)
    output, errors = process.communicate()
    wall, peaks = time.time() - started, memory.stop()
    if process.returncode or json.loads(output.splitlines()[-1])["images"] != told.images:
        sys.exit(f"{output}\n{errors[-3000:]}")
    commits = [(file.stat().st_mtime, json.loads(file.read_text())["rows"]) for file in (out / "_commits").iterdir()]
    return {RATE: steady_rate(commits), FIRST: min(commits)[0] - started, WALL: wall, **peaks}


def unit_rows(images: int) -> int:
    """As many as leave at least six units to take a rate from, and no batch short."""
    return next((rows for rows in (128, 64, 32) if images >= 6 * rows), 16)


def predict(folder: Path, flat: Path, options: list[str], told: argparse.Namespace) -> float:
    """images/s that `birder-predict` reports of itself, start-up left out."""
    results = folder / "results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir()
    command = [
        str(Path(sys.executable).with_name("birder-predict")), "-n", told.network, "-t", "bench", *options,
        "--output-format", "parquet", "--batch-size", str(told.batch_size), "--skip-results-analysis",
        "--num-workers", "1", "--chunk-size", "100", str(flat),
    ]  # fmt: skip
    environment = {**os.environ, "MODELS_DIR": str(folder / "models"), "RESULTS_DIR": str(results)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)
    rates = re.findall(r"\(([\d.]+) samples/sec\)", done.stderr + done.stdout)
    if done.returncode or not rates:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return float(rates[-1])


def with_derived(found: Found, engine: str) -> Found:
    """Also what follows from the rates of each round: the ceilings, and both runs of birder-predict as one."""
    rates = {name: figures[RATE] for name, figures in found.items()}
    starts = {"same engine": f"forward only, {engine}", "best engine": "forward only"}
    ceilings = {f"ceiling, {name}": {RATE: [max(turn) for turn in _turns(rates, it)]} for name, it in starts.items()}
    ours = {name: figures for name, figures in found.items() if name.startswith(OURS)}
    both = [1 / sum(1 / rate for rate in turn) for turn in _turns(rates, "birder-predict")]
    return ours | ceilings | found | ({"birder-predict, both for the same tables": {RATE: both}} if both else {})


def _turns(rates: dict[str, list[float]], start: str) -> list[tuple[float, ...]]:
    """By round, the rates of the contestants whose names begin with `start`."""
    return list(zip(*(values for name, values in rates.items() if name.startswith(start)), strict=True))


if __name__ == "__main__":
    main()

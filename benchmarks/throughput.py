"""images/s of `score` with all three outputs, of the forward pass alone, and of `birder-predict`, in one run.

    python benchmarks/throughput.py [--network hieradet_small] [--engine eager] [--rounds 3] [--skip-predict]

Photos are those of ../shared/photos, repeated; networks with seeded random weights. Every figure is a median over the
rounds, in which the contestants take turns; ratios compare figures of one run. The forward passes run on pixels that
are in memory already, in as many processes of one thread as there are cores, and in one process of as many threads; for
the compiled engine, packages are made before the first round.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "photos"
NETWORKS = {"hgnet_v2_b2": (368, 256), "hieradet_small": (10_000, 384), "efficientnet_lite0": (1000, 224)}
"""Classes and size, as published."""

UNIT_ROWS = 32

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
        time.sleep(1)
    infer.engine(pixels)
    print("ready", flush=True)
    sys.stdin.readline()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < float(seconds):
        infer.engine(pixels)
        done += len(pixels)
print(json.dumps({"images_per_s": done / (time.perf_counter() - started)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="hgnet_v2_b2")
    parser.add_argument("--engine", choices=("eager", "compiled"), default="compiled")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--skip-predict", action="store_true")
    parser.add_argument("--json", help="also write the figures to this file")
    told = parser.parse_args()
    photos = sorted(PHOTOS.glob("*.JPEG"))
    if not photos:
        sys.exit(f"no photos in {PHOTOS}")
    with tempfile.TemporaryDirectory(prefix="br-bench-") as folder:
        found = measure(Path(folder), photos, told)
    report(found, told)
    if told.json:
        Path(told.json).write_text(json.dumps(found, indent=1))


def measure(folder: Path, photos: list[Path], told: argparse.Namespace) -> dict[str, list[float]]:
    checkpoint, tars, flat = prepare(folder, photos, told.network, told.images)
    os.environ["BIRDER_RAY_CACHE"] = str(folder / "cache")
    cores = os.cpu_count() or 1
    forward(checkpoint, told.engine, "all", 1, 1, told.batch_size, 0)  # so that the package of `score` is there
    found: dict[str, list[float]] = {}
    for turn in range(told.rounds + 1):  # the first one compiles, and does not count
        rates = {
            f"forward, {told.engine}, {workers} x {threads}": forward(
                checkpoint, told.engine, "predictions", workers, threads, told.batch_size, 15 if turn else 0
            )
            for workers, threads in {(cores, 1), (1, cores)}
        }
        if not turn:
            continue
        rates["score"], rates["first commit (s)"], rates["wall (s)"] = score(folder, checkpoint, tars, told)
        if not told.skip_predict:
            for name, options in {
                "predict: outputs + embeddings": ["--save-output", "--save-embeddings"],
                "predict: detection features": ["--save-detection-features"],
            }.items():
                rates[name] = predict(folder, flat, options, told)
        for name, rate in rates.items():
            found.setdefault(name, []).append(rate)
        print({name: round(rate, 2) for name, rate in rates.items()}, flush=True)
    return found


def forward(
    checkpoint: Path, engine: str, tables: str, workers: int, threads: int, batch_size: int, seconds: float
) -> float:
    """images/s of `workers` processes together."""
    arguments = [str(checkpoint), engine, tables, str(threads), str(batch_size), str(seconds)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", FORWARD, *arguments], **pipes) for _ in range(workers)]
    for process in processes:
        if process.stdout.readline() != "ready\n":
            sys.exit(f"the forward pass failed: {arguments}")
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(json.loads(process.communicate()[0])["images_per_s"] for process in processes)


def prepare(folder: Path, photos: list[Path], network: str, images: int) -> tuple[Path, Path, Path]:
    """A checkpoint, tar shards of 100 photos each, and the same photos as files."""
    from birder_ray.testing import tiny_checkpoint

    models, tars, flat = folder / "models", folder / "tars", folder / "flat" / "any"
    for each in (models, tars, flat):
        each.mkdir(parents=True)
    checkpoint = models / f"{network}_bench.pt"
    classes, size = NETWORKS[network]
    tiny_checkpoint(str(checkpoint), network=network, num_classes=classes, size=size)
    for start in range(0, images, 100):
        with tarfile.open(tars / f"bench-{start // 100:06d}.tar", "w") as tar:
            for number in range(start, min(start + 100, images)):
                photo = photos[number % len(photos)]
                tar.add(photo, f"{number:06d}.jpg")
                shutil.copyfile(photo, flat / f"{number:06d}.jpg")
    return checkpoint, tars, flat.parent


def score(folder: Path, checkpoint: Path, tars: Path, told: argparse.Namespace) -> tuple[float, float, float]:
    """images/s over the last two thirds of the units; seconds from the start to the first commit, and to the end."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    config = {
        "source": str(tars),
        "model": str(checkpoint),
        "destination": str(out),
        "compute": {"batch_size": told.batch_size, "unit_rows": UNIT_ROWS, "engine": told.engine},
    }
    started = time.time()
    _json([sys.executable, "-c", SCORE, json.dumps(config)])
    wall = time.time() - started
    commits = sorted(
        (file.stat().st_mtime, json.loads(file.read_text())["rows"]) for file in (out / "_commits").iterdir()
    )
    steady = commits[len(commits) // 3 :]  # actors are still being added during the first third
    rate = sum(rows for _, rows in steady[1:]) / (steady[-1][0] - steady[0][0])
    return rate, commits[0][0] - started, wall


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


def _json(command: list[str]) -> dict:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def report(found: dict[str, list[float]], told: argparse.Namespace) -> None:
    middle = {name: statistics.median(values) for name, values in found.items()}
    size = NETWORKS[told.network][1]
    print(f"\n{told.images} photos, {told.network} at {size} px, {told.engine}, batch {told.batch_size}", end="")
    print(f", {told.rounds} rounds, medians\n")
    print("| | images/s | score is |\n|---|---|---|")
    for name, value in middle.items():
        if "(s)" not in name:
            print(f"| {name} | {value:.1f} | {middle['score'] / value:.2f} x |")
    if "predict: detection features" in middle:
        both = 1 / sum(1 / value for name, value in middle.items() if name.startswith("predict"))
        print(f"| predict: its two runs for the same tables | {both:.1f} | {middle['score'] / both:.2f} x |")
    first, wall = middle["first commit (s)"], middle["wall (s)"]
    print(f"\nfirst commit, of {UNIT_ROWS} photos, after {first:.1f} s, whole run {wall:.1f} s")


if __name__ == "__main__":
    main()

"""images/s of `score` with all three outputs, of the forward pass alone, and of `birder-predict`, in one run.

    python benchmarks/throughput.py [--images 400] [--rounds 3] [--skip-predict]

Photos are those of ../shared/photos, repeated; HGNet v2 B2 at 256 px with seeded random weights. Every figure is
a median over the rounds, in which the contestants take turns; ratios compare figures of one run.
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
NETWORK, CLASSES, SIZE = "hgnet_v2_b2", 368, 256
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
from birder_ray.backbone import Backbone, resolve
from birder_ray.config import ModelConfig
from birder_ray.infer import _keep_memory
if sys.argv[5] == "kept":
    _keep_memory()
torch.set_num_threads(int(sys.argv[2]))
backbone = Backbone(resolve(ModelConfig(name=sys.argv[1])), levels=(), reduce=lambda level: {})
images = torch.rand((int(sys.argv[3]), 3, 256, 256))
with torch.inference_mode():
    backbone.logits(images)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < float(sys.argv[4]):
        backbone.logits(images)
        done += len(images)
print(json.dumps({"images_per_s": done / (time.perf_counter() - started)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    checkpoint, tars, flat = prepare(folder, photos, told.images)
    threads = os.cpu_count() or 1
    names = ("forward", "forward, plain malloc", "score", "first commit (s)", "wall (s)")
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(told.rounds):
        arguments = [str(checkpoint), str(threads), str(told.batch_size), "12"]
        for name, memory in {"forward": "kept", "forward, plain malloc": "returned"}.items():
            found[name].append(_json([sys.executable, "-c", FORWARD, *arguments, memory])["images_per_s"])
        rate, first, wall = score(folder, checkpoint, tars, told.batch_size)
        found["score"].append(rate)
        found["first commit (s)"].append(first)
        found["wall (s)"].append(wall)
        if not told.skip_predict:
            for name, options in {
                "predict: outputs + embeddings": ["--save-output", "--save-embeddings"],
                "predict: detection features": ["--save-detection-features"],
            }.items():
                found.setdefault(name, []).append(predict(folder, flat, options, told.batch_size))
        print({name: round(values[-1], 2) for name, values in found.items()}, flush=True)
    return found


def prepare(folder: Path, photos: list[Path], images: int) -> tuple[Path, Path, Path]:
    """A checkpoint, tar shards of 100 photos each, and the same photos as files."""
    from birder_ray.testing import tiny_checkpoint

    models, tars, flat = folder / "models", folder / "tars", folder / "flat" / "any"
    for each in (models, tars, flat):
        each.mkdir(parents=True)
    checkpoint = models / f"{NETWORK}_bench.pt"
    tiny_checkpoint(str(checkpoint), network=NETWORK, num_classes=CLASSES, size=SIZE)
    for start in range(0, images, 100):
        with tarfile.open(tars / f"bench-{start // 100:06d}.tar", "w") as tar:
            for number in range(start, min(start + 100, images)):
                photo = photos[number % len(photos)]
                tar.add(photo, f"{number:06d}.jpg")
                shutil.copyfile(photo, flat / f"{number:06d}.jpg")
    return checkpoint, tars, flat.parent


def score(folder: Path, checkpoint: Path, tars: Path, batch_size: int) -> tuple[float, float, float]:
    """images/s over the last two thirds of the units; seconds from the start to the first commit, and to the end."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    config = {
        "source": str(tars),
        "model": str(checkpoint),
        "destination": str(out),
        "compute": {"batch_size": batch_size, "unit_rows": UNIT_ROWS},
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


def predict(folder: Path, flat: Path, options: list[str], batch_size: int) -> float:
    """images/s that `birder-predict` reports of itself, start-up left out."""
    results = folder / "results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir()
    command = [
        str(Path(sys.executable).with_name("birder-predict")), "-n", NETWORK, "-t", "bench", *options,
        "--output-format", "parquet", "--batch-size", str(batch_size), "--skip-results-analysis",
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
    print(f"\n{told.images} photos, {NETWORK} at {SIZE} px, batch {told.batch_size}, {told.rounds} rounds, medians\n")
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

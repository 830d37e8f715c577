"""What the compiled engine gains and costs, and how far its numbers are from the eager ones, in one run per network.

    python benchmarks/engines.py [--network hieradet_small] [--batch-size 8] [--rounds 3] [--photos 64] [--json FILE]

One thread, all three outputs, pixels in memory; medians of rounds in which the engines take turns. EfficientNet-Lite0
has its real weights, the others seeded ones. `torch.compile` is what a user would write, with freezing; it has to
compile in every process.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from throughput import NETWORKS, PHOTOS

from birder_ray.config import ComputeConfig, ModelConfig, OutputsConfig
from birder_ray.demo import efficientnet_lite0_checkpoint
from birder_ray.infer import Infer
from birder_ray.preprocess import Preprocess
from birder_ray.scoring import Results
from birder_ray.testing import tiny_checkpoint

_SECONDS = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="hgnet_v2_b2")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photos", type=int, default=64, help="over which the numbers are compared")
    parser.add_argument("--json", help="also write the figures to this file")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="br-bench-") as folder:
        os.environ["BIRDER_RAY_CACHE"] = f"{folder}/cache"
        found = measure(Path(folder), told)
    print(f"\n{told.network}, batches of {told.batch_size}, one thread, {told.rounds} rounds, medians\n")
    for name, value in found.items():
        print(f"| {name} | {value:.3g} |")
    if told.json:
        Path(told.json).write_text(json.dumps(found, indent=1))


def measure(folder: Path, told: argparse.Namespace) -> dict[str, float]:
    model = _checkpoint(folder, told.network)
    eager, compiled = (_infer(model, engine, told.batch_size) for engine in ("eager", "compiled"))
    photos = sorted(PHOTOS.glob("*.JPEG"))[: told.photos]
    if not photos:
        sys.exit(f"no photos in {PHOTOS}")
    preprocess = Preprocess(eager.backbone.weights.input_spec(model))
    pixels = torch.stack([preprocess.image(photo.read_bytes()) for photo in photos]).permute(0, 2, 3, 1).contiguous()
    batches = [each for each in pixels.split(told.batch_size) if len(each) == told.batch_size]
    found: dict[str, float] = {}
    with torch.inference_mode():
        found["compiled: seconds to make the package"] = _until_compiled(compiled, batches[0])
        started = time.perf_counter()
        later = _infer(model, "compiled", told.batch_size)
        built = time.perf_counter()
        later.engine(batches[0])
        found["compiled: seconds of the first batch, package there, both engines run"] = time.perf_counter() - built
        found["eager: seconds to build and check the network"] = built - started
        found["compiled: MB of the package"] = compiled.engine._path.stat().st_size / 1e6
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        plain = torch.compile(_infer(model, "eager", told.batch_size).scorer, dynamic=False)
        started = time.perf_counter()
        plain(batches[0])
        found["torch.compile: seconds of the first batch"] = time.perf_counter() - started
    with torch.inference_mode():
        found |= _differences(eager, compiled, batches)
    engines: dict[str, Callable[[torch.Tensor], Results]] = {
        "eager": eager.engine,
        "compiled": compiled.engine,
        "torch.compile": plain,
    }
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(told.rounds):
        for name, engine in engines.items():
            rates[name].append(_rate(engine, batches))
        print({name: round(values[-1], 2) for name, values in rates.items()}, flush=True)
    return {f"{name}: images/s": statistics.median(values) for name, values in rates.items()} | found


def _checkpoint(folder: Path, network: str) -> ModelConfig:
    path, (classes, size) = folder / f"{network}_bench.pt", NETWORKS[network]
    if network == "efficientnet_lite0":
        efficientnet_lite0_checkpoint(path)
        return ModelConfig(name=str(path), center_crop=0.875, simple_crop=True)
    tiny_checkpoint(str(path), network=network, num_classes=classes, size=size)
    return ModelConfig(name=str(path))


def _infer(model: ModelConfig, engine: Any, batch_size: int) -> Infer:
    outputs, compute = OutputsConfig.all(), ComputeConfig(engine=engine)
    return Infer(model, outputs, compute, device="cpu", threads=1, batch_size=batch_size)


def _until_compiled(infer: Infer, pixels: torch.Tensor) -> float:
    started = time.perf_counter()
    infer.engine(pixels)
    while not infer.engine._path.exists():
        time.sleep(0.5)
    seconds = time.perf_counter() - started
    while not infer.engine.compiled:
        infer.engine(pixels)
    return seconds


def _differences(eager: Infer, compiled: Infer, batches: list[torch.Tensor]) -> dict[str, float]:
    """Largest absolute ones, of the columns of which a bound is promised."""
    found: dict[str, float] = {}
    for batch in batches:
        ours, theirs = compiled.engine(batch), eager.engine(batch)
        for name, values in theirs.items():
            if name in ("top_probabilities", "embedding") or name.endswith("_mean"):
                kind = "level means" if name.endswith("_mean") else name
                difference = float((ours[name] - values).abs().max())
                found[f"difference: {kind}"] = max(found.get(f"difference: {kind}", 0.0), difference)
    return found


def _rate(engine: Callable[[torch.Tensor], Results], batches: list[torch.Tensor]) -> float:
    with torch.inference_mode():
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < _SECONDS:
            batch = batches[done % len(batches)]
            engine(batch)
            done += 1
        return done * len(batch) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()

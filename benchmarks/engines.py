"""What the compiled engine gains and costs, and how far its numbers are from the eager ones, in one run per network.

    python benchmarks/engines.py [--network hieradet_small] [--batch-size 8] [--rounds 3] [--images 64] [--json FILE]

One thread, all three outputs, pixels in memory; the engines take turns in each round. EfficientNet-Lite0 has its real
weights, the others seeded ones. `torch.compile` is what a user would write, with freezing; it has to
compile in every process.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import RATE, Figures, Found, note, publish
from photos import repeated
from throughput import NETWORKS, arguments, rounds

from birder_ray.config import ComputeConfig, ModelConfig, OutputsConfig
from birder_ray.demo import efficientnet_lite_checkpoint
from birder_ray.infer import Infer
from birder_ray.preprocess import Preprocess
from birder_ray.scoring import Results
from birder_ray.testing import tiny_checkpoint

_SECONDS = 10.0


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(images=64)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="br-bench-") as folder:
        os.environ["BIRDER_RAY_CACHE"] = f"{folder}/cache"  # of its own: it measures the compiler
        found = measure(Path(folder), told)
    network = NETWORKS[told.network]
    title = f"Engines: {network.title} at {network.size_px} px, one thread, batches of {told.batch_size}"
    publish(f"{title}, {rounds(told)}", found, told.json, "eager")


def measure(folder: Path, told: argparse.Namespace) -> Found:
    model = _checkpoint(folder, told.network)
    eager, compiled = (_infer(model, engine, told.batch_size) for engine in ("eager", "compiled"))
    preprocess = Preprocess(eager.backbone.weights.input_spec(model))
    photos = [preprocess.image(photo.read_bytes()) for _, photo in repeated(told.images)]
    pixels = torch.stack(photos).permute(0, 2, 3, 1).contiguous()
    batches = [each for each in pixels.split(told.batch_size) if len(each) == told.batch_size]
    once: dict[str, Figures] = {"eager": {}, "compiled": {}, "torch.compile": {}}
    with torch.inference_mode():
        once["compiled"]["compiling (s)"] = _until_compiled(compiled, batches[0])
        started = time.perf_counter()
        torch._inductor.aoti_load_package(str(compiled.engine._path))
        once["compiled"]["loading (s)"] = time.perf_counter() - started
        once["compiled"]["package (MB)"] = compiled.engine._path.stat().st_size / 1e6
        once["compiled"] |= _differences(eager, compiled, batches)
    plain = torch.compile(_infer(model, "eager", told.batch_size).scorer, dynamic=False)

    def frozen(batch: torch.Tensor) -> Results:  # in another mode than that of its first call, it is compiled anew
        with torch.inference_mode(False), torch.no_grad(), torch._inductor.config.patch(freezing=True):
            return plain(batch)

    started = time.perf_counter()
    frozen(batches[0])
    once["torch.compile"]["compiling (s)"] = time.perf_counter() - started
    engines: dict[str, Callable[[torch.Tensor], Results]] = {
        "eager": eager.engine,
        "compiled": compiled.engine,
        "torch.compile": frozen,
    }
    found: Found = {}
    for turn in range(told.rounds):
        for name, engine in engines.items():
            note(found, name, {RATE: _rate(engine, batches), **({} if turn else once[name])})
    return found


def _checkpoint(folder: Path, network: str) -> ModelConfig:
    path, about = folder / f"{network}_bench.pt", NETWORKS[network]
    if network == "efficientnet_lite0":
        efficientnet_lite_checkpoint(path)
        return ModelConfig(name=str(path), center_crop=0.875, simple_crop=True)
    tiny_checkpoint(str(path), network=network, num_classes=about.classes, size=about.size_px)
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


def _differences(eager: Infer, compiled: Infer, batches: list[torch.Tensor]) -> Figures:
    """Largest absolute ones, of the columns of which a bound is promised."""
    found: Figures = {}
    for batch in batches:
        ours, theirs = compiled.engine(batch), eager.engine(batch)
        for name, values in theirs.items():
            if name in ("top_probabilities", "embedding") or name.endswith("_mean"):
                kind = "level means" if name.endswith("_mean") else name.replace("_", " ")
                difference = float((ours[name] - values).abs().max())
                found[f"{kind} apart"] = max(found.get(f"{kind} apart", 0.0), difference)
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

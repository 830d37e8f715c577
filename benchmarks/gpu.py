"""The table of a GPU in one call of under ten minutes: its ceilings, and how much of them the actors reach.

    python benchmarks/gpu.py --photos ../shared/photos [--networks hgnet_v2_b2 ...] [--seconds 6] [--json gpu.json]

Without Ray: the actors' plain callables, fed by processes that decode real photos into shared memory. Random weights;
every output; HGNet and EfficientNet in float16, HieraDet in bfloat16. `--device cpu` rehearses it in float32. Where Ray
is installed, `--with-ray 50000` also scores so many photos as a user would.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RATE, Found, note, publish, steady_rate
from photos import as_tars, photo_files
from throughput import NETWORKS, SCORE

from birder_ray.chunk import Chunk, InputSpec, Sample
from birder_ray.config import ComputeConfig, ModelConfig, OutputsConfig
from birder_ray.device import hardware, settle
from birder_ray.infer import Infer
from birder_ray.preprocess import Preprocess
from birder_ray.testing import tiny_checkpoint

DTYPES = {"hgnet_v2_b2": "float16", "hieradet_small": "bfloat16", "efficientnet_lite0": "float16"}
ROWS = 256
COMPILING_S = 180


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(DTYPES))
    parser.add_argument("--photos", type=Path, help="folder of .JPEG files; default: ../shared/photos")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--decoders", type=int, default=max(1, (os.cpu_count() or 1) - 2), help="processes that decode")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--with-ray", type=int, default=0, metavar="IMAGES")
    parser.add_argument("--json", help="also write the figures to this file")
    told = parser.parse_args()
    photos = sorted(told.photos.glob("*.JPEG")) if told.photos else photo_files()
    found: Found = {}
    with tempfile.TemporaryDirectory(prefix="br-gpu-") as folder:
        os.environ["BIRDER_RAY_CACHE"] = f"{folder}/cache"
        for network in told.networks:
            measure(Path(folder), network, photos, told, found)
    publish(f"GPU: {hardware(torch.device(told.device))[0]}, {told.decoders} decoders", found, told.json)


def measure(folder: Path, network: str, photos: list[Path], told: argparse.Namespace, found: Found) -> None:
    checkpoint = folder / f"{network}_gpu.pt"
    _, classes, size, _ = NETWORKS[network]
    tiny_checkpoint(str(checkpoint), network=network, num_classes=classes, size=size)
    model = ModelConfig(name=str(checkpoint))
    encoded = [photo.read_bytes() for photo in photos]
    dtype = DTYPES[network] if told.device != "cpu" else "float32"
    infer = make(model, dtype, told.device, "eager")
    spec = infer.backbone.weights.input_spec(model)
    name = f"{NETWORKS[network].title}, {dtype}"
    note(found, f"{name}: numbers", apart(model, infer, Preprocess(spec), encoded))
    for engine in ("eager", "compiled"):
        infer = make(model, dtype, told.device, engine)
        if engine == "compiled" and not compiled(infer):
            print(f"{name}: not compiled within {COMPILING_S} s", file=sys.stderr)
            break
        title = f"{name}, {engine}, batches of {infer.batch_size}"
        ceiling = forward(infer, told.seconds)
        note(found, f"{title}: forward only", {RATE: ceiling})
        for at_once in (1, 2):
            rate = actor(infer, at_once, told.seconds, ready(spec))
            note(found, f"{title}: actor, {at_once} chunks at once", {RATE: rate, "of the ceiling": rate / ceiling})
        with Decoders(spec, encoded, told.decoders) as chunks:
            rate = actor(infer, 2, told.seconds, chunks)
        note(found, f"{title}: decoding too", {RATE: rate, "of the ceiling": rate / ceiling})
        rate = actor(infer, 2, told.seconds, undecoded(spec, encoded))
        note(found, f"{title}: decoding on the GPU too", {RATE: rate, "of the ceiling": rate / ceiling})
    with Decoders(spec, encoded, told.decoders) as chunks:
        note(found, f"{name}: decoding alone", {RATE: drained(chunks, told.seconds)})
    if told.device != "cpu":
        note(found, f"{name}: nvJPEG alone", {RATE: nvjpeg(encoded, told.seconds)})
    if told.with_ray and importlib.util.find_spec("ray"):
        note(found, f"{name}: birder-ray score", {RATE: with_ray(folder, checkpoint, dtype, told)})


def make(model: ModelConfig, dtype: str, device: str, engine: str) -> Infer:
    return Infer(model, OutputsConfig.all(), ComputeConfig(dtype=dtype, engine=engine), device=device)


def compiled(infer: Infer) -> bool:
    deadline = time.monotonic() + COMPILING_S
    pixels = np.random.default_rng(0).integers(0, 256, (infer.batch_size, *infer.backbone.size, 3), np.uint8)
    while not infer.engine.compiled and time.monotonic() < deadline:
        infer._batch(infer.engine, pixels)()
        time.sleep(1)
    return infer.engine.compiled


@torch.inference_mode()
def forward(infer: Infer, seconds: float) -> float:
    """images/s of the engine on pixels that are on the device, nothing copied back."""
    shape = (infer.batch_size, *infer.backbone.size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=infer.device)
    for _ in range(3):
        infer.engine(pixels)
    settle(infer.device)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for _ in range(4):
            infer.engine(pixels)
        settle(infer.device)
        done += 4 * len(pixels)
    return done / (time.perf_counter() - started)


def ready(spec: InputSpec) -> Iterator[Chunk]:
    """The same chunk of noise again and again."""
    images = np.random.default_rng(0).integers(0, 256, (ROWS, *spec.size, 3), np.uint8)
    chunk = Chunk("unit", "shard", 0, True, True, _samples(), [], images=images)
    while True:
        yield chunk


def undecoded(spec: InputSpec, encoded: list[bytes]) -> Iterator[Chunk]:
    """The same photos again and again, as JPEG: what the inference step gets with --decode-on gpu."""
    data = [encoded[number % len(encoded)] for number in range(ROWS)]
    blank = Chunk("unit", "shard", 0, True, True, _samples(), [], data=data)
    chunk = Preprocess(spec, decode_on="gpu")(blank)
    while True:
        yield chunk


def _samples() -> list[Sample]:
    return [Sample(f"shard/{number}.jpg", number, None, f"file:///{number}.jpg") for number in range(ROWS)]


def actor(infer: Infer, at_once: int, seconds: float, chunks: Iterator[Chunk]) -> float:
    """images/s of tables from chunks in host memory, with so many threads, the first second left out."""
    for _ in range(at_once):
        infer(next(chunks))
    done: list[float] = []

    def work(chunk: Chunk) -> None:
        infer(chunk)
        done.append(time.perf_counter())

    started = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        pending = []
        while time.perf_counter() - started < seconds + 1:
            pending = [each for each in pending if not each.done()]
            if len(pending) <= at_once:
                pending.append(pool.submit(work, next(chunks)))
            else:
                time.sleep(0.001)
        for each in pending:
            each.result()
    steady = [moment for moment in done if started + 1 < moment <= started + 1 + seconds]
    if len(steady) < 2:
        return len(done) * ROWS / (done[-1] - started)
    return (len(steady) - 1) * ROWS / (steady[-1] - steady[0])


class Decoders:
    """Chunks from `decoders` processes that decode photos, through shared memory, as through Ray's object store."""

    def __init__(self, spec: InputSpec, encoded: list[bytes], decoders: int):
        context = multiprocessing.get_context("spawn")
        self.queue = context.Queue(8)
        arguments = (spec, encoded, self.queue)
        self.processes = [context.Process(target=_decode, args=arguments, daemon=True) for _ in range(decoders)]
        self.spec = spec

    def __enter__(self) -> Iterator[Chunk]:
        for process in self.processes:
            process.start()
        for _ in self.processes:
            self._next()  # they have all begun
        return iter(self._next, None)

    def _next(self) -> Chunk:
        memory = SharedMemory(self.queue.get())
        images = np.ndarray((ROWS, *self.spec.size, 3), np.uint8, memory.buf).copy()
        memory.close()
        memory.unlink()
        return Chunk("unit", "shard", 0, True, True, _samples(), [], images=images)

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()
        while not self.queue.empty():
            memory = SharedMemory(self.queue.get())
            memory.close()
            memory.unlink()


def _decode(spec: InputSpec, encoded: list[bytes], queue: Any) -> None:
    preprocess = Preprocess(spec, threads=1)
    data = [encoded[number % len(encoded)] for number in range(ROWS)]
    while True:
        images = preprocess(Chunk("unit", "shard", 0, True, True, _samples(), [], data=data)).images
        memory = SharedMemory(create=True, size=images.nbytes)
        np.ndarray(images.shape, np.uint8, memory.buf)[...] = images
        memory.close()
        queue.put(memory.name)


def drained(chunks: Iterator[Chunk], seconds: float) -> float:
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        next(chunks)
        done += ROWS
    return done / (time.perf_counter() - started)


def nvjpeg(encoded: list[bytes], seconds: float) -> float:
    """images/s that the GPU decodes, without resizing."""
    from torchvision.io import ImageReadMode, decode_jpeg

    data = [torch.frombuffer(bytearray(each), dtype=torch.uint8) for each in encoded]
    decode_jpeg(data, mode=ImageReadMode.RGB, device="cuda")
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        decode_jpeg(data, mode=ImageReadMode.RGB, device="cuda")
        torch.cuda.synchronize()
        done += len(data)
    return done / (time.perf_counter() - started)


def apart(model: ModelConfig, infer: Infer, preprocess: Preprocess, encoded: list[bytes]) -> dict[str, float]:
    """Largest differences from float32 on the CPU, over 32 photos."""
    pixels = torch.stack([preprocess.image(each).permute(1, 2, 0) for each in encoded[:32]])
    exact = make(model, "float32", "cpu", "eager")
    with torch.inference_mode():
        ours, theirs = infer.scorer(pixels.to(infer.device)), exact.scorer(pixels)
    columns = {"probability": "top_probabilities", "embedding": "embedding"}
    told = {what: float((ours[name].cpu().float() - theirs[name]).abs().max()) for what, name in columns.items()}
    same = (ours["top_indices"][:, 0].cpu() == theirs["top_indices"][:, 0]).float().mean()
    return {"same prediction": float(same), **told}


def with_ray(folder: Path, checkpoint: Path, dtype: str, told: argparse.Namespace) -> float:
    """images/s over the last two thirds of the commits of a run; its tars are one, linked."""
    tars, out = folder / f"tars-{checkpoint.stem}", folder / f"out-{checkpoint.stem}"
    first = next(iter(as_tars(tars, 640).iterdir()))
    for number in range(1, told.with_ray // 640):
        (tars / f"link-{number:06d}.tar").symlink_to(first)
    compute = {"dtype": dtype, "gpus_per_actor": 1 if told.device != "cpu" else 0, "engine": "compiled"}
    config = {"source": str(tars), "model": str(checkpoint), "destination": str(out), "compute": compute}
    subprocess.run([sys.executable, "-c", SCORE, json.dumps(config)], check=True, stdout=subprocess.DEVNULL)
    commits = [(file.stat().st_mtime, json.loads(file.read_text())["rows"]) for file in (out / "_commits").iterdir()]
    return steady_rate(commits)


if __name__ == "__main__":
    main()

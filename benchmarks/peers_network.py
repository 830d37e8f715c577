"""What the scripts of both peers share: birder's network as its users call it, decoding, arguments and measuring.

`Network` is birder's public API, in two passes, as its documentation shows it; compiled, each of them by itself, as
birder's own `predict` compiles its methods, or `fused`: both as one function, of which the compiler makes one pass.
With `one_pass`, birder-ray's own inference step in its place, so that what differs is the pipeline alone.
"""

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from measuring import FIRST, RATE, WALL, PeakMemory, process_start, steady_rate

LEVELS = ("stage1", "stage2", "stage3", "stage4")
POOLINGS = ("mean", "max", "std")
VECTORS = ("embedding", *(f"{level}_{pooling}" for level in LEVELS for pooling in POOLINGS))
TOP_K = 5


def parse_arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of WebDataset tars or of images")
    parser.add_argument("--checkpoint", type=Path, required=True, help="birder checkpoint, named NETWORK_TAG.pt")
    parser.add_argument("--output", type=Path, required=True, help="folder for the Parquet files")
    parser.add_argument("--engine", choices=("eager", "compiled"), default="eager")
    parser.add_argument("--fused", action="store_true", help="both passes in one function, compiled as a whole")
    parser.add_argument("--one-pass", action="store_true", help="birder-ray's network instead of birder's two passes")
    parser.add_argument("--size", type=int, default=256, help="side of the network's input, px")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes with a network")
    return parser.parse_args()


def decode(data: bytes, size: int) -> np.ndarray:
    """(size, size, 3) uint8, bit-equal to birder-ray's default decoder."""
    import torch
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    image = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    image = F.resize(image, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    pixels: np.ndarray = image.permute(1, 2, 0).contiguous().numpy()
    return pixels


class Network:
    """Keys and (B, H, W, 3) uint8 pixels in, a table with one row per image out.

    Args:
        told: of `parse_arguments`; compiled is torch.compile with frozen weights. threads: torch's, process-wide; None
            leaves them.
    """

    def __init__(self, told: argparse.Namespace, threads: int | None):
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        make = _birder_ray if told.one_pass else _birder
        self.run, self.classes = make(told, threads)
        # Compiles, if it must
        self.run(np.random.default_rng(0).integers(0, 256, (told.batch_size, told.size, told.size, 3), np.uint8))

    def __call__(self, keys: Sequence[str], pixels: np.ndarray) -> pa.Table:
        found = self.run(pixels)
        columns = {"key": pa.array(keys, pa.string())}
        columns["prediction"] = pa.array([self.classes[first] for first in found["top_indices"][:, 0]])
        columns |= {name: _vectors(values) for name, values in found.items()}
        columns["scored_at"] = pa.array(np.full(len(pixels), time.time()))
        return pa.table(columns)


def _birder(told: argparse.Namespace, threads: int | None) -> tuple[Callable, list[str]]:
    """birder's own API: `detection_features` and `embedding` are a pass each."""
    import torch
    from birder.common.fs_ops import load_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net, info = load_model(device, told.checkpoint.stem.rpartition("_")[0], path=told.checkpoint, inference=True)
    centre, scale = (torch.tensor(info.rgb_stats[name], device=device).view(3, 1, 1) for name in ("mean", "std"))

    def classify(images: torch.Tensor) -> dict[str, torch.Tensor]:
        embedding = net.embedding(images)
        top = net.classify(embedding).softmax(dim=1).topk(TOP_K)
        return {"embedding": embedding, "top_indices": top.indices.int(), "top_probabilities": top.values}

    def pool(images: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {}
        for level, features in net.detection_features(images).items():
            positions = features.flatten(2)
            mean = positions.mean(dim=2, keepdim=True)
            found[f"{level}_mean"] = mean.squeeze(2)
            found[f"{level}_max"] = positions.amax(dim=2)
            found[f"{level}_std"] = (positions - mean).square().mean(dim=2).sqrt()  # `std` itself takes 4 times as long
        return found

    def both(images: torch.Tensor) -> dict[str, torch.Tensor]:
        return classify(images) | pool(images)

    compiled = told.engine == "compiled"
    passes = [both] if told.fused else [classify, pool]
    if compiled:
        torch._inductor.config.freezing = device.type == "cpu"
        passes = [torch.compile(each, dynamic=False) for each in passes]

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        rows, lacking = len(pixels), told.batch_size - len(pixels)
        if compiled and lacking:  # another shape would be compiled anew
            pixels = np.concatenate([pixels, np.zeros((lacking, *pixels.shape[1:]), np.uint8)])
        with torch.no_grad():
            images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).contiguous().float().div_(255)
            images = (images - centre) / scale
            found = {name: values for each in passes for name, values in each(images).items()}
            return {name: values[:rows].cpu().numpy() for name, values in found.items()}

    return run, sorted(info.class_to_idx, key=info.class_to_idx.__getitem__)


def _birder_ray(told: argparse.Namespace, threads: int | None) -> tuple[Callable, list[str]]:
    """birder-ray's inference step without its pipeline; its compiler runs beside the first batches."""
    from birder_ray.config import ComputeConfig, ModelConfig, OutputsConfig
    from birder_ray.infer import Infer

    model, compute = ModelConfig(name=str(told.checkpoint)), ComputeConfig(engine=told.engine)
    infer = Infer(model, OutputsConfig.all(), compute, threads=threads, batch_size=told.batch_size)

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        found = infer._score(pixels)
        while infer.engine.name != told.engine:
            time.sleep(3)  # the compiler needs the core
            found = infer._score(pixels)
        return {name: found[name] for name in ("top_indices", "top_probabilities", *VECTORS)}

    return run, infer.backbone.class_names


def _vectors(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def report(output: Path, memory: PeakMemory) -> None:
    """Print what was measured of a finished run as one line of JSON, with seconds since this process began."""
    import pyarrow.parquet as pq

    ended, started = time.time(), process_start()
    moments = [
        at for file in output.rglob("*.parquet") for at in pq.read_table(file, columns=["scored_at"])[0].to_pylist()
    ]
    figures = {
        RATE: steady_rate(list(Counter(moments).items())),
        FIRST: min(moments) - started,
        WALL: ended - started,
        **memory.stop(),
    }
    print(json.dumps({"images": len(moments), "figures": figures}), flush=True)

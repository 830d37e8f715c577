"""Test doubles for code that builds on birder-ray: small datasets in every source format, and a tiny checkpoint."""

import csv
import io
import tarfile
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from birder_ray.folder import Folder


class Truth(NamedTuple):
    """What the run has to write about one image of `make_shards`."""

    sample: str
    shard: str
    index: int  # type: ignore[assignment]  # hides tuple.index
    label: str | None


def make_images(n: int, seed: int = 0, size: tuple[int, int] = (96, 80)) -> list[bytes]:
    """`n` JPEGs that all differ: smooth random colours with noise, `size` in pixels, height x width."""
    random = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8))
        smooth = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(smooth + random.integers(-12, 13, smooth.shape), 0, 255)
        encoded = io.BytesIO()
        Image.fromarray(noisy.astype(np.uint8)).save(encoded, "JPEG", quality=90)
        images.append(encoded.getvalue())
    return images


def make_shards(
    destination: str,
    images_per_shard: int = 8,
    shards: int = 2,
    format: Literal["tar", "parquet", "images", "manifest"] = "tar",
    *,
    seed: int = 0,
    size: tuple[int, int] = (96, 80),
    labels: bool = True,
    options: dict[str, Any] | None = None,
) -> list[Truth]:
    """Write a small dataset and return what is in it, in the order of a run.

    The source to score is `destination`; for manifests it is `destination/*.csv`, as their images lie beside them.

    Args:
        destination: local path or fsspec URL of a folder. options: fsspec options for it.
        labels: whether images have one, in the format's own way; directories of images always do.
    """
    folder = Folder(destination, options)
    truth: list[Truth] = []
    for number in range(shards):
        images = make_images(images_per_shard, seed * 1_000_003 + number, size)
        texts = [f"class-{(number + index) % 3}" if labels else None for index in range(images_per_shard)]
        truth += _WRITERS[format](folder, number, images, texts)
    return truth


def tiny_checkpoint(
    path: str, seed: int = 0, num_classes: int = 7, network: str = "hgnet_v2_b0", size: int = 64
) -> dict[str, int]:
    """Write a birder checkpoint of random weights that tells images apart, and return its classes by name."""
    import torch
    from birder import __version__
    from birder.data.transforms.classification import get_rgb_stats
    from birder.model_registry import registry
    from birder.net.base import get_signature

    class_to_idx = {f"species-{index}": index for index in range(num_classes)}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        net: Any = registry.net_factory(network, num_classes, size=(size, size))
        for module in net.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.momentum = None  # statistics of the pass below; the initial ones let the signal die out
        torch.nn.init.normal_(net.classifier.weight)
        torch.nn.init.zeros_(net.classifier.bias)
        images = torch.nn.functional.interpolate(torch.randn(8, 3, 4, 4), (size, size), mode="bicubic")
        net.train()(images)
        logits = net.eval()(images)
        net.classifier.weight.div_(logits.std())
        net.classifier.bias.sub_(logits.mean(0) / logits.std())
    torch.save(
        {
            "state": net.state_dict(),
            "birder_version": __version__,
            "task": net.task,
            "signature": get_signature((1, 3, size, size), num_classes),
            "class_to_idx": class_to_idx,
            "rgb_stats": get_rgb_stats("birder"),
        },
        path,
    )
    return class_to_idx


def _write_tar(folder: Folder, number: int, images: list[bytes], labels: list[str | None]) -> list[Truth]:
    name, packed = f"shard-{number:06d}.tar", io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            members = {"jpg": image} | ({"cls": label.encode()} if label else {})
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{index:06d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    folder.write(name, packed.getvalue())
    return [Truth(f"{name}/{index:06d}", name, index, label) for index, label in enumerate(labels)]


def _write_parquet(folder: Folder, number: int, images: list[bytes], labels: list[str | None]) -> list[Truth]:
    name, packed = f"shard-{number:06d}.parquet", io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": pa.array(labels, pa.string())}), packed, row_group_size=3)
    folder.write(name, packed.getvalue())
    return [Truth(f"{name}#{index}", name, index, label) for index, label in enumerate(labels)]


def _write_images(folder: Folder, number: int, images: list[bytes], labels: list[str | None]) -> list[Truth]:
    shard = f"class-{number}"
    names = [f"{shard}/{index:06d}.jpg" for index in range(len(images))]
    for name, image in zip(names, images, strict=True):
        folder.write(name, image)
    return [Truth(name, shard, index, shard) for index, name in enumerate(names)]


def _write_manifest(folder: Folder, number: int, images: list[bytes], labels: list[str | None]) -> list[Truth]:
    shard, text = f"manifest-{number:06d}.csv", io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(["image", "id", "label"])
    truth = []
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        name = f"photos/{number:06d}-{index:06d}.jpg"
        folder.write(name, image)
        rows.writerow([name, f"photo-{number}-{index}", label or ""])
        truth.append(Truth(f"photo-{number}-{index}", shard, index, label))
    folder.write(shard, text.getvalue().encode())
    return truth


_WRITERS = {"tar": _write_tar, "parquet": _write_parquet, "images": _write_images, "manifest": _write_manifest}

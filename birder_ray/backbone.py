"""birder, behind one door: names to weights, weights to a network, images to every output in one pass.

The only module that imports birder (besides the test doubles).
"""
# ruff: noqa: E402

import difflib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# On a machine with a CUDA compiler and no GPU, birder's kernels would warn on standard error while they are imported
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

import birder
from birder.common import cli, fs_ops, lib
from birder.conf import settings
from birder.model_registry import Task, registry

from birder_ray import weights as files
from birder_ray.config import ModelConfig
from birder_ray.errors import ConfigError
from birder_ray.passes import Outputs, Passes, Reduce, Wanted

logger = logging.getLogger(__name__)
logging.getLogger("birder").setLevel(logging.WARNING)  # else every actor reports every file that it opens

_RENAMED = {"hieradet_small_dino-v2": "hieradet_d_small_dino-v2"}
"""Prefixes of names that birder 0.3.2 changed. `hieradet_small` now is another network of the same shapes, so such a
file would load and give wrong numbers."""


@dataclass(frozen=True)
class Weights:
    """A checkpoint on this machine.

    Args:
        path: local file. sha256: of its bytes. name: as the user gave it, without folder and suffix.
        network: birder's name of the architecture. reparameterized: None if not known.
        size: height and width in pixels that it was saved for. channels: of the input.
        class_names: by class index; none without a classifier.
    """

    path: str
    sha256: str
    name: str
    network: str
    reparameterized: bool | None
    size: tuple[int, int]
    channels: int
    class_names: tuple[str, ...]


def resolve(model: ModelConfig) -> Weights:
    """Find the weights of `model` on this machine, downloading them if need be.

    Raises:
        ConfigError: unknown name, no file, damaged file, or a kind of model that is not supported.
    """
    if files.is_reference(model.name):
        path = files.from_reference(model.name)
        name, published = path.stem, None
    else:
        name = _current_name(model.name)
        published = _published(name)
        path = _find(model, name, published)
    net: Mapping[str, Any] = published["net"] if published else {}
    network = model.network or net.get("network") or _network_of(name)
    if network is None:
        raise ConfigError(f"{path}: the file name does not begin with a birder network; pass --network")
    if not registry.exists(network, task=Task.IMAGE_CLASSIFICATION):
        raise ConfigError(f"{network}: no such birder network{_suggest(network, _networks())}")
    header = files.read_header(path)
    if header.task not in (None, Task.IMAGE_CLASSIFICATION):
        raise ConfigError(f"{path}: a model for {header.task}; only image classification is supported")
    return Weights(
        path=str(path),
        sha256=files.sha256_file(path),
        name=name,
        network=network,
        reparameterized=net.get("reparameterized", False) if published else None,
        size=header.size,
        channels=header.channels,
        class_names=header.class_names,
    )


def _published(name: str) -> Any:
    """birder's entry for a pretrained model; None if it has none of this name."""
    if not registry.pretrained_exists(name):
        return None
    entry: Any = registry.get_pretrained_metadata(name)
    if entry["task"] != Task.IMAGE_CLASSIFICATION:
        raise ConfigError(f"{name}: a model for {entry['task']}; only image classification is supported")
    if not any(f".{kind}" in files.SUFFIXES for kind in entry["formats"]):
        raise ConfigError(f"{name}: published only as {', '.join(entry['formats'])}, which is not supported")
    return entry


def _find(model: ModelConfig, name: str, published: Any) -> Path:
    models_dir = Path(os.environ.get("MODELS_DIR") or settings.MODELS_DIR)
    formats = published["formats"] if published else {}

    def download(file: str, path: Path) -> None:
        _, url = lib.get_pretrained_model_url(name, Path(file).suffix[1:])
        cli.download_file(url, path, progress_bar=False)

    found = files.from_name(
        tuple(dict.fromkeys((name, model.name))),
        models_dir,
        model.weights_mirror,
        {f".{kind}": entry["sha256"] for kind, entry in formats.items()},
        download if published else None,
    )
    if found is None:
        names = registry.list_pretrained_models(task=Task.IMAGE_CLASSIFICATION)
        raise ConfigError(
            f"{model.name}: birder {birder.__version__} has no pretrained model of this name"
            f"{_suggest(model.name, names)}; a file of one's own goes to {models_dir / model.name}.pt"
        )
    return found


def _current_name(name: str) -> str:
    for old, new in _RENAMED.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _networks() -> list[str]:
    return [*registry.list_models(task=Task.IMAGE_CLASSIFICATION), *registry.name_aliases]


def _network_of(name: str) -> str | None:
    """The longest network name that begins `name`; birder's files are called `<network>_<tag>`."""
    name = _current_name(name).lower()
    candidates = [network for network in _networks() if name == network or name.startswith(f"{network}_")]
    return max(candidates, key=len, default=None)


def _suggest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    return f"; did you mean {', '.join(close)}?" if close else ""


class Backbone:
    """A network in memory, ready to score.

    Args:
        weights: what to load.
        size: input height and width in pixels; None keeps the checkpoint's.
        dtype: of weights and activations. amp: run under autocast in the device's default low precision.
        device: torch device. compiled: use torch.compile (tens of seconds at the first batch).
        levels: feature levels to give; `all`, or names, or none.
        reduce: what is kept of a level, from (B, C, L) to (B, C) by name.

    Raises:
        ConfigError: the checkpoint does not fit the network, or the network the size, or a level is unknown.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        size: tuple[int, int] | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        amp: bool = False,
        compiled: bool = False,
        levels: Wanted = "all",
        reduce: Reduce,
    ):
        self.weights = weights
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.amp = amp
        if self.device.type == "cuda" and self.dtype == torch.float32 and not amp:
            torch.backends.cudnn.allow_tf32 = False  # its 10-bit mantissa would break the parity that float32 promises
        net, info = _load(weights)
        self.size = size or weights.size
        self.net = net
        self.mean, self.std = list(info.rgb_stats["mean"]), list(info.rgb_stats["std"])
        self.class_names = list(weights.class_names)
        self.num_classes = len(self.class_names)
        generator = torch.Generator().manual_seed(0)
        sample = torch.randn((2, weights.channels, *self.size), generator=generator).to(self.device)
        try:
            net.adjust_size(self.size)
            net.to(self.device)
            with torch.inference_mode():
                self.passes = Passes(net, sample, levels, reduce)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split()) or "the network does not allow it"
            raise ConfigError(f"{weights.network}: cannot take {_px(self.size)}: {reason}") from None
        if self.passes.count > 1:
            logger.info("%s: its outputs take %d forward passes per image", weights.network, self.passes.count)
        # 7-18 % faster for convolutions, but with other rounding than birder's: not where parity is promised
        exact = self.dtype == torch.float32 and not amp and not compiled
        self.layout = torch.channels_last if _mostly_convolutions(net) and not exact else torch.contiguous_format
        net.to(self.dtype, memory_format=self.layout)
        self.compiled = compiled
        self._run: Callable[[torch.Tensor, bool], Outputs] = self.passes
        if compiled:
            self._run = torch.compile(self.passes, dynamic=False, options={"freezing": self.device.type == "cpu"})

    def require_classes(self) -> None:
        """Raises ConfigError if the network has no classifier."""
        if self.num_classes == 0:
            raise ConfigError(f"{self.weights.name}: has no classifier; leave predictions out of the outputs")

    def forward(self, images: torch.Tensor) -> Outputs:
        """Every output of a batch of normalised images, (B, channels, height, width) float32 on the device."""
        return self._call(images, with_levels=True)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """(B, classes) alone, of images as `forward` takes them."""
        return self._call(images, with_levels=False).logits

    def describe(self) -> dict[str, Any]:
        """What a run records about its model; plain JSON types."""
        return {
            "name": self.weights.name,
            "network": self.weights.network,
            "sha256": self.weights.sha256,
            "size": list(self.size),
            "class_names": self.class_names,
            "num_classes": self.num_classes,
            "embedding_size": self.passes.embedding_size,
            "levels": self.passes.levels,
            "passes": self.passes.count,
            "parameters": sum(p.numel() for p in self.net.parameters()),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            "versions": {"birder": birder.__version__, "torch": torch.__version__},
        }

    def _call(self, images: torch.Tensor, with_levels: bool) -> Outputs:
        images = images.to(self.dtype).contiguous(memory_format=self.layout)
        with torch.autocast(self.device.type, enabled=self.amp):
            return self._run(images, with_levels)


def _load(weights: Weights) -> tuple[Any, fs_ops.ModelInfo]:
    """Build and fill the network, eval mode, on the CPU; as plain and as reparameterized, whichever fits the file."""
    first = bool(weights.reparameterized)
    problem: Exception | None = None
    for reparameterized in (first, not first):
        try:
            return fs_ops.load_model(
                torch.device("cpu"),
                weights.network,
                path=weights.path,
                reparameterized=reparameterized,
                inference=True,
                st=weights.path.endswith(".safetensors"),
            )
        except (RuntimeError, AttributeError, KeyError) as error:
            # A network that cannot be reparameterized raises AttributeError in the second round: keep the first
            problem = problem or error
    reason = " ".join(str(problem).split())[:200]
    raise ConfigError(f"{weights.path}: does not fit the network {weights.network}: {reason}")


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} px (height x width)"


def _mostly_convolutions(net: torch.nn.Module) -> bool:
    convolutions = sum(m.weight.numel() for m in net.modules() if isinstance(m, torch.nn.Conv2d))
    return 2 * convolutions > sum(p.numel() for p in net.parameters())

"""A birder network in memory."""

import logging
from typing import Any

import torch
from birder.common import fs_ops

from birder_ray.backbone.names import Weights
from birder_ray.errors import ConfigError
from birder_ray.passes import Outputs, Passes, Reduce, Wanted

logger = logging.getLogger(__name__)
logging.getLogger("birder").setLevel(logging.WARNING)  # else every actor reports every file that it opens


class Backbone:
    """A network in memory, ready to score.

    Args:
        weights: what to load.
        size: input height and width in pixels; None keeps the checkpoint's.
        dtype: of weights and activations. amp: run under autocast in the device's default low precision.
        device: torch device.
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
        # 2-18 % faster for convolutions, but with other rounding than birder's: not where parity is promised
        exact = self.dtype == torch.float32 and not amp
        self.layout = torch.channels_last if _mostly_convolutions(net) and not exact else torch.contiguous_format
        net.to(self.dtype, memory_format=self.layout)

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

    def _call(self, images: torch.Tensor, with_levels: bool) -> Outputs:
        images = images.to(self.dtype).contiguous(memory_format=self.layout)
        with torch.autocast(self.device.type, enabled=self.amp):
            return self.passes(images, with_levels)


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

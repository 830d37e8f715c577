"""Taps: where in a network's ordinary forward pass its feature levels can be read.

birder gives feature levels by `detection_features`, a second pass over the same layers. A tap names the module whose
output, during the first pass, *is* the level. Taps are found by comparison on a random batch, not by knowledge of the
architectures, and are checked before use.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

T = TypeVar("T")

MAX_SPECIAL_TOKENS = 64
TOLERANCE = 1e-5

Levels = dict[str, torch.Tensor]
"""Feature level by name: (B, C, L), positions in any order."""


@dataclass(frozen=True)
class Tap:
    """A module's output, read as a feature level.

    Args:
        module: qualified name in the network.
        item: position in the output, where that is a tuple.
        channels_last: whether channels are the last axis; otherwise the second.
        skip: leading positions that are special tokens.
    """

    module: str
    item: int
    channels_last: bool
    skip: int

    def read(self, output: Any) -> torch.Tensor:
        """(B, C, L) of what the module returned."""
        x = tensors(output)[self.item]
        return (x.movedim(-1, 1) if self.channels_last else x).flatten(2)[:, :, self.skip :]


def find_taps(net: nn.Module, forward: Callable[[], T], levels: Levels) -> tuple[dict[str, Tap], T]:
    """Taps of `levels` among the modules that `forward` runs; of several, the last. Levels without one are left out.

    Args:
        levels: as `detection_features` gives them for the batch that `forward` takes.

    Returns:
        The taps, and what `forward` gave.
    """
    found: dict[str, Tap] = {}
    summaries = {level: summary(x) for level, x in levels.items()}
    limits = {level: TOLERANCE * max(1.0, float(x.abs().max())) for level, x in summaries.items()}

    def look(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            for item, x in enumerate(tensors(output)):
                for level, expected in levels.items():
                    for tap in _readings(name, item, x, expected):
                        read = tap.read(output)
                        # The means alone tell most of what is not the level, for a third of the work
                        if (read.float().mean(dim=2) - summaries[level][0]).abs().max() > limits[level]:
                            continue
                        if close(summary(read), summaries[level]):
                            found[level] = tap

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in net.named_modules() if name]
    try:
        result = forward()
    finally:
        for handle in handles:
            handle.remove()
    return {level: found[level] for level in levels if level in found}, result


def install(
    net: nn.Module, taps: dict[str, Tap], reduce: Callable[[torch.Tensor], T], sink: dict[str, T]
) -> list[RemovableHandle]:
    """Make every forward pass of `net` leave its levels in `sink`, reduced at once, until the handles are removed.

    At once, since layers that work in place may overwrite a level soon after.
    """
    handles = []
    for level, tap in taps.items():

        def hook(_module: nn.Module, _inputs: Any, output: Any, level: str = level, tap: Tap = tap) -> None:
            sink[level] = reduce(tap.read(output))

        handles.append(net.get_submodule(tap.module).register_forward_hook(hook))
    return handles


def summary(level: torch.Tensor) -> torch.Tensor:
    """What the pooled features see of a level: (3, B, C) of mean, max and standard deviation over positions."""
    level = level.float()
    return torch.stack([level.mean(dim=2), level.amax(dim=2), level.std(dim=2, correction=0)])


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether the two are equal within `tolerance`, relative to the largest expected value (at least 1)."""
    if actual.shape != expected.shape:
        return False
    scale = max(1.0, float(expected.abs().max()))
    return bool((actual - expected).abs().max() <= tolerance * scale)


def tensors(output: Any) -> list[torch.Tensor]:
    """The tensors of what a module returned: itself, or those among the items of a tuple or list."""
    if isinstance(output, torch.Tensor):
        return [output]
    return [x for x in output if isinstance(x, torch.Tensor)] if isinstance(output, tuple | list) else []


def _readings(name: str, item: int, x: torch.Tensor, expected: torch.Tensor) -> Iterator[Tap]:
    batch, channels, positions = expected.shape
    if x.ndim < 3 or len(x) != batch or not x.is_floating_point():
        return
    per_channel = x[0].numel() // channels
    if x.shape[1] == channels and per_channel == positions:
        yield Tap(name, item, channels_last=False, skip=0)
    if x.shape[-1] == channels and 0 <= per_channel - positions <= MAX_SPECIAL_TOKENS:
        yield Tap(name, item, channels_last=True, skip=per_channel - positions)

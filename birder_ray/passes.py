"""Every output of a network in as few forward passes as it allows: one, for almost all of birder's."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch

from birder_ray.errors import ConfigError
from birder_ray.taps import Levels, Tap, close, find_taps, install, tensors

Wanted = Literal["all"] | tuple[str, ...]
Reduced = dict[str, torch.Tensor]
Reduce = Callable[[torch.Tensor], Reduced]
"""From a feature level (B, C, L) to tensors (B, C) by name."""


class Outputs(NamedTuple):
    """What a batch of B images gives, in the network's dtype.

    Args:
        logits: (B, classes); without meaning for a network that has no classifier.
        embedding: (B, D).
        features: by feature level, what `reduce` made of it.
    """

    logits: torch.Tensor
    embedding: torch.Tensor
    features: dict[str, Reduced]


class Passes:
    """Runs a birder network, and knows where in the pass its outputs are.

    Decided here, on a sample batch: the levels are read by taps and the heads share one pass if that gives what
    `detection_features`, `embedding` and the network itself give; whatever does not gets a pass of its own.

    Args:
        net: in eval mode and float32.
        images: sample batch (B, channels, height, width), on the network's device.
        wanted: feature levels to give; `all`, or names, or none.
        reduce: what is kept of a level.

    Attributes:
        levels: channels by feature level, in order. embedding_size: D. count: forward passes per image.

    Raises:
        ConfigError: a level is unknown, or the network has none.
    """

    def __init__(self, net: Any, images: torch.Tensor, wanted: Wanted, reduce: Reduce):
        self._net = net
        self._reduce = reduce
        expected = _expected_heads(net, images)
        levels = _choose(net, images, wanted)
        taps, shared = find_taps(net, lambda: _shared_heads(net, images), levels)
        one = all(close(ours, theirs) for ours, theirs in zip(shared, expected, strict=True))
        self._heads = _shared_heads if one else _separate_heads
        # The sink has all its keys from the start, as torch.compile guards on them
        self._sink = {name: reduce(x) for name, x in levels.items()}
        self._tapped = one and len(taps) == len(levels) and self._install(taps, images)
        self.levels = {name: x.shape[1] for name, x in levels.items()}
        self.embedding_size = expected[1].shape[1]
        self.count = 1 + (not one) + (not self._tapped)

    def _install(self, taps: dict[str, Tap], images: torch.Tensor) -> bool:
        """Whether the taps, in place, gave what the sink held."""
        expected = dict(self._sink)
        handles = install(self._net, taps, self._reduce, self._sink)
        self._heads(self._net, images)
        same = all(
            close(x, expected[level][name]) for level, values in self._sink.items() for name, x in values.items()
        )
        if not same:
            for handle in handles:
                handle.remove()
        return same

    def __call__(self, images: torch.Tensor, with_levels: bool) -> Outputs:
        """Score a batch; `with_levels=False` leaves them out, and the pass that they may need."""
        logits, embedding = self._heads(self._net, images)
        if not with_levels:
            return Outputs(logits, embedding, {})
        if self._tapped:
            return Outputs(logits, embedding, dict(self._sink))
        levels = _reference(self._net, images)
        return Outputs(logits, embedding, {name: self._reduce(levels[name]) for name in self.levels})


def _shared_heads(net: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    embedding = net.embedding_from_features(net.forward_features(images))
    logits = net.classify(*embedding) if isinstance(embedding, tuple) else net.classify(embedding)
    return logits, _vector(embedding)


def _separate_heads(net: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return net(images), _vector(net.embedding(images))


def _expected_heads(net: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_separate_heads`; where the network's own pass asks for its `embedding`, what it got is taken, and no second
    pass made."""
    seen: list[torch.Tensor] = []
    embed = net.embedding

    def watched(x: torch.Tensor) -> Any:
        result = embed(x)
        if x is images:
            seen.append(_vector(result).clone())
        return result

    net.embedding = watched
    try:
        logits = net(images)
    finally:
        del net.embedding
    return logits, seen[0] if seen else _vector(embed(images))


def _vector(embedding: Any) -> torch.Tensor:
    """(B, D) of a network's embedding, which a few networks give as several tensors, or with more axes."""
    return torch.cat([x.flatten(1) for x in tensors(embedding)], dim=1)


def _reference(net: Any, images: torch.Tensor) -> Levels:
    """The levels by birder's own API; without `detection_features`, what birder-predict saves as `features`."""
    if hasattr(net, "detection_features"):
        return {name: x.flatten(2) for name, x in net.detection_features(images).items()}
    tokens = net.flatten_features(net.forward_features(images), include_special_tokens=False)
    return {"features": tokens.transpose(1, 2)}


def _choose(net: Any, images: torch.Tensor, wanted: Wanted) -> Levels:
    if not wanted:
        return {}
    try:
        levels = _reference(net, images)
    except RuntimeError as error:
        raise ConfigError(f"no feature levels: {error}; leave features out of the outputs") from None
    for name in () if wanted == "all" else wanted:
        if name not in levels:
            raise ConfigError(f"no feature level {name}; this network has {', '.join(levels)}")
    return {name: x for name, x in levels.items() if wanted == "all" or name in wanted}

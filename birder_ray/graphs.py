"""CUDA graphs: all kernels of a batch are launched as one, which helps where they are short."""

import logging
import time
from collections.abc import Callable

import torch

from birder_ray.device import settle
from birder_ray.scoring import Results

logger = logging.getLogger(__name__)

Forward = Callable[[torch.Tensor], Results]
"""Scores a batch (B, H, W, C) on the device."""

_TURNS, _BATCHES = 3, 8
_WORTH = 0.98
"""Of the time without: what a graph must save to be worth the memory that it keeps."""


class Graph:
    """Replays what `forward` launches for pixels like these; results are the caller's own.

    One thread at a time. Raises, when made, RuntimeError where something in `forward` cannot be part of a graph.
    """

    def __init__(self, forward: Forward, pixels: torch.Tensor):
        self._pixels = pixels.clone()
        self._graph = torch.cuda.CUDAGraph()
        # Other threads of this process copy and allocate meanwhile
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._results = forward(self._pixels)

    def __call__(self, pixels: torch.Tensor) -> Results:
        self._pixels.copy_(pixels)
        self._graph.replay()
        return {name: values.clone() for name, values in self._results.items()}


def faster(forward: Forward, pixels: torch.Tensor, same: Callable[[Results, Results], bool]) -> Forward:
    """A graph of `forward` for pixels like these, or `forward` itself where that is as fast.

    Args:
        forward: has run for such pixels before. same: whether two results for one batch are.
    """
    try:
        graph = Graph(forward, pixels)
        if not same(graph(pixels), forward(pixels)):
            logger.warning("going on without a CUDA graph: its numbers are others")
            return forward
        times = [(_took(graph, pixels), _took(forward, pixels)) for _ in range(_TURNS)]
    except RuntimeError as error:
        logger.warning("going on without a CUDA graph: %s", error)
        return forward
    with_graph, without = (min(column) for column in zip(*times, strict=True))
    return graph if with_graph < _WORTH * without else forward


def _took(forward: Forward, pixels: torch.Tensor) -> float:
    settle(pixels.device)
    started = time.perf_counter()
    for _ in range(_BATCHES):
        forward(pixels)
    settle(pixels.device)
    return time.perf_counter() - started

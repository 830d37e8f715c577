"""The batch size at which a GPU is fastest: measured once for a network on a kind of GPU, and remembered."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from filelock import FileLock

from birder_ray.device import out_of_memory, settle
from birder_ray.weights import cache_dir

logger = logging.getLogger(__name__)

CANDIDATES = (32, 64, 128, 256)
"""Batch sizes that are tried, smallest first."""

_AS_GOOD = 0.97
"""Of the best rate; the smallest batch size that reaches it leaves memory to others."""

_WARM_UP = 3
_MEASURED_S = 0.5


def best_batch_size(rate: Callable[[int], float | None], recipe: Any) -> int:
    """The smallest of `CANDIDATES` that is about as fast as the fastest.

    Args:
        rate: images/s of a batch size, None where the memory does not hold it.
        recipe: what determines the rates, as JSON values. One process of a machine measures, the others wait and read.
    """
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    path = cache_dir() / "batch_sizes" / f"{digest[:24]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(path.read_text())["batch_size"]
            if known in CANDIDATES:
                return int(known)
        rates: dict[int, float] = {}
        for size in CANDIDATES:
            found = rate(size)
            if found is None:
                break
            rates[size] = found
        good = [size for size, found in rates.items() if found >= _AS_GOOD * max(rates.values())]
        best = min(good, default=CANDIDATES[0])
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({"batch_size": best, "images_per_s": rates, "recipe": recipe}))
        temporary.replace(path)
        logger.info("batches of %d: %s images/s", best, rates)
        return best


def forward_rate(forward: Callable[[torch.Tensor], Any], shape: tuple[int, ...], device: torch.device) -> float | None:
    """images/s of `forward` on batches of zeros, uint8 of `shape` (B, H, W, C); None where memory runs out."""
    try:
        with torch.inference_mode():
            pixels = torch.zeros(shape, dtype=torch.uint8, device=device)
            for _ in range(_WARM_UP):
                forward(pixels)
            settle(device)
            started, done = time.perf_counter(), 0
            while time.perf_counter() - started < _MEASURED_S:
                forward(pixels)
                settle(device)
                done += len(pixels)
            return done / (time.perf_counter() - started)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None

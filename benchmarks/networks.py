"""Which of birder's published networks give every output in one pass. Random weights, published resolution, CPU.

python benchmarks/networks.py [PATTERN] [--max-params 400]
"""

import argparse
import collections
import fnmatch
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from birder.model_registry import Task, registry

from birder_ray.backbone import Backbone, Weights
from birder_ray.errors import ConfigError

CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="of network names")
    parser.add_argument("--max-params", type=float, default=400, help="skip larger networks, in millions of parameters")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    counts: collections.Counter[str] = collections.Counter()
    for network, (reparameterized, size) in sorted(_networks().items()):
        if fnmatch.fnmatch(network, arguments.pattern):
            start = time.perf_counter()
            outcome, detail = _try(network, reparameterized, size, arguments.max_params * 1e6)
            counts[outcome] += 1
            print(f"{network:45} {outcome:12} {time.perf_counter() - start:5.0f} s  {detail}", flush=True)
    print(dict(counts))


def _networks() -> dict[str, tuple[bool, tuple[int, int]]]:
    """Network to whether it is published reparameterized, and its smallest published resolution."""
    found: dict[str, tuple[bool, tuple[int, int]]] = {}
    for name in registry.list_pretrained_models(task=Task.IMAGE_CLASSIFICATION):
        metadata: Any = registry.get_pretrained_metadata(name)
        network, size = metadata["net"]["network"], metadata["resolution"]
        reparameterized = metadata["net"].get("reparameterized", False)
        found[network] = reparameterized, min(size, found.get(network, (False, size))[1])
    return found


def _try(network: str, reparameterized: bool, size: tuple[int, int], max_params: float) -> tuple[str, str]:
    with torch.device("meta"):
        try:
            parameters = sum(p.numel() for p in registry.net_factory(network, CLASSES, size=size).parameters())
        except Exception:  # some networks compute with real tensors while they are built
            parameters = 0
    if parameters > max_params:
        return "skipped", f"{parameters / 1e6:.0f} M parameters"
    torch.manual_seed(0)
    net: Any = registry.net_factory(network, CLASSES, size=size).eval()
    if reparameterized:
        net.reparameterize_model()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{network}.pt"
        signature = {"inputs": [{"data_shape": [0, 3, *size]}], "outputs": [{"data_shape": [0, CLASSES]}]}
        stats = {"mean": [0.5] * 3, "std": [0.25] * 3}
        state = net.state_dict()
        torch.save({"state": state, "signature": signature, "class_to_idx": {}, "rgb_stats": stats}, path)
        weights = Weights(str(path), "", network, network, reparameterized, size, 3, tuple(map(str, range(CLASSES))))
        try:
            try:
                backbone = Backbone(weights, reduce=_mean)
            except ConfigError:
                backbone = Backbone(weights, levels=(), reduce=_mean)
            images = torch.randn(2, 3, *size)
            with torch.inference_mode():
                difference = float((backbone.forward(images).logits - net(images)).abs().max())
        except Exception as error:  # a survey reports whatever happens
            return "unsupported", f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"
    passes = backbone.passes
    levels = " ".join(f"{name}={channels}" for name, channels in passes.levels.items()) or "no feature levels"
    outcome = {1: "one pass", 2: "two passes", 3: "three passes"}[passes.count]
    return outcome, f"{size[0]} px, {levels}, embedding={passes.embedding_size}, logits within {difference:.0e}"


def _mean(level: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"mean": level.mean(dim=2)}


if __name__ == "__main__":
    main()

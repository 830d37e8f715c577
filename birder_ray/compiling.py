"""The process that compiles for an inference actor: `engine.py` starts it and tells it what, on standard input."""

import os
import pickle
import sys
from threading import Thread

import torch

from birder_ray.engine import compile_package
from birder_ray.infer import Infer


def _end_with_parent() -> None:
    sys.stdin.buffer.read()  # comes back when the pipe closes, which nobody does but by dying
    os._exit(1)


def main() -> None:
    options, path = pickle.load(sys.stdin.buffer)
    Thread(target=_end_with_parent, daemon=True).start()
    infer = Infer(**options)
    height, width = infer.backbone.size
    shape = (infer.batch_size, height, width, infer.backbone.weights.channels)
    compile_package(infer.scorer, torch.zeros(shape, dtype=torch.uint8, device=infer.device), path)
    sys.stderr.flush()
    os._exit(0)  # threads of the compiler, and the one above, need not be waited for


if __name__ == "__main__":
    main()

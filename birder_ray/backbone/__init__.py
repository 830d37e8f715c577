"""birder, behind one door: names to weights, weights to a network, images to every output in one pass.

The only package that imports birder (besides the test doubles and the demo).
"""

import logging

# On a machine with a CUDA compiler and no GPU, birder's kernels would warn on standard error while they are imported
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

from birder_ray.backbone.names import Entry, Weights, catalogue, resolve  # noqa: E402
from birder_ray.backbone.network import Backbone  # noqa: E402

__all__ = ["Backbone", "Entry", "Weights", "catalogue", "resolve"]

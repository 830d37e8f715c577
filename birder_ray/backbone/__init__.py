"""birder, behind one door: names to weights, weights to a network, images to every output in one pass.

The only package that imports birder (besides the test doubles and the demo).
"""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from birder_ray.backbone.network import Backbone

# On a machine with a CUDA compiler and no GPU, birder's kernels would warn on standard error while they are imported
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

from birder_ray.backbone.names import Entry, Weights, catalogue, resolve  # noqa: E402

__all__ = ["Backbone", "Entry", "Weights", "catalogue", "resolve"]


def __getattr__(name: str) -> Any:
    if name != "Backbone":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from birder_ray.backbone.network import Backbone  # with torch and birder, which a name needs neither of

    return Backbone

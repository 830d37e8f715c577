"""birder-ray: score tens of millions of wildlife photos with pretrained birder networks, exactly once, on Ray Data.

Example:
    >>> from birder_ray import RunConfig, run
    >>> summary = run(RunConfig(source="photos/", model="hgnet_v2_b2_danube-delta", destination="scores/"))
"""

from typing import Any

from birder_ray.config import RunConfig
from birder_ray.errors import BirderRayError, ConfigError, LockHeld, RunFailed, VerifyFailed

__all__ = ["BirderRayError", "ConfigError", "LockHeld", "RunConfig", "RunFailed", "RunSummary", "VerifyFailed", "run"]


def __getattr__(name: str) -> Any:
    """`run` brings Ray along, which takes a second to import; `status` and `verify` do without."""
    if name == "run":
        from birder_ray.pipeline import run

        return run
    if name == "RunSummary":
        from birder_ray.progress import RunSummary

        return RunSummary
    raise AttributeError(name)

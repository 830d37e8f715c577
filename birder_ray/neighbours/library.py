"""The libraries that this package builds on, imported where they are used: `birder-ray` starts without them."""

from importlib import import_module
from typing import Any

from birder_ray.errors import ConfigError


def library(module: str, package: str) -> Any:
    """A module of the extra `findings`. Raises ConfigError where its package is not installed."""
    try:
        return import_module(module)
    except ImportError:
        raise ConfigError(f"this needs {package}: pip install 'birder-ray[findings]'") from None


def faiss() -> Any:
    """faiss, for searches of many vectors."""
    return library("faiss", "faiss-cpu")


def imagehash() -> Any:
    """imagehash, for perceptual hashes."""
    return library("imagehash", "imagehash")

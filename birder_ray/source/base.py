"""What every source format gives the rest of the system: shards to plan with, and a stream of samples from a shard."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from birder_ray.chunk import Sample
from birder_ray.config import SourceConfig
from birder_ray.errors import SampleError, ShardDamaged

Wanted = Callable[[int], bool]
"""Whether the bytes of the sample at this index are wanted; others are stepped over as cheaply as the format allows."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM")
"""What Pillow may open, whatever a file calls itself: others of its formats start programs (EPS: Ghostscript), or are
met by nobody who looks for holes in them."""

MAX_PIXELS = 178_956_970
"""Pillow's limit for an image; here, of an image as resized too."""

MAX_BYTES = 1 << 30
"""No encoded image is larger; a server or an archive that never stops must not fill the memory."""

SEQUENTIAL: dict[str, Any] = {"block_size": 8 << 20, "cache_type": "background", "cache_options": {"maxblocks": 3}}
"""How to open a remote shard: the next block is fetched while this one is worked on."""

Item = tuple[Sample, bytes | SampleError]
"""A sample with its encoded bytes, or with why it could not be read."""


@dataclass(frozen=True)
class Shard:
    """One input file, or one directory of images.

    Args:
        uri: where it is. name: path relative to the source, unique in the run.
        format: images, tar, parquet or manifest.
        fingerprint: changes when the content does; no secret in it. version: what it was made from, for a file: its
        etag, or modification time. size: bytes, where known. count: samples, where known without reading images.
        members: for `images`, the file names given one by one; None: all images directly in the directory.
    """

    uri: str
    name: str
    format: str
    fingerprint: str
    size: int | None = None
    count: int | None = None
    members: tuple[str, ...] | None = None
    version: str = ""


class Format(Protocol):
    """One module per format implements these two."""

    def read(self, shard: Shard, config: SourceConfig, start: int, wanted: Wanted) -> Iterator[Item]:
        """Samples in order, from index `start` on. Samples that are not wanted may be left out.

        Raises:
            ShardDamaged: the shard cannot be read further.
            Exception: anything that `retries.is_transient` accepts; the caller opens again at the next index.
        """
        ...

    def count(self, shard: Shard, config: SourceConfig, at_most: int) -> int:
        """Number of samples, counted no further than `at_most`, without reading images where the format allows."""
        ...


def count_intact(samples: Iterator[object], at_most: int) -> int:
    """How many `samples` come before the end or any damage, counted no further than `at_most`."""
    counted = 0
    with suppress(ShardDamaged):
        for _ in islice(samples, at_most):
            counted += 1
    return counted


def fingerprint(*facts: object) -> str:
    """Short hash of what identifies a file's content."""
    return hashlib.sha256("\x1f".join(map(str, facts)).encode()).hexdigest()[:16]


def hidden(path: str) -> bool:
    """Whether `path` is an operating system's leftover: a part of it starts with a dot, or is `__MACOSX`."""
    return any(part == "__MACOSX" or (part.startswith(".") and part.strip(".")) for part in path.split("/"))

"""Small copies of images, read once more from the source of the run.

What cannot be read is left out and counted: a report is of use without pictures, too.
"""

import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from birder_ray.errors import ConfigError, SampleError
from birder_ray.report.facts import Image
from birder_ray.reread import Source, reason, small
from birder_ray.source.fetch import prefetch

SIDE_PX = 192
MAX_BYTES = 16_000
"""Of one JPEG."""

_QUALITIES = (80, 60, 40, 20)
_SIDE_BY_SIDE = 4


@dataclass(frozen=True)
class Thumbnails:
    """JPEGs by sample, and how many images have none, by reason."""

    jpegs: Mapping[str, bytes]
    left_out: Mapping[str, int]


def thumbnails(
    manifest: Mapping[str, Any], images: Iterable[Image], source_options: Mapping[str, Any] | None = None
) -> Thumbnails:
    """Read these images from the source of a run. A tar is read from its start to the last image wanted.

    Args:
        manifest: of the run. source_options: fsspec options of the source, which no manifest holds.
    """
    wanted: dict[str, dict[int, Image]] = defaultdict(dict)
    for image in images:
        wanted[image.shard][image.index] = image
    if not wanted:
        return Thumbnails({}, {})
    try:
        source = Source(manifest, source_options)
    except ConfigError as error:
        return Thumbnails({}, {str(error): sum(map(len, wanted.values()))})

    def read(name: str) -> tuple[dict[str, bytes], Counter[str]]:
        return _of_shard(source, name, wanted[name])

    jpegs: dict[str, bytes] = {}
    left_out: Counter[str] = Counter()
    for found, missing in prefetch(read, sorted(wanted), _SIDE_BY_SIDE):
        jpegs |= found
        left_out += missing
    return Thumbnails(jpegs, dict(sorted(left_out.items())))


def jpeg(data: bytes) -> bytes:
    """An encoded image as a JPEG of at most `SIDE_PX` and `MAX_BYTES`, without EXIF, comments or colour profile. Its
    EXIF orientation is not applied, as the network did not see it applied either.

    Raises:
        OSError, ValueError, SyntaxError: what Pillow says of a damaged image, or of one of far too many pixels.
    """
    from PIL import Image as Pillow

    shown = small(data, 2 * SIDE_PX)
    shown.thumbnail((SIDE_PX, SIDE_PX))
    bare = Pillow.new("RGB", shown.size)  # Pillow writes a comment that came with the image
    bare.paste(shown)
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        bare.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= MAX_BYTES:
            return buffer.getvalue()
    raise ValueError(f"more than {MAX_BYTES} bytes, however small")


def _of_shard(source: Source, name: str, wanted: Mapping[int, Image]) -> tuple[dict[str, bytes], Counter[str]]:
    left = dict(wanted)
    jpegs: dict[str, bytes] = {}
    missing: Counter[str] = Counter()
    try:
        with closing(source.read(name, min(left), left.__contains__)) as items:  # type: ignore[type-var]
            for sample, content in items:
                image = left.pop(sample.index, None)
                if image is not None:
                    try:
                        jpegs[image.sample] = jpeg(_checked(image, sample.sample, content))
                    except Exception as error:
                        missing[reason(error)] += 1
                if not left:
                    break
    except Exception as error:
        missing[reason(error)] += len(left)
        left = {}
    missing.update({"not in their shard": len(left)} if left else {})
    return jpegs, missing


def _checked(image: Image, sample: str, content: bytes | SampleError) -> bytes:
    if isinstance(content, SampleError):
        raise content
    if sample != image.sample:
        raise ValueError("another image is in their place")
    return content

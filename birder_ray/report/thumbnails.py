"""Small copies of images, read once more from the source of the run.

What cannot be read is left out and counted: a report is of use without pictures, too.
"""

import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from birder_ray.config import RunConfig, SourceConfig
from birder_ray.errors import SampleError, plain
from birder_ray.manifest import lacking_options, reopened
from birder_ray.report.facts import Image
from birder_ray.source import list_shards, read_samples
from birder_ray.source.base import FORMATS, Shard
from birder_ray.source.fetch import prefetch

SIDE_PX = 192
MAX_BYTES = 16_000
"""Of one JPEG."""

_QUALITIES = (80, 60, 40, 20)
_SIDE_BY_SIDE = 4
_MAX_PIXELS = 50_000_000
"""Four such images at once take 800 MB."""


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
        source = _source(manifest, source_options)
        shards = {shard.name: shard for shard in list_shards(source)}
    except Exception as error:
        reason = f"{plain(str(error) or type(error).__name__)}{lacking_options(manifest, source_options)}"
        return Thumbnails({}, {reason: sum(map(len, wanted.values()))})
    fingerprints = {each["name"]: each["fingerprint"] for each in manifest["inputs"]}

    def read(name: str) -> tuple[dict[str, bytes], Counter[str]]:
        shard, those = shards.get(name), wanted[name]
        if shard is None:
            return {}, Counter({"their shard is not in the source any more": len(those)})
        if shard.fingerprint != fingerprints.get(name):
            return {}, Counter({"their shard changed since it was scored": len(those)})
        return _of_shard(shard, source, those)

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

    with Pillow.open(io.BytesIO(data), formats=FORMATS) as opened:
        if opened.width * opened.height > _MAX_PIXELS:
            raise ValueError(f"more than {_MAX_PIXELS:,} pixels")
        opened.draft("RGB", (2 * SIDE_PX, 2 * SIDE_PX))
        small = opened.convert("RGB")
    small.thumbnail((SIDE_PX, SIDE_PX))
    bare = Pillow.new("RGB", small.size)  # Pillow writes a comment that came with the image
    bare.paste(small)
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        bare.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= MAX_BYTES:
            return buffer.getvalue()
    raise ValueError(f"more than {MAX_BYTES} bytes, however small")


def _of_shard(shard: Shard, source: SourceConfig, wanted: Mapping[int, Image]) -> tuple[dict[str, bytes], Counter[str]]:
    left = dict(wanted)
    jpegs: dict[str, bytes] = {}
    missing: Counter[str] = Counter()
    try:
        with closing(read_samples(shard, source, min(left), left.__contains__)) as items:  # type: ignore[type-var]
            for sample, content in items:
                image = left.pop(sample.index, None)
                if image is not None:
                    try:
                        jpegs[image.sample] = jpeg(_checked(image, sample.sample, content))
                    except Exception as error:
                        missing[_reason(error)] += 1
                if not left:
                    break
    except Exception as error:
        missing[_reason(error)] += len(left)
        left = {}
    missing.update({"not in their shard": len(left)} if left else {})
    return jpegs, missing


def _checked(image: Image, sample: str, content: bytes | SampleError) -> bytes:
    if isinstance(content, SampleError):
        raise content
    if sample != image.sample:
        raise ValueError("another image is in their place")
    return content


def _source(manifest: Mapping[str, Any], options: Mapping[str, Any] | None) -> SourceConfig:
    """Without the consent that the run had to read local files which a manifest on a server names: whoever wrote this
    destination may have written that, too."""
    fields = reopened(manifest, options)
    fields["source"]["allow_local_uris"] = False
    return RunConfig(**fields).source


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # which tells an address in memory
        return "UnidentifiedImageError: no image any more"
    return plain(f"{getattr(error, 'error_type', type(error).__name__)}: {error}")

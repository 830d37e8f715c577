"""The source of a run, opened once more: images of shards that are still what they were when they were scored."""

import io
from collections.abc import Iterator, Mapping
from typing import Any

from birder_ray.config import RunConfig
from birder_ray.errors import BirderRayError, ConfigError, SampleError, plain
from birder_ray.manifest import lacking_options, reopened
from birder_ray.source import list_shards, read_samples
from birder_ray.source.base import FORMATS, Item, Wanted

MAX_PIXELS = 50_000_000
"""Four such images at once take 800 MB."""


_EACH_ITS_OWN = {"NotFound", "Forbidden", "ReadFailed"}
"""Errors whose message names the image: with it, each of millions would have a line of its own."""


class OtherShard(BirderRayError):
    """A shard is gone, or holds something else by now; its message says so of "their shard"."""


class Source:
    """The images of a run, where it found them.

    Without the consent that the run had to read local files which a manifest on a server names: whoever wrote this
    destination may have written that, too.

    Args:
        manifest: of the run. options: fsspec options of the source, which no manifest holds.

    Raises:
        ConfigError: the source is not there, or cannot be reached.
    """

    def __init__(self, manifest: Mapping[str, Any], options: Mapping[str, Any] | None = None):
        try:
            fields = reopened(manifest, options)
            fields["source"]["allow_local_uris"] = False
            self.config = RunConfig(**fields).source
            self._shards = {shard.name: shard for shard in list_shards(self.config)}
        except Exception as error:  # every filesystem has exceptions of its own
            text = f"{plain(str(error) or type(error).__name__)}{lacking_options(manifest, options)}"
            raise ConfigError(text) from None
        self._fingerprints = {each["name"]: each["fingerprint"] for each in manifest["inputs"]}

    def read(self, shard: str, start: int, wanted: Wanted) -> Iterator[Item]:
        """Samples of a shard as `read_samples` gives them. A tar is read from its start to the last one taken.

        Raises:
            OtherShard: it is not what was scored. ShardDamaged, RunFailed: as `read_samples`.
        """
        found = self._shards.get(shard)
        if found is None:
            raise OtherShard("their shard is not in the source any more")
        if found.fingerprint != self._fingerprints.get(shard):
            raise OtherShard("their shard changed since it was scored")
        return read_samples(found, self.config, start, wanted)


def small(data: bytes, side_px: int) -> Any:
    """An encoded image as an RGB Pillow image; a large JPEG is decoded only as large as `side_px` asks for. Its EXIF
    orientation is not applied, as the network did not see it applied either.

    Raises:
        OSError, ValueError, SyntaxError: what Pillow says of a damaged image, or of one of far too many pixels.
    """
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(f"more than {MAX_PIXELS:,} pixels")
        opened.draft("RGB", (side_px, side_px))
        return opened.convert("RGB")


def reason(error: Exception) -> str:
    """Why an image is left out, for counting: the same words for the same cause."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # which tells an address in memory
        return "UnidentifiedImageError: no image any more"
    if isinstance(error, OtherShard):
        return str(error)
    if isinstance(error, SampleError) and error.error_type in _EACH_ITS_OWN:
        return f"{error.error_type}: storage does not give them now"
    return plain(f"{getattr(error, 'error_type', type(error).__name__)}: {error}")

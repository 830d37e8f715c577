"""Directories of image files: one directory is one shard, its images sorted by name."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import fsspec

from birder_ray.chunk import Sample
from birder_ray.config import SourceConfig
from birder_ray.errors import RunFailed
from birder_ray.retries import retry
from birder_ray.source.base import IMAGE_SUFFIXES, Item, Shard, Wanted, hidden
from birder_ray.source.fetch import fetch, prefetch
from birder_ray.source.find import describe, list_folder, of_files
from birder_ray.storage import filesystem, join, redact


@dataclass(frozen=True)
class _Directory:
    shard: Shard
    config: SourceConfig = field(compare=False)


def read(shard: Shard, config: SourceConfig, start: int, wanted: Wanted) -> Iterator[Item]:
    """See `Format`. The label is the name of the directory, unless that is the source itself."""
    fs, folder = filesystem(shard.uri, config.options)
    images = _images(_Directory(shard, config))
    label = shard.name.rpartition("/")[2] or None

    def item(index: int) -> Item:
        name, size = images[index]
        uri = redact(join(shard.uri, name)).encode(errors="backslashreplace").decode()
        path = f"{shard.name}/{uri.rpartition('/')[2]}".removeprefix("/")
        return Sample(path, index, label, uri), fetch(fs, join(folder, name), size)

    yield from prefetch(item, filter(wanted, range(start, len(images))))


def count(shard: Shard, config: SourceConfig, at_most: int) -> int:
    """See `Format`."""
    return min(len(_images(_Directory(shard, config))), at_most)


@lru_cache(maxsize=1)  # a process reads many ranges of one large directory, whose listing takes minutes
def _images(directory: _Directory) -> list[tuple[str, int | None]]:
    """Names and sizes, where known, in the order of the indices."""
    shard = directory.shard
    if shard.members is not None:
        images: list[tuple[str, int | None]] = [(name, None) for name in shard.members]
    else:
        fs, folder = filesystem(shard.uri, directory.config.options)
        try:
            images = retry(lambda: _listed(fs, folder, shard.fingerprint), attempts=3)
        except _Changed:
            message = f"{redact(shard.uri)}: its images changed since they were listed; run again to list anew"
            raise RunFailed(message) from None
    return sorted(images, key=lambda image: image[0].encode(errors="surrogateescape"))


class _Changed(ConnectionError):
    """A listing is another than before; worth a retry, since that of an eventually consistent store may lag behind."""


def _listed(fs: fsspec.AbstractFileSystem, folder: str, fingerprint: str) -> list[tuple[str, int | None]]:
    infos = {info["name"].rpartition("/")[2]: info for info in list_folder(fs, folder) if info["type"] == "file"}
    files = {
        name: describe(fs, info)
        for name, info in infos.items()
        if name.lower().endswith(IMAGE_SUFFIXES) and not hidden(name)
    }
    if of_files(files) != fingerprint:
        raise _Changed
    return [(name, file.size) for name, file in files.items()]

"""Directories of image files: one directory is one shard, its images sorted by name."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from birder_ray.chunk import Sample
from birder_ray.config import SourceConfig
from birder_ray.errors import RunFailed
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
    names = _names(_Directory(shard, config))
    label = shard.name.rpartition("/")[2] or None

    def item(index: int) -> Item:
        uri = redact(join(shard.uri, names[index])).encode(errors="backslashreplace").decode()
        path = f"{shard.name}/{uri.rpartition('/')[2]}".removeprefix("/")
        return Sample(path, index, label, uri), fetch(fs, join(folder, names[index]))

    yield from prefetch(item, filter(wanted, range(start, len(names))))


def count(shard: Shard, config: SourceConfig, at_most: int) -> int:
    """See `Format`."""
    return min(len(_names(_Directory(shard, config))), at_most)


@lru_cache(maxsize=1)  # a process reads many ranges of one large directory, whose listing takes minutes
def _names(directory: _Directory) -> list[str]:
    shard = directory.shard
    names = shard.members
    if names is None:
        fs, folder = filesystem(shard.uri, directory.config.options)
        infos = {info["name"].rpartition("/")[2]: info for info in list_folder(fs, folder) if info["type"] == "file"}
        names = tuple(name for name in infos if name.lower().endswith(IMAGE_SUFFIXES) and not hidden(name))
        if of_files({name: describe(fs, infos[name]) for name in names}) != shard.fingerprint:
            raise RunFailed(f"{redact(shard.uri)}: its images changed since they were listed; run again to list anew")
    return sorted(names, key=lambda name: name.encode(errors="surrogateescape"))

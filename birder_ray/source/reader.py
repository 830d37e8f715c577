"""Reading a shard of any format, through transient I/O errors, to its end or to where it is damaged."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from birder_ray.config import SourceConfig
from birder_ray.errors import BirderRayError, RunFailed, ShardDamaged
from birder_ray.retries import retry
from birder_ray.source import images, manifest, parquet, tar
from birder_ray.source.base import Format, Item, Shard, Wanted
from birder_ray.source.fetch import failure, reason
from birder_ray.storage import redact

T = TypeVar("T")

_FORMATS: dict[str, Format] = {"images": images, "tar": tar, "parquet": parquet, "manifest": manifest}


def read_samples(
    shard: Shard, config: SourceConfig, start: int = 0, wanted: Wanted = lambda index: True
) -> Iterator[Item]:
    """Samples of `shard` in order, at strictly increasing indices, from index `start` on, those `wanted`.

    Raises:
        ShardDamaged: its content is damaged from here on. What was yielded stands.
        RunFailed: storage does not give it: gone, forbidden, or out of reach after retries.
    """
    read, position = _FORMATS[shard.format].read, start
    items: Iterator[Item] | None = None

    def advance() -> Item | None:
        nonlocal items
        items = items or read(shard, config, position, wanted)
        try:
            return next(items, None)
        except Exception:
            items = None  # a generator that raised is spent: the next attempt opens the shard again
            raise

    while (item := _read(shard, advance)) is not None:
        position = item[0].index + 1
        yield item


def count_samples(shard: Shard, config: SourceConfig, at_most: int) -> int:
    """Number of samples that `read_samples` gives, counted no further than `at_most`.

    Raises:
        RunFailed: storage does not give the shard.
    """
    if shard.count is not None:
        return min(shard.count, at_most)
    try:
        return _read(shard, lambda: _FORMATS[shard.format].count(shard, config, at_most))
    except ShardDamaged:
        return 0  # reading it will say why


def _read(shard: Shard, call: Callable[[], T]) -> T:
    """`call()`, with retries. What storage refuses for good ends the run: were it quarantined, an outage or lapsed
    credentials would leave a run that looks finished."""
    try:
        return retry(call)
    except BirderRayError:
        raise
    except Exception as error:
        raise RunFailed(
            f"{redact(shard.uri)}: {reason(error)} ({failure(error)}); what is committed stands, run again to resume"
        ) from error

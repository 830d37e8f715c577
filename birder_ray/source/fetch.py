"""Many small reads: in order, several in flight, each failure its own."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import fsspec

from birder_ray.errors import SampleError
from birder_ray.retries import is_outage
from birder_ray.storage import read_whole

T = TypeVar("T")
U = TypeVar("U")

WORKERS = 16


def prefetch(call: Callable[[T], U], items: Iterable[T], workers: int = WORKERS) -> Iterator[U]:
    """`call(item)` for each item, in order, with up to twice `workers` results under way or waiting.

    An error of `items` itself is raised after the results of the items before it.
    """
    pool = ThreadPoolExecutor(workers)
    pending: deque[Future[U]] = deque()
    iterator, failed = iter(items), None
    try:
        while True:
            try:
                pending.append(pool.submit(call, next(iterator)))
            except StopIteration:
                break
            except Exception as error:
                failed = error
                break
            if len(pending) == 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        if failed:
            raise failed
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def fetch(fs: fsspec.AbstractFileSystem, path: str, size: int | None = None) -> bytes | SampleError:
    """The encoded bytes of one image, `size` of them where that is known, or why there are none.

    Raises:
        Exception: the whole store is out of reach; a host on the web that is, is one of many.
    """
    try:
        data = read_whole(fs, path, size)
    except SampleError as error:
        return error
    except Exception as error:
        if is_outage(error) and "http" not in fs.protocol:
            raise
        return SampleError(failure(error), reason(error))
    return data or SampleError("EmptyFile", "the file has no bytes")


def failure(error: BaseException) -> str:
    """Error type of a failed read: NotFound, Forbidden or ReadFailed."""
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return "NotFound"
    if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in type(error).__name__:
        return "Forbidden"
    return "ReadFailed"


def reason(error: BaseException) -> str:
    """What `error` is and says; for a message, which loses what may hold credentials as all do."""
    return f"{type(error).__name__}: {error}"

"""URLs: what they mean, and how files behind them are opened.

Filesystems are built where they are used (they do not travel between processes); fsspec keeps one instance per
process and set of options.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from birder_ray.errors import ConfigError
from birder_ray.retries import ShortBody, retry

# User and password; in a password, but not in a port, there may be slashes
_USER = re.compile(r"^(?:[^/@]*|[^/@:]+:(?!\d+(?:[/?#]|$)).*)@", re.DOTALL)

# botocore slows down when it is told to; `retry` does the rest, and s3fs must not multiply the two
_S3_RETRIES = {"mode": "adaptive", "total_max_attempts": 3}


def filesystem(url: str, options: Mapping[str, Any] | None = None) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of `url` and the path in it.

    Raises:
        ConfigError: the protocol is unknown or its package is not installed.
    """
    options = dict(options or {})
    if is_s3 := url.startswith(("s3://", "s3a://")):
        options["config_kwargs"] = {"retries": _S3_RETRIES, **options.get("config_kwargs", {})}
    try:
        fs, path = url_to_fs(url, use_listings_cache=False, **options)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{redact(url)}: {error}") from None
    if is_s3:
        fs.retries = 1
    return fs, path


def is_local(url: str) -> bool:
    """Whether `url` names a file of this machine."""
    return isinstance(filesystem(url)[0], LocalFileSystem) if "://" not in url or url.startswith("file:") else False


def redact(url: str) -> str:
    """`url` without user, password and query string, which may hold credentials."""
    return "::".join(map(_redact_one, url.split("::"))) if "://" in url else url


def _redact_one(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    if scheme.lower().startswith("http"):
        rest = rest.partition("?")[0]
    return f"{scheme}://{_USER.sub('', rest, count=1)}"


def has_suffix(url: str, *suffixes: str) -> bool:
    """Whether the file at `url`, which may be signed and so end otherwise itself, has one of `suffixes` in any case."""
    return redact(url).lower().endswith(suffixes)


def join(root: str, *names: str) -> str:
    """`root/name/...` for paths and URLs alike."""
    return (root if root.endswith("/") else f"{root}/") + "/".join(names)


@contextmanager
def open_binary(url: str, options: Mapping[str, Any] | None = None, **open_options: Any) -> Iterator[IO[bytes]]:
    """Open `url` for reading. Of a remote file, each block that fails is read again, not what came before it."""
    fs, path = filesystem(url, options)
    with retry(lambda: fs.open(path, "rb", **open_options)) as file:
        cache = getattr(file, "cache", None)
        if cache is not None:
            cache.fetcher = _whole_blocks(cache.fetcher, file.size)
        yield file


def _whole_blocks(fetch: Callable[[int, int], bytes], size: int) -> Callable[[int, int], bytes]:
    def fetch_whole(start: int, end: int) -> bytes:
        return retry(lambda: _whole(fetch(start, end), min(end, size) - start))

    return fetch_whole


def read_whole(fs: fsspec.AbstractFileSystem, path: str, size: int | None = None) -> bytes:
    """All bytes of a file, which its listing says are `size`, in one request."""
    one_request = {"max_concurrency": 1} if "s3" in fs.protocol else {}  # else s3fs asks for the size of each first
    return retry(lambda: _whole(bytes(fs.cat_file(path, **one_request)), size))


def _whole(data: bytes, size: int | None) -> bytes:
    if size is not None and len(data) < size:
        raise ShortBody(f"{len(data)} bytes came of {size}")
    return data

"""URLs: what they mean, and how files behind them are opened.

Filesystems are built where they are used (they do not travel between processes); fsspec keeps one instance per
process and set of options.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from birder_ray.errors import ConfigError


def filesystem(url: str, options: Mapping[str, Any] | None = None) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of `url` and the path in it.

    Raises:
        ConfigError: the protocol is unknown or its package is not installed.
    """
    try:
        fs, path = url_to_fs(url, use_listings_cache=False, **(options or {}))
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{redact(url)}: {error}") from None
    return fs, path


def is_local(url: str) -> bool:
    """Whether `url` names a file of this machine."""
    return isinstance(filesystem(url)[0], LocalFileSystem) if "://" not in url or url.startswith("file:") else False


def redact(url: str) -> str:
    """`url` without user, password and query string, which may hold credentials."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    if scheme.rpartition("::")[2].startswith("http"):
        rest = rest.partition("?")[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def join(root: str, *names: str) -> str:
    """`root/name/...` for paths and URLs alike."""
    return (root if root.endswith("/") else f"{root}/") + "/".join(names)


@contextmanager
def open_binary(url: str, options: Mapping[str, Any] | None = None, **open_options: Any) -> Iterator[IO[bytes]]:
    """Open `url` for reading."""
    fs, path = filesystem(url, options)
    with fs.open(path, "rb", **open_options) as file:
        yield file

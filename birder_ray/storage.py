"""URLs and files: every read and write of bytes outside the process goes through here.

Filesystems are built where they are used (they do not travel between processes); fsspec keeps one instance per
process and set of options.
"""

import errno
import json
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, TypeVar

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from birder_ray.errors import ConfigError

T = TypeVar("T")

_PERMANENT_ERRNO = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENOSPC, errno.EROFS, errno.EDQUOT,
    errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL, errno.ENOSYS,
}  # fmt: skip
_TRANSIENT_NAMES = {
    "ClientError", "ConnectionClosedError", "EndpointConnectionError", "ReadTimeoutError", "ConnectTimeoutError",
    "IncompleteReadError", "ResponseStreamingError", "HTTPClientError", "ClientPayloadError", "ServerDisconnectedError",
    "ClientConnectorError", "ClientOSError", "ServerTimeoutError", "FSTimeoutError", "HttpError",
}  # fmt: skip


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


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: timeouts, resets, 5xx and throttling, but not a missing or forbidden file."""
    if isinstance(
        error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError | FileExistsError
    ):
        return False
    status = _http_status(error)
    if status is not None and status >= 400:
        return status >= 500 or status in (408, 409, 429)  # S3 says 409 when two conditional writes meet
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if type(error).__name__ in _TRANSIENT_NAMES:
        return True
    return isinstance(error, OSError) and error.errno not in _PERMANENT_ERRNO and type(error) is OSError


def _http_status(error: BaseException) -> int | None:
    """The status behind an error of aiohttp or botocore, or of s3fs, which keeps botocore's as the cause."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        status = getattr(candidate, "status", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(status, int):
            return status
    return None


def retry(call: Callable[[], T], attempts: int = 5, first_delay_s: float = 0.5) -> T:
    """`call()`, again after a transient error, with exponential backoff and jitter.

    Raises:
        whatever `call` raised last.
    """
    for attempt in range(attempts):
        try:
            return call()
        except Exception as error:
            if attempt + 1 == attempts or not is_transient(error):
                raise
            time.sleep(first_delay_s * 2**attempt * random.uniform(0.5, 1.5))
    raise AssertionError("attempts must be positive")


@contextmanager
def open_binary(url: str, options: Mapping[str, Any] | None = None, **open_options: Any) -> Iterator[IO[bytes]]:
    """Open `url` for reading."""
    fs, path = filesystem(url, options)
    with fs.open(path, "rb", **open_options) as file:
        yield file


class Folder:
    """A destination folder: whole-object writes under fixed names, on a local disk or an object store."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None):
        bare = url.rstrip("/")
        self.url = url if not bare or bare.endswith(":") else bare  # "/" and "memory://" stay as they are
        self.options = dict(options or {})
        self.fs, self.path = filesystem(self.url, self.options)
        self.path = self.path.rstrip("/")
        self.local = isinstance(self.fs, LocalFileSystem)

    def check(self) -> None:
        """Look whether the folder can be used at all.

        Raises:
            ConfigError: it is a file, or access to it is refused, or its server does not answer.
        """
        try:
            if retry(lambda: self.fs.exists(self.path)) and not retry(lambda: self.fs.isdir(self.path)):
                raise ConfigError(f"{redact(self.url)}: is a file, not a folder")
            if self.local:
                self._check_parent()
        except ConfigError:
            raise
        except Exception as error:  # every filesystem has exceptions of its own
            text = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{redact(self.url)}: cannot be reached: {text}; check the URL and the credentials"
            ) from None

    def _check_parent(self) -> None:
        parent = self.path
        while not os.path.lexists(parent):
            parent = os.path.dirname(parent)
        if not os.path.isdir(parent):
            raise ConfigError(f"{redact(self.url)}: {parent} is a file, not a folder")

    def at(self, name: str) -> str:
        return f"{self.path}/{name}"

    def write(self, name: str, data: bytes) -> None:
        """Write all of `name` or nothing: a reader, or a crash, never sees half of it."""
        if not self.local:
            retry(lambda: self.fs.pipe_file(self.at(name), data))
            return
        target = self.at(name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        temporary = f"{target}.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise

    def create(self, name: str, data: bytes) -> bool:
        """Write `name` only if it does not exist; whether it was written. One of many racing callers wins.

        `data` must be the caller's own (a token in it): a write whose answer was lost is recognised by it.
        """
        if self.local:
            target = self.at(name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            temporary = f"{target}.{uuid.uuid4().hex}.tmp"
            with open(temporary, "wb") as file:
                file.write(data)
            try:
                os.link(temporary, target)  # unlike O_EXCL, the name appears with its content
                return True
            except FileExistsError:
                return False
            finally:
                os.unlink(temporary)
        try:
            retry(lambda: self.fs.pipe_file(self.at(name), data, mode="create"))
            return True
        except OSError as error:
            # an S3 server that does not say which condition failed makes s3fs raise a plain OSError
            if not isinstance(error, FileExistsError) and _http_status(error) != 412:
                raise
        try:
            return self.read(name) == data
        except FileNotFoundError:  # deleted meanwhile
            return False

    def read(self, name: str) -> bytes:
        """All bytes of `name`. Raises FileNotFoundError."""
        return retry(lambda: bytes(self.fs.cat_file(self.at(name))))

    def exists(self, name: str) -> bool:
        return bool(retry(lambda: self.fs.exists(self.at(name))))

    def names(self, folder: str) -> dict[str, int]:
        """File names directly in `folder` with their sizes in bytes; temporary files of a crash are left out."""
        try:
            entries = retry(lambda: self.fs.ls(self.at(folder), detail=True, refresh=True))
        except FileNotFoundError:
            return {}
        named = ((entry["name"].rpartition("/")[2], entry) for entry in entries if entry["type"] == "file")
        return {name: entry["size"] for name, entry in named if name and not name.endswith(".tmp")}

    def delete(self, name: str) -> None:
        """Delete `name` if it is there."""
        try:
            retry(lambda: self.fs.rm_file(self.at(name)))
        except FileNotFoundError:
            return

    def sweep(self, folder: str) -> None:
        """Delete what crashes left half-written in `folder`. Only for the owner of the destination."""
        if not self.local or not os.path.isdir(self.at(folder)):
            return
        for entry in os.scandir(self.at(folder)):
            if entry.is_file() and entry.name.endswith(".tmp"):
                os.unlink(entry.path)

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=1, sort_keys=False, ensure_ascii=False).encode())

    def read_json(self, name: str) -> Any:
        """Raises FileNotFoundError, or ValueError where the file is no JSON."""
        return json.loads(self.read(name))

"""A destination folder: whole-object writes under fixed names, on a local disk or an object store.

`create` and `replace` are what exclusion is built on: writes that happen only if nobody else has written. Conditional
requests decide on S3 (`If-None-Match`, `If-Match`); on a local disk a lock on the folder, for as long as one rename
takes. Other object stores compare before they write, which leaves a moment in between.
"""

import errno
import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from birder_ray.errors import ConfigError, RunFailed
from birder_ray.retries import http_status, retry
from birder_ray.storage import filesystem, read_whole, redact

_ONE_PUT_BYTES = 2 * 2**30
"""Up to here s3fs is told to write with one conditional PUT; above, in parts."""

_NOT_SUPPORTED = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EMLINK}
"""What file systems without hard links, or without locks, say."""

_RENAME_S = 10.0
"""A rename takes no longer, unless the process that is at it is stopped."""


class Folder:
    """Files of a destination.

    Args:
        url: local path or fsspec URL. options: fsspec's.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None):
        bare = url.rstrip("/")
        self.url = url if not bare or bare.endswith(":") else bare  # "/" and "memory://" stay as they are
        self.options = dict(options or {})
        self.fs, self.path = filesystem(self.url, self.options)
        self.path = self.path.rstrip("/")
        self.local = isinstance(self.fs, LocalFileSystem)
        self._s3 = "s3" in ((self.fs.protocol,) if isinstance(self.fs.protocol, str) else self.fs.protocol)

    @property
    def everywhere(self) -> bool:
        """Whether every machine of a cluster sees the same files."""
        return not self.local and "memory" not in self.fs.protocol

    def check(self) -> None:
        """Look whether the folder can be used at all.

        Raises:
            ConfigError: it is a file, or access to it is refused, or its server does not answer.
        """
        try:
            if retry(lambda: self.fs.exists(self.path), 5) and not retry(lambda: self.fs.isdir(self.path), 5):
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

    def write(self, name: str, data: bytes, content_type: str | None = None) -> None:
        """Write all of `name` or nothing: a reader, or a crash, never sees half of it.

        Args:
            content_type: what S3 tells a browser it is; without, that would save it instead of showing it.
        """
        if not self.local:
            told = {"ContentType": content_type} if content_type and self._s3 else {}
            retry(lambda: self.fs.pipe_file(self.at(name), data, **told))
            return
        with self._written(name, data) as temporary:
            os.replace(temporary, self.at(name))

    def create(self, name: str, data: bytes) -> bool:
        """Write `name` only if it does not exist; whether it was written. One of many racing callers wins.

        `data` must be the caller's own (a token in it): a write whose answer was lost is recognised by it.
        """
        if self.local:
            with self._written(name, data) as temporary:
                try:
                    os.link(temporary, self.at(name))  # unlike O_EXCL, the name appears with its content
                    return True
                except FileExistsError:
                    return False
                except OSError as error:
                    if error.errno not in _NOT_SUPPORTED:
                        raise
                with self._alone():  # a memory stick
                    if os.path.lexists(self.at(name)):
                        return False
                    os.replace(temporary, self.at(name))
                    return True
        return self._put_if(name, data, mode="create")

    def version(self, name: str) -> str | None:
        """What `replace` wants to know; changes with every write. None: there is no such file."""
        try:
            if self.local:
                found = os.stat(self.at(name))
                return f"{found.st_ino} {found.st_mtime_ns} {found.st_size}"
            fresh = {"refresh": True} if self._s3 else {}
            entry = retry(lambda: self.fs.info(self.at(name), **fresh))
        except FileNotFoundError:
            return None
        facts = (entry.get(fact) for fact in ("ETag", "etag", "mtime", "created", "size"))
        return str(next(fact for fact in facts if fact is not None))

    def replace(self, name: str, data: bytes, version: str) -> bool:
        """Write `name` only if it is still at `version`; whether it was written. `data` as for `create`."""
        if self.local:
            with self._written(name, data) as temporary, self._alone():
                if self.version(name) != version:
                    return False
                os.replace(temporary, self.at(name))
                return True
        if self._s3:
            return self._put_if(name, data, IfMatch=version)
        if self.version(name) != version:
            return False
        self.write(name, data)
        return True

    def _put_if(self, name: str, data: bytes, **condition: Any) -> bool:
        if self._s3:
            condition["chunksize"] = _ONE_PUT_BYTES
        try:
            retry(lambda: self.fs.pipe_file(self.at(name), data, **condition))
            return True
        except FileNotFoundError:  # deleted meanwhile, where it was to be replaced
            return False
        except OSError as error:
            # an S3 server that does not say which condition failed makes s3fs raise a plain OSError
            if not isinstance(error, FileExistsError) and http_status(error) != 412:
                raise
        try:
            return self.read(name) == data
        except FileNotFoundError:  # deleted meanwhile
            return False

    @contextmanager
    def _written(self, name: str, data: bytes) -> Iterator[str]:
        """A temporary file that holds `data`, on the disk, beside `name`."""
        target = self.at(name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        temporary = f"{target}.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process replaces anything in this folder meanwhile. Raises RunFailed."""
        deadline = time.monotonic() + _RENAME_S
        folder = os.open(self.path, os.O_RDONLY)
        try:
            while True:
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if error.errno in _NOT_SUPPORTED:  # some network drives: what is compared stays compared
                        break
                    if not isinstance(error, BlockingIOError):
                        raise
                    if time.monotonic() > deadline:
                        raise RunFailed(f"{self.path}: a process that writes to it is stopped; end it") from None
                    time.sleep(0.01)
            yield
        finally:
            os.close(folder)

    def copy(self, name: str, to: str) -> None:
        """Have the bytes of `name` under another name, too: no copy on a local disk, one by the server elsewhere."""
        if not self.local:
            retry(lambda: self.fs.cp_file(self.at(name), self.at(to)))
            return
        os.makedirs(os.path.dirname(self.at(to)), exist_ok=True)
        try:
            os.link(self.at(name), self.at(to))
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED | {errno.EEXIST}:
                raise
            self.write(to, self.read(name))

    def where(self, name: str) -> str:
        """URL of a file, as other programs open it."""
        return self.at(name) if self.local else f"{self.url}/{name}"

    def read(self, name: str) -> bytes:
        """All bytes of `name`. Raises FileNotFoundError."""
        return read_whole(self.fs, self.at(name))

    def exists(self, name: str) -> bool:
        try:
            retry(lambda: self.fs.info(self.at(name)))  # fsspec's own `exists` takes any failure for a no
        except FileNotFoundError:
            return False
        return True

    def names(self, folder: str) -> set[str]:
        """File names directly in `folder`; temporary files of a crash are left out."""
        try:
            found = set(self._local_names(folder) if self.local else self._remote_names(folder))
        except FileNotFoundError:
            return set()
        return {name for name in found if name and not name.endswith(".tmp")}

    def _local_names(self, folder: str) -> Iterator[str]:
        with os.scandir(self.at(folder)) as entries:  # a tenth of the time and memory of fsspec's list
            yield from (entry.name for entry in entries if entry.is_file())

    def _remote_names(self, folder: str) -> Iterator[str]:
        entries = retry(lambda: self.fs.ls(self.at(folder), detail=True, refresh=True))
        return (entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file")

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
        self.write(name, to_json(value))

    def read_json(self, name: str) -> Any:
        """Raises FileNotFoundError, or ValueError where the file is no JSON."""
        return json.loads(self.read(name))


def to_json(value: Any) -> bytes:
    """`value` as JSON that people can read."""
    return json.dumps(value, indent=1, ensure_ascii=False).encode()

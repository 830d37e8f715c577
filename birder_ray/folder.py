"""A destination folder: whole-object writes under fixed names, on a local disk or an object store."""

import json
import os
import uuid
from collections.abc import Mapping
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from birder_ray.errors import ConfigError
from birder_ray.retries import http_status, retry
from birder_ray.storage import filesystem, redact


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
            if not isinstance(error, FileExistsError) and http_status(error) != 412:
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

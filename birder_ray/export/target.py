"""Where an export goes: a file or a folder, local or at any fsspec URL, that is there whole or not at all."""

import gzip
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, cast

from birder_ray.errors import ConfigError
from birder_ray.folder import Folder
from birder_ray.retries import retry
from birder_ray.storage import redact

MARK = b"made with birder-ray"
"""Stands in the card of a folder that `whole_folder` may replace."""


@contextmanager
def whole_file(url: str, options: Mapping[str, Any], overwrite: bool) -> Iterator[Path]:
    """The path of a local file to be written, which stands at `url` if the block comes to its end, and nowhere if not.

    Written beside its place on a local disk, else in a temporary folder (TMPDIR) and sent in one go.

    Raises:
        ConfigError: something is there, and `overwrite` was not given, or it cannot be written there.
    """
    parent, name = _split(url, options)
    _refuse(parent, name, url, overwrite)
    with _failing(url):
        if parent.local:
            os.makedirs(parent.path, exist_ok=True)
            temporary = Path(parent.at(f".{name}.{uuid.uuid4().hex}.tmp"))
            try:
                yield temporary
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
                _refuse(parent, name, url, overwrite)  # it has taken a while
                os.replace(temporary, parent.at(name))
            finally:
                temporary.unlink(missing_ok=True)
        else:
            with TemporaryDirectory(prefix="birder-ray-") as folder:
                yield Path(folder, name)
                retry(lambda: parent.fs.put_file(str(Path(folder, name)), parent.at(name)))


@contextmanager
def whole_folder(url: str, options: Mapping[str, Any], overwrite: bool, card: str) -> Iterator[Folder]:
    """A folder to be filled, which stands at `url` if the block comes to its end.

    A local one is made beside its place and renamed. An object store has no such thing: there the files are written in
    place, and `card` must be the last of them; without it, the folder is not finished.

    Raises:
        ConfigError: as `whole_file`; with `overwrite`, too, where what is there has no card with `MARK`.
    """
    parent, name = _split(url, options)
    _refuse(parent, name, url, overwrite)
    there = Folder(url, options)
    old = _exists(parent, name)
    if old and not _ours(there, card):
        raise ConfigError(f"{redact(url)}: is no export of birder-ray, and is not replaced; choose another --output")
    with _failing(url):
        if parent.local:
            mark = uuid.uuid4().hex
            made, away = parent.at(f".{name}.{mark}.tmp"), parent.at(f".{name}.{mark}.old")
            os.makedirs(made)
            try:
                yield Folder(made)
                if old:
                    os.rename(there.path, away)
                os.rename(made, there.path)
            finally:
                shutil.rmtree(made, ignore_errors=True)
                shutil.rmtree(away, ignore_errors=True)
        else:
            if old:
                there.delete(card)
                retry(lambda: there.fs.rm(there.path, recursive=True))
            yield there


@contextmanager
def opened(path: Path, name: str) -> Iterator[BinaryIO]:
    """`path` for writing, compressed if `name` ends in .gz; the same content gives the same bytes."""
    with open(path, "wb") as raw:
        if not name.lower().endswith(".gz"):
            yield raw
            return
        with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0) as file:
            yield cast(BinaryIO, file)


def _split(url: str, options: Mapping[str, Any]) -> tuple[Folder, str]:
    bare = url.rstrip("/")
    parent, slash, name = bare.rpartition("/")
    if name in ("", ".", "..") or name.endswith(":") or parent.endswith((":", ":/")):
        raise ConfigError(f"--output {redact(url)}: give the file or folder to be made, e.g. exported/scores")
    folder = Folder(parent if slash and parent else "/" if slash else ".", options)
    folder.check()
    return folder, name


def _refuse(parent: Folder, name: str, url: str, overwrite: bool) -> None:
    if not overwrite and _exists(parent, name):
        raise ConfigError(f"{redact(url)}: is there already; choose another --output, or give --overwrite")


def _exists(parent: Folder, name: str) -> bool:
    return parent.exists(name)


def _ours(folder: Folder, card: str) -> bool:
    with suppress(FileNotFoundError, NotADirectoryError):
        return MARK in folder.read(card)
    return False


@contextmanager
def _failing(url: str) -> Iterator[None]:
    """Turns what a filesystem says into a plain line."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{redact(url)}: not written: {error}; check the path, its space, and TMPDIR") from None

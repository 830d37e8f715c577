"""Where an export goes: a file or a folder, local or at any fsspec URL, that is there whole or not at all."""

import gzip
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, cast

from birder_ray.errors import ConfigError
from birder_ray.folder import Folder
from birder_ray.retries import retry
from birder_ray.storage import redact

MARK = b"made with birder-ray"
"""Stands in the card of a folder that `whole_folder` may replace."""

UNFINISHED = "_unfinished"
"""Stands in a folder on an object store from before its first file until after its last."""


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


@dataclass
class Filling:
    """A folder that is being filled.

    Args:
        folder: it. card: what its last file holds, to be set by the time it is full. written: names of the others.
    """

    folder: Folder
    card: bytes = b""
    written: set[str] = field(default_factory=set)

    def write(self, name: str, data: bytes) -> None:
        self.folder.write(name, data)
        self.written.add(name)


@contextmanager
def whole_folder(url: str, options: Mapping[str, Any], overwrite: bool, card: str) -> Iterator[Filling]:
    """A folder to be filled, which stands at `url` if the block comes to its end.

    A local one is made beside its place and renamed. An object store has no such thing: there the files are written in
    place, and `card` last; without it, or with `UNFINISHED`, the folder is not finished, and may be begun again.

    Raises:
        ConfigError: as `whole_file`; with `overwrite`, too, where what is there has no card with `MARK`.
    """
    parent, name = _split(url, options)
    there = Folder(url, options)
    begun = not parent.local and _ours(there, UNFINISHED)
    old = _exists(parent, name)
    if not begun:
        _refuse(parent, name, url, overwrite)
    if old and not begun and not _ours(there, card):
        raise ConfigError(f"{redact(url)}: is no export of birder-ray, and is not replaced; choose another --output")
    with _failing(url):
        yield from _beside(there, parent, name, card, old) if parent.local else _in_place(there, card, old)


def _beside(there: Folder, parent: Folder, name: str, card: str, old: bool) -> Iterator[Filling]:
    mark = uuid.uuid4().hex
    made, away = parent.at(f".{name}.{mark}.tmp"), parent.at(f".{name}.{mark}.old")
    os.makedirs(made)
    filling = Filling(Folder(made))
    try:
        yield filling
        filling.folder.write(card, filling.card)
        if old:
            os.rename(there.path, away)
        try:
            os.rename(made, there.path)
        except BaseException:
            if old:
                os.rename(away, there.path)
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    shutil.rmtree(away, ignore_errors=True)


def _in_place(there: Folder, card: str, old: bool) -> Iterator[Filling]:
    before = _files(there) if old else set()
    there.write(UNFINISHED, MARK)
    there.delete(card)
    filling = Filling(there)
    yield filling
    for file in before - filling.written - {card, UNFINISHED}:
        there.delete(file)
    there.write(card, filling.card)
    there.delete(UNFINISHED)


def _files(folder: Folder) -> set[str]:
    """Names of all files in a folder on an object store, those in its folders too."""
    folder.fs.invalidate_cache()
    found: list[str] = retry(lambda: folder.fs.find(folder.path))
    return {path.removeprefix(f"{folder.path}/") for path in found}


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

"""From what the user wrote to the files it names: braces, globs, directories and files, on any filesystem."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import PurePath
from typing import Any, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from birder_ray.config import StorageOptions
from birder_ray.errors import ConfigError
from birder_ray.retries import is_outage, retry
from birder_ray.source.base import fingerprint, hidden
from birder_ray.source.fetch import failure, prefetch, reason
from birder_ray.storage import filesystem, is_local, redact

_VERSION_KEYS = (
    "ETag", "etag", "md5Hash", "content_md5", "blob_id", "mtime", "LastModified", "last_modified", "Last-Modified",
    "updated", "created",
)  # fmt: skip
_FIRST_ATTEMPTS = 5  # somebody waits to hear that the endpoint or the credentials are wrong


class File(NamedTuple):
    """What a listing says about a file; `version` changes with its content as far as the filesystem can tell."""

    uri: str
    size: int | None
    version: str


@dataclass(frozen=True)
class Found:
    """Files of one directory by name. `whole`: the directory was named, not the files.

    `root` and `folder` are URIs; names in the run are relative to the roots.
    """

    root: str
    folder: str
    files: dict[str, File]
    whole: bool


def find(uri: str, options: StorageOptions) -> Iterator[Found]:
    """Directories and files that `uri` names, a directory at a time.

    Raises:
        ConfigError: there is nothing there, or it may not be read.
    """
    try:
        yield from _find(uri, options)
    except FileNotFoundError:
        raise ConfigError(f"{redact(uri)}: no such file or directory; check the path") from None
    except ConfigError:
        raise
    except Exception as error:
        if failure(error) == "Forbidden" and not is_outage(error):  # credentials that have expired say so
            remote = "give credentials in the environment or in source.options, {anon: true} for a public bucket"
            remedy = "check its permissions" if is_local(uri) else remote
            raise ConfigError(f"{redact(uri)}: access is forbidden; {remedy}") from None
        raise ConfigError(f"{redact(uri)}: cannot be listed: {reason(error)}") from None


def list_folder(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[dict[str, Any]]:
    """What is directly in a directory, as fsspec describes it, symbolic links followed."""
    for info in retry(lambda: fs.ls(path, detail=True)):
        if info.get("islink"):
            try:
                info = fs.info(info["name"])
            except OSError:
                info = {**info, "type": "file"}  # leads nowhere: for the reader to report
        info["name"] = info["name"].rstrip("/")
        if info["name"] != path.rstrip("/"):  # the marker of an empty directory on an object store
            yield info


def expand_braces(uri: str) -> list[str]:
    """`{000..099}` and `{a,b}` written out; other braces stay.

    Example:
        >>> expand_braces("{a,b}-{08..10}.tar")[1:4]
        ['a-09.tar', 'a-10.tar', 'b-08.tar']
    """
    for match in re.finditer(r"\{([^{}]*)\}", uri):
        bounds = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
        if bounds:
            first, last = bounds.groups()
            width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
            choices = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
        elif "," in match[1]:
            choices = match[1].split(",")
        else:
            continue
        tails = expand_braces(uri[match.end() :])
        return [uri[: match.start()] + choice + tail for choice in choices for tail in tails]
    return [uri]


def _find(uri: str, options: StorageOptions) -> Iterator[Found]:
    fs, _ = filesystem(uri, options)
    texts = expand_braces(uri)
    folders: list[str] = []
    named: dict[str, dict[str, File]] = defaultdict(dict)
    for text, infos in prefetch(lambda text: (text, _look(fs, text)), texts):
        if not infos:
            raise ConfigError(f"{redact(text)}: no such file or directory; check {redact(uri)}")
        for info in infos:
            if info["type"] == "directory":
                folders.append(info["name"])
            else:
                folder, name = _split(info["name"])
                named[folder][name] = describe(fs, info)
    root = _path(fs, _root(uri))
    if texts == [uri] and folders == [_path(fs, uri)]:
        root = folders[0]
    for folder in folders:
        yield from _walk(fs, folder, _uri(fs, root))
    for folder, files in named.items():
        yield Found(_uri(fs, root), _uri(fs, folder), files, whole=False)


def _look(fs: fsspec.AbstractFileSystem, text: str) -> list[dict[str, Any]]:
    path = _path(fs, text)
    if _is_web(text) and text.endswith("/"):
        return [{"name": path, "type": "directory"}]
    try:
        return [{**retry(lambda: fs.info(path), _FIRST_ATTEMPTS), "name": path}]
    except FileNotFoundError:
        if _is_web(text) or not re.search(r"[*?\[]", text):
            return []
    skip = len(_path(fs, _root(text)))
    return [info for info in _glob(fs, path) if not hidden(info["name"][skip:])]


def _glob(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[dict[str, Any]]:
    """Files and directories that match; fsspec's own takes a directory that fails to be listed for an empty one."""
    if isinstance(fs, LocalFileSystem):
        yield from ({**info, "name": name} for name, info in fs.glob(path, detail=True).items())
        return
    parts = path.split("/")
    fixed = next(index for index, part in enumerate(parts) if re.search(r"[*?\[]", part))
    matches = re.compile(glob_translate(path)).match
    level = ["/".join(parts[:fixed]) or fs.root_marker]
    for depth in count(fixed + 1):
        may_lead = re.compile(glob_translate("/".join(parts[:depth]))).match
        deeper = depth < len(parts) or "**" in path
        below: list[str] = []
        for infos in prefetch(lambda folder: _listed(fs, folder), level):
            yield from (info for info in infos if matches(info["name"]))
            folders = (info["name"] for info in infos if info["type"] == "directory" and deeper)
            below += [folder for folder in folders if "**" in path or may_lead(folder)]
        level = below
        if not level:
            return


def _listed(fs: fsspec.AbstractFileSystem, folder: str) -> list[dict[str, Any]]:
    try:
        return list(list_folder(fs, folder))
    except FileNotFoundError:
        return []


def _walk(fs: fsspec.AbstractFileSystem, top: str, root: str) -> Iterator[Found]:
    level = [top]
    while level:
        below: list[str] = []
        for folder, infos in prefetch(lambda folder: (folder, list(list_folder(fs, folder))), level):
            entries = {info["name"].rpartition("/")[2]: info for info in infos}
            if "_commits" in entries:  # what birder-ray wrote is no source, even next to the photos
                continue
            entries = {name: info for name, info in entries.items() if not hidden(name)}
            files = {name: describe(fs, info) for name, info in entries.items() if info["type"] == "file"}
            below += [info["name"] for info in entries.values() if info["type"] == "directory" and not _loops(info)]
            yield Found(root, _uri(fs, folder), files, whole=True)
        level = below


def _loops(info: dict[str, Any]) -> bool:
    """Whether a directory is a symbolic link to one that it lies in."""
    if not info.get("islink"):
        return False
    real = os.path.realpath(info["name"])
    return any(os.path.realpath(parent) == real for parent in PurePath(info["name"]).parents)


def describe(fs: fsspec.AbstractFileSystem, info: dict[str, Any]) -> File:
    """What a listing's `info` says about a file."""
    version = next((info[key] for key in _VERSION_KEYS if info.get(key)), "unknown")
    return File(_uri(fs, info["name"]), info.get("size"), str(version))


def of_files(files: dict[str, File]) -> str:
    """Fingerprint of a directory: that of all its images by name."""
    return fingerprint(*(f"{name!a} {file.size} {file.version}" for name, file in sorted(files.items())))


def _root(uri: str) -> str:
    """The directories of `uri` before the first brace or wildcard, or before the file name."""
    magic = r"\{" if _is_web(uri) else r"[*?\[{]"
    fixed = takewhile(lambda part: not re.search(magic, part), _split(uri)[0].split("/"))
    return "/".join(fixed) or ("/" if uri.startswith("/") else ".")


def _split(path: str) -> tuple[str, str]:
    """Directory and file name; a name on the web keeps its query string."""
    head, mark, query = path.partition("?") if _is_web(path) else (path, "", "")
    folder, slash, name = head.rpartition("/")
    return folder or slash, name + mark + query


def _path(fs: fsspec.AbstractFileSystem, uri: str) -> str:
    path = str(fs._strip_protocol(uri))
    return os.path.normpath(path) if isinstance(fs, LocalFileSystem) else path.rstrip("/")


def _uri(fs: fsspec.AbstractFileSystem, path: str) -> str:
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def _is_web(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))

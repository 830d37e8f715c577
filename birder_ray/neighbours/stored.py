"""A faiss index as files of a destination: blocks of one size, each written whole and held against its hash."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from birder_ray.neighbours.library import faiss
from birder_ray.scores import Scores

NEIGHBOURS = "neighbours"
_BLOCK_BYTES = 128 << 20


def write_index(scores: Scores, index: Any) -> list[tuple[str, str]]:
    """Write `index` to `neighbours/`.

    Returns:
        name and sha256 of each file, in order.

    Raises:
        ConfigError: this destination may only be read.
    """
    waiting, files = bytearray(), list[tuple[str, str]]()

    def flush(size: int) -> None:
        data = bytes(memoryview(waiting)[:size])
        del waiting[:size]
        name = f"{NEIGHBOURS}/index-{len(files):03d}.faiss"
        scores.write(name, data)
        files.append((name, hashlib.sha256(data).hexdigest()))

    def write(data: bytes) -> int:
        waiting.extend(data)
        while len(waiting) >= _BLOCK_BYTES:
            flush(_BLOCK_BYTES)
        return len(data)

    library = faiss()
    library.write_index(index, library.PyCallbackIOWriter(write))
    flush(len(waiting))
    return files


def read_index(scores: Scores, files: Sequence[Sequence[str]]) -> Any | None:
    """The index in `files`, as `write_index` told them; None where one is missing or is not what was written.

    faiss sees no byte that is not: a damaged count would have it ask for any amount of memory. And it opens no file for
    writing: an index that somebody else made may keep its lists in a file of this machine, which `add` would change.
    """
    left, waiting = iter(files), memoryview(b"")

    def read(size: int) -> bytes:
        nonlocal waiting
        if not waiting and (following := next(left, None)):
            waiting = memoryview(_whole(scores, *following))
        taken, waiting = waiting[:size], waiting[size:]
        return bytes(taken)

    library = faiss()
    try:
        return library.read_index(library.PyCallbackIOReader(read), library.IO_FLAG_READ_ONLY)
    except (_Damaged, RuntimeError):  # faiss wraps what a callback raises
        return None


def same_kind(index: Any, other: Any) -> bool:
    """Whether two indices are built alike, of the same size, and hold what is in them themselves."""
    return _kinds(index) == _kinds(other)


def _kinds(index: Any) -> tuple[Any, ...]:
    library = faiss()
    if isinstance(index, library.IndexIDMap):
        return type(index), index.d, isinstance(library.downcast_index(index.index), library.IndexFlat)
    if isinstance(index, library.IndexIVF):
        flat = isinstance(library.downcast_index(index.quantizer), library.IndexFlat)
        return type(index), index.d, index.nlist, flat, type(library.downcast_InvertedLists(index.invlists))
    return type(index), index.d


class _Damaged(Exception):
    pass


def _whole(scores: Scores, name: str, sha256: str) -> bytes:
    try:
        data = scores.folder.read(name)
    except OSError:  # missing, or another user's alone
        raise _Damaged from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _Damaged
    return data


def read_about(scores: Scores, name: str) -> Mapping[str, Any]:
    """What a `_about.json` says; nothing where it is missing or damaged, or may not be read."""
    try:
        found = scores.folder.read_json(name)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def writable(scores: Scores, name: str) -> None:
    """Raises ConfigError where this destination may only be read: at once, and not after hours of work. Then file
    `name`, which comes last, is not there."""
    scores.write(name, b"{}")
    scores.delete(name)

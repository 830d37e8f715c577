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

    faiss sees no byte that is not: a damaged count would have it ask for any amount of memory.
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
        return library.read_index(library.PyCallbackIOReader(read))
    except (_Damaged, RuntimeError):  # faiss wraps what a callback raises
        return None


class _Damaged(Exception):
    pass


def _whole(scores: Scores, name: str, sha256: str) -> bytes:
    try:
        data = scores.folder.read(name)
    except FileNotFoundError:
        raise _Damaged from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _Damaged
    return data


def read_about(scores: Scores, name: str) -> Mapping[str, Any]:
    """What a `_about.json` says; nothing where it is missing or damaged."""
    try:
        found = scores.folder.read_json(name)
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def writable(scores: Scores, name: str) -> None:
    """Raises ConfigError where this destination may only be read: at once, and not after hours of work. Then file
    `name`, which comes last, is not there."""
    scores.write(name, b"{}")
    scores.delete(name)

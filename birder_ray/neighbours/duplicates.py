"""`duplicates`: images that are there more than once, and those that look as if, each with the one to keep."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from birder_ray.errors import ConfigError, printable
from birder_ray.folder import to_json
from birder_ray.neighbours.cells import NEAREST, compared, spilled
from birder_ray.neighbours.groups import Components, Groups, grouped
from birder_ray.neighbours.hamming import Hashes, bits_apart
from birder_ray.neighbours.hashing import image_hashes
from birder_ray.neighbours.images import Images
from birder_ray.neighbours.index import opened
from birder_ray.neighbours.rows import Rows
from birder_ray.neighbours.stored import writable
from birder_ray.parts import encode
from birder_ray.schema import EMBEDDINGS, KEY_FIELDS
from birder_ray.scores import Scores

DUPLICATES = "duplicates"
ABOUT = f"{DUPLICATES}/_about.json"
BYTES, IMAGE, EMBEDDING = "bytes", "image", "embedding"

MIN_COSINE = 0.95
MAX_BITS = 4

SCHEMA = pa.schema(
    [*KEY_FIELDS, pa.field("group", pa.int64()), pa.field("keeper", pa.string()), pa.field("distance", pa.float32())]
)
_KEYS = [each.name for each in KEY_FIELDS]


@dataclass(frozen=True)
class Found:
    """The duplicates of one kind.

    Args:
        kind: bytes, image or embedding. limit: of the distance to the one that is kept: 0; bits; 1 - cosine.
        images: that were looked at. groups: of images that are alike. redundant: images in them but for those to keep.
        left_out: images that were not looked at, by reason.
    """

    kind: str
    limit: float
    images: int
    groups: int
    redundant: int
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class Duplicates:
    """What was found; `notes` say what limits it."""

    recipe: str
    finished: bool
    found: tuple[Found, ...]
    notes: tuple[str, ...]


def duplicates(
    url: str,
    options: Mapping[str, Any] | None = None,
    source_options: Mapping[str, Any] | None = None,
    *,
    by: str = EMBEDDING,
    min_cosine: float = MIN_COSINE,
    max_bits: int = MAX_BITS,
) -> Duplicates:
    """Add `duplicates/` to a destination: a table of each kind, of the images that are alike to another.

    Args:
        url: of the destination. options: fsspec options for it. source_options: those of the source.
        by: embedding: from the tables alone; image: the images are read again, and compared by their bytes and by
            perceptual hash; all: both.
        min_cosine: between embeddings. max_bits: of 64 that may differ between perceptual hashes.

    Raises:
        ConfigError: no run has begun there, it has no embeddings or may only be read, a part is damaged, none of the
            images can be read, or a package is missing. RunFailed: too little temporary space.
    """
    scores = Scores(url, options)
    if by != IMAGE:
        scores.needs(EMBEDDINGS)
    writable(scores, ABOUT)
    notes = [] if scores.finished else ["the run is unfinished: looked at is what is committed by now"]
    found = []
    for each, rows, groups in _kinds(scores, source_options, by, min_cosine, max_bits, notes):
        data = encode(_table(rows, groups), {"birder_ray.kind": each.kind})
        scores.write(f"{DUPLICATES}/{each.kind}.parquet", data)
        found.append(each)
    for kind in {BYTES, IMAGE, EMBEDDING} - {each.kind for each in found}:
        scores.delete(f"{DUPLICATES}/{kind}.parquet")
    done = Duplicates(scores.recipe.key, scores.finished, tuple(found), tuple(notes))
    scores.write(ABOUT, to_json(asdict(done)))
    return done


def _kinds(
    scores: Scores,
    source_options: Mapping[str, Any] | None,
    by: str,
    min_cosine: float,
    max_bits: int,
    notes: list[str],
) -> Iterator[tuple[Found, Rows, Groups]]:
    if by != EMBEDDING:
        images = images_of(scores, source_options, by, notes)
        groups = same_bytes(images)
        yield _found(BYTES, 0, images.read, groups, images.unread), images.rows, groups
        groups = same_look(images, max_bits)
        yield _found(IMAGE, max_bits, images.seen, groups, images.unseen), images.rows, groups
    if by != IMAGE:
        rows = Rows(scores, EMBEDDINGS)
        groups, good = same_embedding(rows, min_cosine, notes)
        without = int((~good).sum())
        left_out = {WITHOUT_DIRECTION: without} if without else {}
        yield _found(EMBEDDING, round(1 - min_cosine, 6), good, groups, left_out), rows, groups


def _found(kind: str, limit: float, looked_at: np.ndarray, groups: Groups, left_out: Mapping[str, int]) -> Found:
    return Found(kind, limit, int(looked_at.sum()), groups.count, groups.redundant, dict(sorted(left_out.items())))


WITHOUT_DIRECTION = "embeddings that are zero or not finite"


def images_of(scores: Scores, source_options: Mapping[str, Any] | None, by: str, notes: list[str]) -> Images:
    """The hashes of the images. Raises ConfigError where there are none, and nothing else was asked for."""
    images = image_hashes(scores, source_options)
    if images.kept:
        notes.append(f"hashes are not kept: {images.kept}")
    if by == IMAGE and len(images.rows) and not images.read.any():
        raise ConfigError(f"{scores.where}: no image can be read again: {images.unread.most_common(1)[0][0]}")
    return images


def same_bytes(images: Images) -> Groups:
    """Images whose files are the same, byte by byte."""
    rows = np.flatnonzero(images.read)
    rows = rows[np.lexsort((rows, *images.bytes[rows].T))]
    new = np.any(images.bytes[rows[1:]] != images.bytes[rows[:-1]], axis=1)
    first = np.maximum.accumulate(np.where(np.r_[True, new], np.arange(len(rows)), 0)) if len(rows) else rows
    keepers = rows[first]
    shared = np.bincount(keepers, minlength=1)[keepers] > 1
    rows, keepers = rows[shared], keepers[shared]
    order = np.lexsort((rows, keepers))
    return Groups(rows[order], keepers[order], np.zeros(len(rows), np.float32))


def same_look(images: Images, max_bits: int) -> Groups:
    """Images whose perceptual hashes differ in no more than so many bits."""
    rows = np.flatnonzero(images.seen)
    values, first, back = np.unique(images.looks[rows], return_index=True, return_inverse=True)
    components = Components(len(images.looks))
    components.join(rows, rows[first][back])
    for some, others in Hashes(values, max_bits).near(values):
        components.join(rows[first][some], rows[first][others])
    return grouped(components, lambda a, b: bits_apart(images.looks[a], images.looks[b]), max_bits)


def same_embedding(rows: Rows, min_cosine: float, notes: list[str]) -> tuple[Groups, np.ndarray]:
    """Images whose embeddings have at least this cosine, and which embeddings have a direction."""
    index = opened(rows)
    if index.kept:
        notes.append(f"the index is not kept: {index.kept}")
    components, least = Components(len(rows)), min(min_cosine, NEAREST)
    with spilled(rows, index) as vectors:
        components.join(vectors.copies, vectors.originals)
        for some, others, cosines in compared(vectors, vectors):
            near = np.nonzero(cosines >= least)
            components.join(some[near[0]], others[near[1]])
        return grouped(components, vectors.distances, 1 - least), vectors.good


def _table(rows: Rows, groups: Groups) -> pa.Table:
    keys = rows.take(groups.rows, _KEYS, rows.names)
    _, first, group = np.unique(groups.keepers, return_index=True, return_inverse=True)
    keepers = keys["sample"].take(pa.array(first[group]))
    columns = [*(keys[name] for name in _KEYS), pa.array(group), keepers, pa.array(np.round(groups.distances, 6))]
    return pa.table(columns, SCHEMA.names).cast(SCHEMA)


def lines(done: Duplicates) -> Iterator[str]:
    """What was found, in words."""
    for each in done.found:
        share = f" ({each.redundant / each.images:.2%})" if each.images else ""
        groups = f"{each.groups:,} group{'' if each.groups == 1 else 's'}"
        yield f"{each.kind:9} {groups}; {each.redundant:,} of {each.images:,} images{share} are redundant"
        for why, count in each.left_out.items():
            yield printable(f"left out  {count:,}: {why}")
    for note in done.notes:
        yield printable(f"note      {note}")

"""Hashes of the images of a destination, read once more from the source, and kept in `hashes/` beside the tables.

A part of `hashes` has the name and the rows of its unit; the name holds the fingerprint of the shard, and the metadata
the hashes of the unit's parts, so one that is of other images, or of other rows, is made anew.
"""

import hashlib
import io
import os
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import closing, suppress
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from birder_ray.commit import Ledger
from birder_ray.errors import ConfigError, SampleError, ShardDamaged
from birder_ray.neighbours.images import Images
from birder_ray.neighbours.library import imagehash
from birder_ray.neighbours.rows import Rows, Unit
from birder_ray.parts import encode, part_name
from birder_ray.plan import split_name
from birder_ray.reread import Source, reason, small
from birder_ray.schema import KEY_FIELDS, OUTPUT_TABLES
from birder_ray.scores import Scores
from birder_ray.source.base import Item
from birder_ray.source.fetch import prefetch

HASHES = "hashes"
SCHEMA = pa.schema([*KEY_FIELDS, pa.field("sha256", pa.binary(32)), pa.field("phash", pa.uint64())])
_KEYS = [each.name for each in KEY_FIELDS]

_SIDE_PX = 256
"""Of 200 photos of 0.2 million pixels, as JPEGs of any quality and half or a third of the size, decoding them whole
brought no hash nearer."""

_AT_ONCE = os.cpu_count() or 1
Hashed = tuple[bytes | None, int | None]
"""sha256 of the encoded image and hash of what is to be seen on it; None: it could not be read; not be decoded."""

Looked = dict[int, tuple[str, Hashed | str]]
"""By index: the sample, and its hashes, or why there are none."""

_GONE = "not in their shard"


def image_hashes(scores: Scores, source_options: Mapping[str, Any] | None = None) -> Images:
    """Hash the images of all units of which no hashes are kept, and keep those of the units that could be read whole.

    Every image is read and decoded once, some side by side. Memory: a few images, the keys of a unit, and 26 bytes for
    each row.

    Args:
        source_options: fsspec options of the source, which no manifest holds.

    Raises:
        ConfigError: imagehash is not installed, or a part is missing or damaged.
    """
    imagehash()
    rows = Rows(scores, min(scores.tables, key=OUTPUT_TABLES.index))
    found, lacking = Images(rows), []
    kept = prefetch(lambda unit: _kept(scores, unit), rows.units)
    for place, part in enumerate(kept):
        if part is None:
            lacking.append(place)
        else:
            found.put(place, part["sha256"], part["phash"])
    if lacking:
        _hash(found, lacking, source_options)
    for unit in Ledger(scores.folder).parts(HASHES) - set(scores.units):  # those that just lack a table keep theirs
        _unless_read_only(found, scores.delete, part_name(HASHES, unit))
    return found


def hashed(data: bytes) -> Hashed:
    """Both hashes of an encoded image."""
    digest = hashlib.sha256(data).digest()
    try:
        return digest, int(str(imagehash().phash(small(data, _SIDE_PX))), 16)
    except Exception:  # whatever Pillow says: the network's decoder had another opinion
        return digest, None


def _hash(found: Images, places: list[int], source_options: Mapping[str, Any] | None) -> None:
    """Hash the units at `places`, shard by shard."""
    units = found.rows.units
    try:
        source = Source(found.rows.scores.manifest, source_options)
    except ConfigError as error:
        found.unread[str(error)] += sum(units[place].rows for place in places)
        return
    for shard, those in groupby(places, key=lambda place: units[place].shard):
        left = {split_name(units[place].name)[1]: place for place in those}
        failed: list[Exception] = []
        with closing(_read(source, shard, left, found.rows.scores.manifest["unit_rows"])) as made:
            for number, items in _until_failed(made, failed):
                _add(found, left.pop(number), items)  # what this raises is about the destination, not the source
        if left:
            why = reason(failed[0]) if failed else _GONE
            found.unread[why] += sum(units[place].rows for place in left.values())


def _read(
    source: Source, shard: str, numbers: Collection[int], unit_rows: int
) -> Generator[tuple[int, Looked], None, None]:
    """The images of the units of a shard that have these numbers, with the number of each."""
    wanted = frozenset(numbers)

    def look(item: Item) -> tuple[int, str, Hashed | str]:
        sample, data = item
        return sample.index, sample.sample, reason(data) if isinstance(data, SampleError) else hashed(data)

    items = source.read(shard, min(wanted) * unit_rows, lambda index: index // unit_rows in wanted)
    with closing(prefetch(look, _until_damaged(items), _AT_ONCE)) as made:  # type: ignore[type-var]
        for number, those in groupby(made, key=lambda each: each[0] // unit_rows):
            yield number, {index: (sample, hashes) for index, sample, hashes in those}


def _until_failed(made: Iterator[tuple[int, Looked]], failed: list[Exception]) -> Iterator[tuple[int, Looked]]:
    """What comes before the source fails; why goes to `failed`."""
    try:
        yield from made
    except Exception as error:
        failed.append(error)


def _until_damaged(items: Iterator[Item]) -> Iterator[Item]:
    """What comes before any damage, as the run scored no more either."""
    with suppress(ShardDamaged):
        yield from items


def _add(found: Images, place: int, items: Looked) -> None:
    """Add the images of a unit, and save them, if they are all there."""
    rows, unit = found.rows, found.rows.units[place]
    ((_, keys),) = rows.stream(_KEYS, [place])
    digests, looks, whole = [], [], True
    for index, sample in zip(keys["index"].to_pylist(), keys["sample"].to_pylist(), strict=True):
        there, made = items.get(index, (sample, _GONE))
        if there != sample:
            made = "another image is in their place"
        if isinstance(made, str):
            found.unread[made] += 1
            whole, made = False, (None, None)
        digests.append(made[0])
        looks.append(made[1])
    part = pa.table(
        [*(keys[name] for name in _KEYS), pa.array(digests), pa.array(looks, pa.uint64())], names=SCHEMA.names
    )
    part = part.cast(SCHEMA)
    found.put(place, part["sha256"], part["phash"])
    if whole:
        told = {"birder_ray.unit": unit.name, **{_key(table): sha256 for table, sha256 in unit.parts.items()}}
        _unless_read_only(found, rows.scores.write, part_name(HASHES, unit.name), encode(part, told))


def _unless_read_only(found: Images, call: Any, *arguments: Any) -> None:
    if found.kept is None:
        try:
            call(*arguments)
        except ConfigError as error:
            found.kept = str(error)


def _kept(scores: Scores, unit: Unit) -> pa.Table | None:
    """The hashes of a unit as they were saved; None where they are not, or are of other rows, or damaged."""
    try:
        part = pq.read_table(io.BytesIO(scores.folder.read(part_name(HASHES, unit.name))))
        told = part.schema.metadata or {}
        same = any(told.get(_key(table).encode()) == sha256.encode() for table, sha256 in unit.parts.items())
        return part if same and part.num_rows == unit.rows and part.schema.equals(SCHEMA) else None
    except (OSError, pa.ArrowException):  # Arrow calls some damage the one, and some the other
        return None


def _key(table: str) -> str:
    return f"birder_ray.{table}"

"""`verify` and `status`: what a destination holds, from its files alone; neither needs Ray or torch."""

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pandas.util import hash_array

from birder_ray import manifest as manifests
from birder_ray.commit import CLASSES, SUCCESS, Ledger, Record, part_name
from birder_ray.destination import Totals
from birder_ray.errors import ConfigError, VerifyFailed
from birder_ray.folder import Folder
from birder_ray.manifest import Recipe
from birder_ray.plan import split_name
from birder_ray.schema import ERRORS, KEY_FIELDS, OUTPUT_TABLES, WHOLE_SHARD, part_metadata
from birder_ray.storage import redact

_THREADS = 8
_KEYS = pa.schema(KEY_FIELDS)


@dataclass(frozen=True)
class Status:
    """Progress of a destination.

    Args:
        finished: time of the finished run, None while one is unfinished. ended: shards whose last unit is committed.
        shards: in the source when the run began.
    """

    destination: str
    model: str
    finished: str | None
    shards: int
    ended: int
    totals: Totals


def _manifest(folder: Folder) -> dict[str, Any]:
    folder.check()
    found = manifests.load(folder)
    if found is None:
        raise ConfigError(
            f"{redact(folder.url)}: no {manifests.MANIFEST}; not a destination of birder-ray, or not begun"
        )
    return found


def status(url: str, options: dict[str, Any] | None = None) -> Status:
    """Sum up the commits of the destination at `url`.

    Raises:
        ConfigError: no run has begun there.
    """
    folder = Folder(url, options)
    manifest, ledger = _manifest(folder), Ledger(folder)
    totals, ended = Totals(), 0
    for record in ledger.records(sorted(ledger.units())):
        if record.recipe == manifest["recipe"]["key"]:
            totals.add(record)
            ended += record.end
    finished = folder.read_json(SUCCESS) if folder.exists(SUCCESS) else {}
    done = finished.get("finished") if finished.get("recipe") == manifest["recipe"]["key"] else None
    return Status(redact(folder.url), manifest["model"]["name"], done, len(manifest["inputs"]), ended, totals)


def verify(url: str, options: dict[str, Any] | None = None) -> Totals:
    """Prove that the destination holds exactly what its commits say, and the commits all that was read.

    For every unit: samples read = rows in each table + rows in errors; the tables hold the same samples in the same
    order, and with the errors every index from the unit's first to its last; every part has the committed size, hash,
    rows and metadata. For the whole: every unit up to the end of every shard is there, no sample stands twice, there is
    no unit of another recipe, and no part that no commit lists.

    Raises:
        ConfigError: no run has begun there. VerifyFailed: what is wrong, by name.
    """
    folder = Folder(url, options)
    manifest, ledger = _manifest(folder), Ledger(folder)
    problems: list[str] = []
    records: list[Record] = []
    samples = [np.empty(0, np.uint64)]
    with ThreadPoolExecutor(_THREADS) as pool:
        check = partial(_check_unit, ledger, manifest["recipe"], manifest["unit_rows"])
        for record, hashes, found in pool.map(check, sorted(ledger.units())):
            problems += found
            if record is not None:
                records.append(record)
                samples.append(hashes)
    values, times = np.unique(np.concatenate(samples), return_counts=True)
    if (times > 1).any():
        problems.append(
            f"{int((times > 1).sum())} samples stand more than once{_example(ledger, values[times > 1][0])}"
        )
    problems += _strays(ledger, records)
    problems += _gaps(manifest, records)
    totals = Totals()
    for record in records:
        totals.add(record)
    problems += _unfinished(folder, manifest, totals)
    if problems:
        more = f" (and {len(problems) - 10} more)" if len(problems) > 10 else ""
        raise VerifyFailed(f"{redact(folder.url)}: " + "; ".join(problems[:10]) + more)
    return totals


def _check_unit(
    ledger: Ledger, recipe: Mapping[str, Any], unit_rows: int, unit: str
) -> tuple[Record | None, np.ndarray, list[str]]:
    """A unit's record, hashes of the samples it holds, and what is wrong with it."""
    nothing = np.empty(0, np.uint64)
    try:
        record = ledger.read(unit)
    except ConfigError as error:
        return None, nothing, [str(error)]
    if record.recipe != recipe["key"]:
        return record, nothing, [f"{unit}: committed by another recipe"]
    keys: dict[str, pa.Table] = {}
    problems: list[str] = []
    for table in record.parts:
        try:
            keys[table] = _read_keys(ledger, recipe, record, table)
        except VerifyFailed as error:
            problems.append(str(error))
    if problems:
        return record, nothing, problems
    outputs = [keys[table] for table in recipe["tables"] if table in keys]
    if len(outputs) != (len(recipe["tables"]) if record.rows else 0):
        problems.append(f"{unit}: a table is missing from its commit")
    if any(not table.equals(outputs[0]) for table in outputs):
        problems.append(f"{unit}: its tables hold different samples")
    held = pa.concat_tables([_KEYS.empty_table(), *outputs[:1], *(keys[t] for t in (ERRORS,) if t in keys)])
    if not record.samples == held.num_rows == record.rows + record.errors:
        problems.append(
            f"{unit}: {record.samples} samples read, but {record.rows} rows and {record.errors} errors committed "
            f"and {held.num_rows} held"
        )
    if not all(shard == record.shard for shard in pc.unique(held["shard"]).to_pylist()):
        problems.append(f"{unit}: holds samples of another shard than {record.shard}")
    indices = np.sort(held["index"].to_numpy())
    own = indices[indices != WHOLE_SHARD]
    first = split_name(unit)[1] * unit_rows
    full = record.end or record.limited or record.damaged or len(own) == unit_rows
    if not full or len(own) > unit_rows or (own != np.arange(first, first + len(own))).any():
        problems.append(f"{unit}: samples are missing between index {first} and {first + unit_rows}")
    if (len(indices) - len(own)) != record.damaged:
        problems.append(f"{unit}: its commit and its errors disagree on whether the shard is damaged")
    names = held.filter(pc.not_equal(held["index"], WHOLE_SHARD))["sample"].to_numpy()
    return record, hash_array(names, categorize=False), problems


def _read_keys(ledger: Ledger, recipe: Mapping[str, Any], record: Record, table: str) -> pa.Table:
    """The key columns of a part, which is what was committed; else raises VerifyFailed."""
    name, part = part_name(table, record.unit), record.parts[table]
    try:
        data = ledger.folder.read(name)
    except FileNotFoundError:
        raise VerifyFailed(f"{name}: missing") from None
    if len(data) != part.bytes or hashlib.sha256(data).hexdigest() != part.sha256:
        raise VerifyFailed(f"{name}: its content is not what was committed")
    file = pq.ParquetFile(io.BytesIO(data))
    told = {key.decode(): value.decode() for key, value in (file.metadata.metadata or {}).items()}
    wanted = part_metadata(Recipe(**recipe).part(table), record.unit)
    if wanted.items() - told.items() or file.metadata.num_rows != part.rows:
        raise VerifyFailed(f"{name}: its rows or metadata are not what was committed")
    return file.read(columns=_KEYS.names).cast(_KEYS)


def _example(ledger: Ledger, value: np.uint64) -> str:
    """The sample of this hash, for a message."""
    for unit in sorted(ledger.units()):
        for table in ledger.read(unit).parts:
            data = io.BytesIO(ledger.folder.read(part_name(table, unit)))
            for name in pq.read_table(data, columns=["sample"])["sample"].to_pylist():
                if hash_array(np.array([name], object), categorize=False)[0] == value:
                    return f", e.g. {name}"
    return ""


def _strays(ledger: Ledger, records: Sequence[Record]) -> Iterator[str]:
    """Parts that a reader of the folder would take for results."""
    for table in (*OUTPUT_TABLES, ERRORS):
        listed = {record.unit for record in records if table in record.parts}
        for unit in sorted(ledger.parts(table) - listed):
            yield f"{part_name(table, unit)}: no commit knows this file"


def _gaps(manifest: Mapping[str, Any], records: Sequence[Record]) -> Iterator[str]:
    """Units that a finished run must have and has not."""
    numbers: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in records:
        prefix, number = split_name(record.unit)
        numbers[prefix][number] = record
    limited = manifest["config"]["source"]["limit"] is not None
    for prefix, present in sorted(numbers.items()):
        last = max(present)
        absent = set(range(last)) - present.keys()
        if absent and not limited:
            yield f"unit {prefix}-{min(absent):06d} has no commit"
        for number, record in present.items():
            if record.limited and not (limited and number == last):
                yield f"{record.unit}: cut short by a --limit that is not in force"
    ended = {record.shard for record in records if record.end}
    for shard in () if limited else manifest["inputs"]:
        if shard["name"] not in ended:
            yield f"shard {shard['name'] or shard['uri']} was not read to its end"


def _unfinished(folder: Folder, manifest: Mapping[str, Any], totals: Totals) -> Iterator[str]:
    told = folder.read_json(SUCCESS) if folder.exists(SUCCESS) else {}
    if told.get("recipe") != manifest["recipe"]["key"] or manifest["totals"] is None:
        yield "the run is unfinished (no _SUCCESS of its own): run the same command again to resume"
    elif not manifest["totals"]["samples"] == told.get("samples") == totals.samples:
        yield f"manifest.json counts {manifest['totals']['samples']} samples, the commits {totals.samples}"
    if not folder.exists(CLASSES):
        yield f"{CLASSES}: missing"

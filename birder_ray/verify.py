"""`verify` and `status`: what a destination holds, from its files alone; neither needs Ray or torch."""

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from birder_ray import manifest as manifests
from birder_ray.commit import SUCCESS, Ledger, Record, part_name
from birder_ray.destination import Totals
from birder_ray.errors import ConfigError, VerifyFailed
from birder_ray.schema import ERRORS, KEY_FIELDS, OUTPUT_TABLES, WHOLE_SHARD, part_metadata
from birder_ray.storage import Folder, redact

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
    """Prove that the destination holds exactly what its commits say.

    For every unit: samples read = rows in each table + rows in errors; the tables hold the same samples in the same
    order; every part has the committed size, hash, rows and metadata. For the whole: no sample twice, no unit of
    another recipe, no file that no commit knows, and the end of every shard is there.

    Raises:
        ConfigError: no run has begun there. VerifyFailed: what is wrong, by name.
    """
    folder = Folder(url, options)
    manifest, ledger = _manifest(folder), Ledger(folder)
    recipe = manifest["recipe"]
    units = sorted(ledger.units())
    problems: list[str] = []
    totals = Totals()
    seen: dict[str, pa.Array] = {}
    ended: set[str] = set()
    with ThreadPoolExecutor(_THREADS) as pool:
        for record, samples, found in pool.map(lambda unit: _check_unit(ledger, recipe, unit), units):
            problems += found
            if record is not None:
                totals.add(record)
                seen[record.unit] = samples
                if record.end:
                    ended.add(record.shard)
    problems += _duplicates(seen)
    for table in (*OUTPUT_TABLES, ERRORS):
        orphans = ledger.parts(table) - set(units)
        problems += [f"{part_name(table, unit)}: no commit knows this file" for unit in sorted(orphans)]
    if not folder.exists(SUCCESS):
        problems.append("the run is unfinished (no _SUCCESS): run the same command again to resume")
    else:
        problems += _gaps(manifest, units, ended)
        if manifest["totals"]["samples"] != totals.samples:
            problems.append(
                f"manifest.json counts {manifest['totals']['samples']} samples, the commits {totals.samples}"
            )
    if problems:
        more = f" (and {len(problems) - 10} more)" if len(problems) > 10 else ""
        raise VerifyFailed(f"{redact(folder.url)}: " + "; ".join(problems[:10]) + more)
    return totals


def _check_unit(ledger: Ledger, recipe: Mapping[str, Any], unit: str) -> tuple[Record | None, pa.Array, list[str]]:
    """A unit's record, the samples it holds, and what is wrong with it."""
    nothing = pa.array([], pa.string())
    try:
        record = ledger.read(unit)
    except (FileNotFoundError, ValueError) as error:
        return None, nothing, [f"damaged commit record: {error}"]
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
    samples = held.filter(pc.not_equal(held["index"], WHOLE_SHARD))
    return record, samples["sample"].combine_chunks(), problems


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
    recipe_of_part = recipe["core"] if table == ERRORS else f"{recipe['core']}-{recipe['tables'][table]}"
    told = {key.decode(): value.decode() for key, value in (file.metadata.metadata or {}).items()}
    if part_metadata(recipe_of_part, record.unit).items() - told.items() or file.metadata.num_rows != part.rows:
        raise VerifyFailed(f"{name}: its rows or metadata are not what was committed")
    return file.read(columns=_KEYS.names).cast(_KEYS)


def _gaps(manifest: Mapping[str, Any], units: Iterable[str], ended: set[str]) -> Iterator[str]:
    """Units that a finished run must have and has not."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for unit in units:
        prefix, _, number = unit.rpartition("-")
        numbers[prefix].add(int(number))
    for prefix, present in sorted(numbers.items()):
        absent = set(range(max(present))) - present
        if absent:
            yield f"unit {prefix}-{min(absent):06d} has no commit"
    if manifest["config"]["source"]["limit"] is None:
        for shard in manifest["inputs"]:
            if shard["name"] not in ended:
                yield f"shard {shard['name'] or shard['uri']} was not read to its end"


def _duplicates(seen: dict[str, pa.Array]) -> Iterator[str]:
    together = pa.chunked_array([array for array in seen.values() if len(array)] or [pa.array([], pa.string())])
    if pc.count_distinct(together).as_py() == len(together):
        return
    counts = pc.value_counts(together)
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    yield f"{len(twice)} samples stand more than once, e.g. {twice[0]}"

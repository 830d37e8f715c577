"""What a destination held, and when: a snapshot of each finished state, from which nothing is copied.

A snapshot lists units. Those that have left the tables since lie in `_retired/`, moved there by a run that follows its
source (`run.incremental`); the others stand in the tables as they did.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from birder_ray import manifest as manifests
from birder_ray.commit import RETIRED, SUCCESS, Ledger
from birder_ray.errors import ConfigError
from birder_ray.folder import Folder, to_json
from birder_ray.parts import part_name
from birder_ray.runs import compact
from birder_ray.schema import ERRORS, OUTPUT_TABLES
from birder_ray.storage import redact

SNAPSHOTS = "_snapshots"


@dataclass(frozen=True)
class Snapshot:
    """A finished state.

    Args:
        name: when it was finished, UTC, as `20261122T154000Z`. recipe: its key.
        inputs: fingerprints of the shards by name. units: names of the units.
        samples: read, in all units.
    """

    name: str
    recipe: str
    inputs: Mapping[str, str]
    units: Collection[str]
    samples: int


@dataclass(frozen=True)
class Changes:
    """How the shards of one state differ from those of an earlier one, by name."""

    new: list[str]
    changed: list[str]
    retired: list[str]
    unchanged: int


def changes(before: Snapshot | None, after: Snapshot) -> Changes:
    """What happened to the source between two states; before the first one there was nothing."""
    old, new = before.inputs if before else {}, after.inputs
    both = old.keys() & new.keys()
    changed = sorted(name for name in both if old[name] != new[name])
    return Changes(sorted(new.keys() - both), changed, sorted(old.keys() - both), len(both) - len(changed))


def take(folder: Folder) -> None:
    """Write a snapshot of what the destination holds, if that is finished and there is none yet.

    Raises ConfigError where the manifest is damaged.
    """
    manifest = manifests.load(folder)
    if manifest is None or not manifest["finished"] or not folder.exists(SUCCESS):
        return
    name = compact(manifest["finished"])
    if name not in names(folder):
        inputs = {each["name"]: each["fingerprint"] for each in manifest["inputs"]}
        units = sorted(Ledger(folder).units())
        told = {"recipe": manifest["recipe"]["key"], "samples": manifest["totals"]["samples"]}
        if not folder.exists(SUCCESS):
            return  # another run has begun meanwhile
        folder.create(_path(name), to_json({**told, "inputs": inputs, "units": units}))


def names(folder: Folder) -> list[str]:
    """Names of all snapshots, oldest first."""
    return sorted(name.removesuffix(".json") for name in folder.names(SNAPSHOTS) if name.endswith(".json"))


def latest(folder: Folder) -> Snapshot | None:
    """Raises ConfigError where it is damaged."""
    known = names(folder)
    return read(folder, known[-1]) if known else None


def read(folder: Folder, name: str) -> Snapshot:
    """Raises ConfigError where it is missing or damaged."""
    try:
        told = folder.read_json(_path(name))
        return Snapshot(name, told["recipe"], told["inputs"], told["units"], told["samples"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        where = f"{redact(folder.url)}/{_path(name)}"
        raise ConfigError(f"{where}: damaged, or not of birder-ray; remove it, what it tells of is then lost") from None


def files(folder: Folder, at: str, tables: Collection[str] = (*OUTPUT_TABLES, ERRORS)) -> dict[str, list[str]]:
    """Where the parts are that made up the tables at a time in the past.

    Args:
        at: ISO 8601 date or time, UTC where it says no zone; a date means its end.

    Returns:
        URLs by table, for any reader of Parquet; none for a table without rows.

    Raises:
        ConfigError: there is no snapshot that old, `at` is no date, or parts are gone (erased by --overwrite).
    """
    moment, known = _moment(at), names(folder)
    chosen = [name for name in known if name <= moment]
    if not chosen:
        since = f"; the first is of {known[0]}" if known else ": `birder-ray rerun` makes them"
        raise ConfigError(f"{redact(folder.url)} has no snapshot of {at} or before{since}")
    ledger, units = Ledger(folder), set(read(folder, chosen[-1]).units)
    places = {"": units & ledger.units()}
    places[f"{RETIRED}/"] = (units - places[""]) & ledger.retired()  # where its record is, its parts are, all of them
    gone = units.difference(*places.values())
    if gone:
        raise ConfigError(f"{len(gone)} units of the snapshot {chosen[-1]} are gone, e.g. {min(gone)}")
    found: dict[str, list[str]] = {table: [] for table in tables}
    for place, there in places.items():
        for table in tables:
            present = there & ledger.parts(f"{place}{table}")
            found[table] += [folder.where(f"{place}{part_name(table, unit)}") for unit in sorted(present)]
    return found


def forget(ledger: Ledger, keep: int) -> list[str]:
    """Remove all but the latest `keep` snapshots, and the retired units that no other lists; returns their names."""
    retired = ledger.retired().union(*(ledger.parts(f"{RETIRED}/{table}") for table in (*OUTPUT_TABLES, ERRORS)))
    # Listed before the snapshots are: a unit is in one before it is retired
    known = names(ledger.folder)
    old, kept = known[:-keep], known[-keep:]
    for name in old:
        ledger.discard(_path(name))
    needed = {unit for name in kept for unit in read(ledger.folder, name).units} if retired else set()
    for unit in sorted(retired - needed):
        ledger.forget(unit)
    return old


def _path(name: str) -> str:
    return f"{SNAPSHOTS}/{name}.json"


def _moment(at: str) -> str:
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        raise ConfigError(f"{at}: no date or time; write it as 2026-11-22 or 2026-11-22T15:40:00") from None
    if len(at) == len("2026-11-22"):
        moment = moment.replace(hour=23, minute=59, second=59)
    return compact((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat())

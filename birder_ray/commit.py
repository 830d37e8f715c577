"""Commits: a unit counts as done when, and only when, its record stands in `_commits/`.

Order of writes for a unit, each whole or not at all, under names that depend only on the unit: its parts, then its
record. A crash anywhere leaves either a record whose parts are all there, or no record, and then the same command
writes the same names again. A unit that is done again loses its record first.

Every one of these writes creates its file, or replaces the very version that stood there while the lock was still ours:
a run that was paused, lost its lock and woke up again cannot write over what the new owner wrote.
"""

import re
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import islice

import pyarrow as pa

from birder_ray.errors import ConfigError, RunFailed
from birder_ray.folder import Folder, to_json
from birder_ray.manifest import Recipe, now
from birder_ray.parts import Part, Parts, part_name
from birder_ray.record import COMMITS, Record, record_name
from birder_ray.schema import ERRORS, ERRORS_SCHEMA, OUTPUT_TABLES, part_metadata

RETIRED = "_retired"
SUCCESS = "_SUCCESS"
CLASSES = "classes.parquet"
_READERS = 32
_READ_AT_ONCE = 4096
_ATTEMPTS = 5
_UNIT_FILE = re.compile(r"(.+-[0-9a-f]{12}-\d{6,})\.(json|parquet)")


class Ledger:
    """The commits of one destination.

    Args:
        fence: raises where the destination has another owner by now. run: name of the run whose commits it makes.
    """

    def __init__(self, folder: Folder, fence: Callable[[], None] = lambda: None, run: str = ""):
        self.folder = folder
        self.fence = fence
        self.run = run

    def units(self) -> set[str]:
        """Names of the units that are done; files that are no commits of ours are left out."""
        return self._units(COMMITS, "json")

    def _units(self, folder: str, suffix: str) -> set[str]:
        found = map(_UNIT_FILE.fullmatch, self.folder.names(folder))
        return {match[1] for match in found if match and match[2] == suffix}

    def read(self, unit: str) -> Record:
        """The record of `unit`. Raises ConfigError where it is damaged."""
        name = record_name(unit)
        try:
            record = Record.from_json(self.folder.read_json(name))
        except (FileNotFoundError, TypeError, KeyError, AttributeError, ValueError):
            record = None
        if record is None or record.unit != unit:
            raise ConfigError(f"damaged commit record {name}: run birder-ray repair, then the same command again")
        return record

    def records(self, units: Iterable[str]) -> Iterator[Record]:
        """Records of `units`, read side by side, in order."""
        left = iter(units)
        with ThreadPoolExecutor(_READERS) as pool:
            while some := list(islice(left, _READ_AT_ONCE)):
                yield from pool.map(self.read, some)

    def parts(self, table: str) -> set[str]:
        """Names of the units that have a file in `table`, committed or not; other files are left out."""
        return self._units(table, "parquet")

    def leftovers(self) -> set[str]:
        """Names of all parts that stand now, committed or not."""
        return {part_name(table, unit) for table in (*OUTPUT_TABLES, ERRORS) for unit in self.parts(table)}

    def discard(self, name: str) -> None:
        """Delete a file of the destination, if that is still ours. Raises LockHeld."""
        self.fence()
        self.folder.delete(name)

    def overwrite(self, name: str, data: bytes) -> None:
        """Write a file that belongs to no unit. Raises LockHeld, also if another owner wrote it meanwhile."""
        version = self.folder.version(name)
        self.fence()
        written = self.folder.create(name, data) if version is None else self.folder.replace(name, data, version)
        if not written:
            self.fence()
            raise RunFailed(f"{name}: another process keeps writing it")

    def retract(self, unit: str) -> None:
        """Undo a unit's commit; from here on it is to be done again. Its parts stay until they are overwritten."""
        self.discard(record_name(unit))

    def retired(self) -> set[str]:
        """Names of the units that were retired; those whose move was cut short are left out."""
        return self._units(f"{RETIRED}/{COMMITS}", "json")

    def retire(self, unit: str) -> None:
        """Move a unit from the tables to where snapshots find it. Cut short at any moment, it is there or here, whole.

        A unit may be retired twice, when a shard was what it is once before: the later one stays.
        """
        self.forget(unit)
        for name in (*(part_name(table, unit) for table in self.read(unit).parts), record_name(unit)):
            self.fence()
            self.folder.copy(name, f"{RETIRED}/{name}")  # the record last, as in a commit
        self.erase(unit)

    def forget(self, unit: str) -> None:
        """Remove a retired unit, record first."""
        for name in (record_name(unit), *(part_name(table, unit) for table in (*OUTPUT_TABLES, ERRORS))):
            self.discard(f"{RETIRED}/{name}")

    def erase(self, unit: str) -> None:
        """Remove a unit, record first."""
        self.retract(unit)
        for table in (*OUTPUT_TABLES, ERRORS):
            self.discard(part_name(table, unit))

    def write(
        self,
        unit: str,
        shard: str,
        recipe: Recipe,
        rows: int,
        errors: pa.Table,
        put: Callable[[Parts], dict[str, Part] | None],
        *,
        end: bool,
        limited: bool,
        damaged: bool,
        seconds: Mapping[str, float],
        bytes_read: int,
        engines: Mapping[str, int],
        leftovers: Container[str],
        growing: bool = False,
    ) -> Record:
        """Write the parts of a unit, then its record.

        Args:
            rows: of each output table. errors: rows of the errors table. Of a table without rows no file is written.
            put: calls `Parts.write`, wherever the output tables are.
            leftovers: names of parts that stood before the run; one that this attempt does not write is deleted.
            growing: it is committed, and lacks a table; what it has stays, if its rows are still what they were.

        Raises:
            LockHeld: the destination has another owner. RunFailed: files of this unit keep being written by another.
        """
        started = time.perf_counter()
        if growing:
            balance = (rows, errors.num_rows, end, limited, damaged)
            if grown := self._grow(unit, recipe, balance, put, leftovers, seconds):
                return grown
            stands = self.read(unit)
            if rows < stands.rows:
                raise RunFailed(
                    f"{unit}: {stands.rows} rows of it stand, and {rows} came of it now ({errors.num_rows} errors), so "
                    f"no table is added to it, and nothing taken from it; mend its source, or choose another --output"
                )
            self.retract(unit)
        made = [*(recipe.tables if rows else ()), *([ERRORS] if errors.num_rows else ())]
        for table in {*recipe.tables, ERRORS}.difference(made):
            if part_name(table, unit) in leftovers:
                self.discard(part_name(table, unit))
        metadata = {table: part_metadata(recipe.part(table), unit) for table in made}

        def standing(names: Iterable[str]) -> dict[str, str]:
            return self._standing(unit, names, limited)

        parts = self._put_parts(Parts(self.folder, self.fence, unit, metadata, errors, {}), put, leftovers, standing)
        if any(part.rows != (errors.num_rows if table == ERRORS else rows) for table, part in parts.items()):
            raise RunFailed(f"{unit}: its rows were lost and made again, and are others now; run again to resume")
        record = Record(
            unit=unit,
            shard=shard,
            recipe=recipe.key,
            samples=rows + errors.num_rows,
            rows=rows,
            errors=errors.num_rows,
            end=end,
            limited=limited,
            damaged=damaged,
            parts=parts,
            seconds={**seconds, "write": time.perf_counter() - started},
            bytes_read=bytes_read,
            engines=dict(engines),
            finished=now(),
            run=self.run,
        )
        self._put(record_name(unit), to_json(asdict(record)))
        return record

    def _grow(
        self,
        unit: str,
        recipe: Recipe,
        balance: tuple[int, int, bool, bool, bool],
        put: Callable[[Parts], dict[str, Part] | None],
        leftovers: Container[str],
        seconds: Mapping[str, float],
    ) -> Record | None:
        """Add to a committed unit the parts that it lacks, then replace its record; until then the old one is true.

        Returns:
            The new record. None: it cannot be added to, as its rows are others now or a part of it is damaged.
        """
        started = time.perf_counter()
        record = self.read(unit)
        if balance != (record.rows, record.errors, record.end, record.limited, record.damaged):
            return None
        metadata = {t: part_metadata(recipe.part(t), unit) for t in recipe.tables if t not in record.parts}
        smallest = min(recipe.tables.keys() & record.parts.keys(), key=lambda table: record.parts[table].bytes)
        beside = (part_name(smallest, unit), record.parts[smallest].sha256)
        more = Parts(self.folder, self.fence, unit, metadata, ERRORS_SCHEMA.empty_table(), {}, beside)
        parts = self._put_parts(more, put, leftovers, self._versions)
        if any(part.rows != record.rows for part in parts.values()) or not parts:
            return None
        now_spent = {**seconds, "write": time.perf_counter() - started}
        spent = {step: record.seconds.get(step, 0.0) + now_spent.get(step, 0.0) for step in record.seconds | now_spent}
        added = record.added | dict.fromkeys(parts, self.run)
        record = replace(record, parts=record.parts | parts, seconds=spent, added=added)
        self._put(record_name(unit), to_json(asdict(record)))
        return record

    def _put_parts(
        self,
        parts: Parts,
        put: Callable[[Parts], dict[str, Part] | None],
        leftovers: Container[str],
        look: Callable[[Iterable[str]], dict[str, str]],
    ) -> dict[str, Part]:
        """What `put` has written, given the versions that `look` finds of the files that stand."""
        names = [part_name(table, parts.unit) for table in parts.metadata]
        for attempt in range(_ATTEMPTS):
            versions = look([name for name in names if attempt or name in leftovers])
            written = put(replace(parts, versions=versions))
            if written is not None:
                return written
        raise RunFailed(f"{parts.unit}: another process keeps writing its parts")

    def _standing(self, unit: str, names: Iterable[str], limited: bool) -> dict[str, str]:
        """Versions of those files of a unit that are there, of an attempt that a crash, or a new owner, cut short. They
        are looked at before the fence: whoever owns the lock later writes other versions."""
        versions = self._versions(names)
        if versions and self.folder.exists(record_name(unit)):
            if limited and not self.read(unit).limited:
                raise RunFailed(
                    f"{unit}: is committed, and whole, which the listing of its folder did not show; run again"
                )
            # That attempt came to its record after all, which is about to be no longer true
            self.discard(record_name(unit))
        return versions

    def _versions(self, names: Iterable[str]) -> dict[str, str]:
        return {name: version for name in names if (version := self.folder.version(name)) is not None}

    def _put(self, name: str, data: bytes) -> None:
        """Write a record. What stands there is of an attempt that lost the lock."""
        for _ in range(_ATTEMPTS):
            self.fence()
            if self.folder.create(name, data):
                return
            version = self.folder.version(name)
            self.fence()
            if version is not None and self.folder.replace(name, data, version):
                return
        raise RunFailed(f"{name}: another process keeps writing it")

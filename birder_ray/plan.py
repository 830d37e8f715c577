"""The plan: which units of which shards are to do, from the shards and the commits alone.

Nothing here grows with the number of images, only with shards and units.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

from birder_ray.commit import Ledger
from birder_ray.schema import ERRORS
from birder_ray.source.base import Shard

UNITS_PER_TASK = 4
"""Units of a shard with random access that one read task takes on; the shard's others are read side by side."""

TASKS_PER_SHARD = 64
"""At most so many tasks for one shard: each may have to step over what comes before its units."""

_IMAGE_BYTES = 150_000
"""Of a photo in a shard that does not say how many it holds; nothing but an estimate hangs on it."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def unit_prefix(recipe: str, unit_rows: int, shard: Shard) -> str:
    """What the names of a shard's units begin with: a readable bit of its path, and a hash of what they hold.

    The recipe is part of that so that a run that replaces another never writes over what it has yet to replace, and
    the rows per unit so that units of different cuts cannot be mixed.
    """
    readable = _UNSAFE.sub("_", shard.name.rpartition("/")[2])[:40].strip("._-") or "shard"
    identity = "\x1f".join((recipe, str(unit_rows), shard.name, shard.fingerprint))
    return f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def prefixes(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The inputs that a manifest has, by what the names of their units begin with."""
    rows, key = manifest["unit_rows"], manifest["recipe"]["key"]
    return {
        unit_prefix(key, rows, Shard(each["uri"], each["name"], "", each["fingerprint"])): each
        for each in manifest["inputs"]
    }


def unit_name(prefix: str, number: int) -> str:
    """Name of the `number`-th unit of a shard."""
    return f"{prefix}-{number:06d}"


def split_name(unit: str) -> tuple[str, int]:
    """Prefix and number of a unit."""
    prefix, _, number = unit.rpartition("-")
    return prefix, int(number)


@dataclass(frozen=True)
class Work:
    """What one read task is to do: units `first`, `first + 1`, ... of a shard, except those in `done`.

    Args:
        stop: one past the last unit to do; None: to the end of the shard, wherever it is.
        units: one past the shard's last unit, where known.
        sample_stop: the run's --limit ends before this index of the shard.
    """

    shard: Shard
    prefix: str
    unit_rows: int
    first: int = 0
    stop: int | None = None
    units: int | None = None
    done: frozenset[int] = frozenset()
    sample_stop: int | None = None

    def todo(self, number: int) -> bool:
        """Whether this work includes unit `number`."""
        return self.first <= number and (self.stop is None or number < self.stop) and number not in self.done

    @property
    def images(self) -> float:
        """About how many there are to do; 0 where there is no telling."""
        before = (self.first + sum(unit >= self.first for unit in self.done)) * self.unit_rows
        end = inf if self.stop is None else self.stop * self.unit_rows
        known = self.shard.count if self.shard.count is not None else (self.shard.size or 0) / _IMAGE_BYTES
        return max(0.0, min(end, known, inf if self.sample_stop is None else self.sample_stop) - before)


@dataclass
class Plan:
    """Work to do, and what is known so far.

    Args:
        work: in order of the shards. done: committed units of the plan. redo: committed units to do once more.
        grow: committed units that stand, and lack a table.
        foreign: committed units of other recipes or of inputs that are not in the source (any more).
        units_todo: None where shards must be read to tell. samples: in the whole plan, None likewise.
    """

    work: list[Work] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    redo: set[str] = field(default_factory=set)
    grow: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)
    units_todo: int | None = 0
    samples: int | None = 0

    @property
    def images(self) -> float:
        """About how many there are to do; 0 where there is no telling."""
        return sum(work.images for work in self.work)


class _Last(NamedTuple):
    """As in a record, of which nothing else is kept: there may be one for each of a hundred thousand shards."""

    samples: int
    limited: bool
    end: bool


@dataclass(frozen=True)
class _Progress:
    """What the commits say of one shard: its units, those to redo, those lacking a table, and what the last
    one says."""

    units: frozenset[int] = frozenset()
    redo: frozenset[int] = frozenset()
    lacking: frozenset[int] = frozenset()
    last: _Last | None = None

    def stand(self, sample_stop: int | None, unit_rows: int) -> frozenset[int]:
        """Units whose rows need not be made again; those of one cut by another --limit do."""
        if self.last and self.last.limited and max(self.units) * unit_rows + self.last.samples != sample_stop:
            return self.units - self.redo - {max(self.units)}
        return self.units - self.redo


def make_plan(
    shards: Sequence[Shard],
    recipe: str,
    unit_rows: int,
    ledger: Ledger,
    limit: int | None = None,
    count: Callable[[Shard, int], int] | None = None,
    redo_errors: bool = False,
    adding: Sequence[str] = (),
) -> Plan:
    """Compare the shards with the commits.

    Args:
        recipe: key of the recipe. unit_rows: samples per unit.
        limit: score only the first so many samples; `count(shard, at_most)` counts where a shard does not say.
        redo_errors: units with quarantined samples are done once more. adding: tables that units may lack.

    Raises:
        ConfigError: a commit record is damaged.
    """
    plan = Plan()
    prefixes = [unit_prefix(recipe, unit_rows, shard) for shard in shards]
    progress = _progress(prefixes, ledger, redo_errors, adding, plan)
    left = limit
    for shard, prefix in zip(shards, prefixes, strict=True):
        sample_stop = None
        if left is not None:
            if left == 0:
                break
            size = shard.count
            if size is None:
                assert count is not None, "a limit needs a way to count"
                size = count(shard, left)
            sample_stop = left if size >= left else None
            left -= min(left, size)
        _add(plan, shard, prefix, unit_rows, progress.get(prefix, _Progress()), sample_stop)
    if limit is not None:
        plan.samples = limit - (left or 0)
    return plan


def _progress(
    prefixes: Sequence[str], ledger: Ledger, redo_errors: bool, adding: Sequence[str], plan: Plan
) -> dict[str, _Progress]:
    """Sort the commits by shard; those of no shard of the plan are foreign."""
    known = set(prefixes)
    units: dict[str, set[int]] = defaultdict(set)
    for unit in ledger.units():
        prefix, number = split_name(unit)
        if prefix in known:
            units[prefix].add(number)
        else:
            plan.foreign.add(unit)
    failed = ledger.parts(ERRORS) if redo_errors else set()
    begun = sorted(units)
    all_known = (unit_name(prefix, n) for prefix in begun for n in sorted(units[prefix])) if adding else ()
    lacking = {record.unit for record in ledger.records(all_known) if record.lacks(adding)}
    records = ledger.records(unit_name(prefix, max(units[prefix])) for prefix in begun)
    lasts = (_Last(record.samples, record.limited, record.end) for record in records)

    def those(prefix: str, names: Container[str]) -> frozenset[int]:
        return frozenset(n for n in units[prefix] if unit_name(prefix, n) in names)

    return {
        prefix: _Progress(frozenset(units[prefix]), those(prefix, failed), those(prefix, lacking), last)
        for prefix, last in zip(begun, lasts, strict=True)
    }


def _add(plan: Plan, shard: Shard, prefix: str, unit_rows: int, progress: _Progress, sample_stop: int | None) -> None:
    stand = progress.stand(sample_stop, unit_rows)
    done = stand - progress.lacking
    units = None
    if shard.count is not None:
        units = max(1, -(-shard.count // unit_rows))  # a shard without samples has one unit, to say so
        if plan.samples is not None:
            plan.samples += shard.count
    else:
        plan.samples = None
        if progress.last and progress.last.end and max(progress.units) in stand:
            units = max(progress.units) + 1
    stop = units
    if sample_stop is not None:
        stop = -(-sample_stop // unit_rows)
        whole = stop - 1 in stand and not (progress.last and progress.last.limited)
        if whole or any(n >= stop for n in progress.units):
            sample_stop = None  # only a shard's last unit may be cut short, or a later run could not tell
        done = frozenset(n for n in done if n < stop)
    plan.done |= {unit_name(prefix, n) for n in done}
    plan.redo |= {unit_name(prefix, n) for n in progress.units - stand if stop is None or n < stop}
    plan.grow |= {unit_name(prefix, n) for n in stand & progress.lacking if stop is None or n < stop}

    if stop is None:
        first = next(n for n in range(len(done) + 1) if n not in done)
        plan.units_todo = None
        plan.work.append(Work(shard, prefix, unit_rows, first, None, units, done, sample_stop))
        return
    todo = [n for n in range(stop) if n not in done]
    if plan.units_todo is not None:
        plan.units_todo += len(todo)
    per_task = max(UNITS_PER_TASK, -(-len(todo) // TASKS_PER_SHARD)) if shard.count is not None else len(todo)
    for at in range(0, len(todo), max(per_task, 1)):
        part = todo[at : at + per_task]
        between = frozenset(range(part[0], part[-1] + 1)).difference(
            part
        )  # not all of `done`: it travels with the task
        plan.work.append(Work(shard, prefix, unit_rows, part[0], part[-1] + 1, units, between, sample_stop))

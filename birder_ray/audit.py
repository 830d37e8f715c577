"""What is wrong with a destination, finding by finding, from its files alone; `verify` and `repair` go by it.

Memory: a few parts at a time, the names of the units, and 8 bytes per sample.
"""

import io
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from birder_ray import deep as contents
from birder_ray.check import Check, Finding, hashes_of
from birder_ray.commit import CLASSES, SUCCESS, Ledger
from birder_ray.errors import ConfigError
from birder_ray.parts import part_name
from birder_ray.plan import prefixes, split_name, unit_name
from birder_ray.record import Record, record_name
from birder_ray.schema import ERRORS, OUTPUT_TABLES, WHOLE_SHARD
from birder_ray.source.fetch import prefetch
from birder_ray.totals import Totals

_THREADS = 8
_COMPARED_AT_ONCE = 1 << 20
_TABLES = (*OUTPUT_TABLES, ERRORS)


@dataclass(frozen=True)
class Audit:
    """All that was found, and sums over the commits that can be read."""

    totals: Totals
    findings: list[Finding]


def audit(ledger: Ledger, manifest: Mapping[str, Any], deep: bool = False) -> Audit:
    """Compare what stands in the destination with what its commits and its manifest say.

    Args:
        manifest: of this destination. deep: decode every column of every part and check its values, too.
    """
    content, findings = None, []
    if deep:
        names, problem = contents.class_names(ledger.folder)
        findings += [Finding(problem, name=CLASSES)] if problem else []
        content = contents.Content(manifest["recipe"]["facts"]["tables"], names)
    check = Check(ledger, manifest, content)
    chain, odd, totals = _Chain(manifest), contents.Oddities(), Totals()
    listed: dict[str, int] = {}
    hashes = array("Q")
    for seen in prefetch(check, sorted(ledger.units(), key=split_name), _THREADS):
        findings += seen.findings
        hashes.frombytes(seen.hashes.tobytes())
        odd.add(seen.name, seen.schemas)
        if seen.record is not None:
            totals.add(seen.record)
            chain.add(seen.record)
            listed[seen.name] = sum(1 << bit for bit, table in enumerate(_TABLES) if table in seen.record.parts)
    findings += [Finding(problem, unit) for unit, problem in odd.problems()]
    findings += _doubles(ledger, hashes)
    findings += _strays(ledger, listed)
    findings += chain.gaps()
    findings += _unfinished(ledger, manifest, totals)
    return Audit(totals, findings)


class _Chain:
    """Told of the records in the order of their shards and numbers, tells what a finished run must have and has not."""

    def __init__(self, manifest: Mapping[str, Any]):
        self.limited = manifest["config"]["source"]["limit"] is not None
        self.key = manifest["recipe"]["key"]
        self.inputs = prefixes(manifest)
        self.ended: set[str] = set()
        self.findings: list[Finding] = []
        self.last: Record | None = None
        self.gap = False

    def add(self, record: Record) -> None:
        prefix, number = split_name(record.unit)
        before = -1
        if self.last is not None and split_name(self.last.unit)[0] == prefix:
            before = split_name(self.last.unit)[1]
            self._cut_short(self.last)
            if self.last.end:
                problem = f"{self.last.unit}: says that its shard ends with it, but units follow"
                self.findings.append(Finding(problem, self.last.unit))
        else:
            self._close()
        if number != before + 1 and not self.gap and not self.limited:
            self.gap = True
            self.findings.append(Finding(f"unit {unit_name(prefix, before + 1)} has no commit"))
        if (prefix in self.inputs) != (record.recipe == self.key):
            # In a shard of ours the record lies, and a run would take the unit for done; elsewhere a run clears it away
            mends = record.unit if prefix in self.inputs else None
            self.findings.append(Finding(f"{record.unit}: its commit is not of the recipe and inputs here", mends))
        if record.end:
            self.ended.add(record.shard)
        self.last = record

    def _cut_short(self, record: Record) -> None:
        if record.limited:
            problem = f"{record.unit}: cut short by a --limit that is not in force"
            self.findings.append(Finding(problem, record.unit))

    def _close(self) -> None:
        """No more of the shard of the last record follows."""
        if self.last is not None and not self.limited:
            self._cut_short(self.last)
        self.gap = False

    def gaps(self) -> Iterator[Finding]:
        self._close()
        yield from self.findings
        for shard in () if self.limited else self.inputs.values():
            if shard["name"] not in self.ended:
                yield Finding(f"shard {shard['name'] or shard['uri']} was not read to its end")


def _doubles(ledger: Ledger, hashes: array) -> Iterator[Finding]:
    """Samples that stand more than once. Sorts `hashes`; reads the parts once more only where two are equal."""
    values = np.frombuffer(hashes, np.uint64) if hashes else np.empty(0, np.uint64)
    values.sort()
    suspects: set[int] = set()
    for at in range(0, len(values), _COMPARED_AT_ONCE):
        some = values[at : at + _COMPARED_AT_ONCE + 1]
        suspects.update(some[1:][some[1:] == some[:-1]].tolist())
    if not suspects:
        return
    wanted = np.array(sorted(suspects), np.uint64)
    times: Counter[str] = Counter()
    holders: list[tuple[str, list[str]]] = []
    for unit in sorted(ledger.units(), key=split_name):
        found = [name for name in _samples(ledger, unit) if np.isin(hashes_of(np.array([name], object)), wanted)]
        times.update(found)
        if found:
            holders.append((unit, found))
    twice = {name for name, count in times.items() if count > 1}  # the others only share a hash
    if twice:
        yield Finding(f"{len(twice)} samples stand more than once, e.g. {min(twice)}")
    for unit, found in holders:
        if twice.intersection(found):
            yield Finding(f"{unit}: holds such a sample", unit)


def _samples(ledger: Ledger, unit: str) -> Iterator[str]:
    """Names of the samples of a unit, each once for the output tables, and those in its errors."""
    try:
        parts = ledger.read(unit).parts
        for table in [*[table for table in OUTPUT_TABLES if table in parts][:1], *(t for t in (ERRORS,) if t in parts)]:
            data = io.BytesIO(ledger.folder.read(part_name(table, unit)))
            keys = pq.read_table(data, columns=["sample", "index"])
            yield from keys.filter(pc.not_equal(keys["index"], WHOLE_SHARD))["sample"].to_pylist()
    except (ConfigError, FileNotFoundError, pa.ArrowException):
        return  # which has a finding of its own


def _strays(ledger: Ledger, listed: Mapping[str, int]) -> Iterator[Finding]:
    """Parts that a reader of the folder would take for results."""
    for bit, table in enumerate(_TABLES):
        files = (name for name in ledger.folder.names(table) if name.endswith(".parquet"))
        units = (name.removesuffix(".parquet") for name in files)
        for unit in sorted(unit for unit in units if not listed.get(unit, 0) >> bit & 1):
            if _told_by_now(ledger, unit, table):
                continue
            name = part_name(table, unit)
            yield Finding(f"{name}: no commit knows this file", name=name, stray=True)


def _told_by_now(ledger: Ledger, unit: str, table: str) -> bool:
    """Whether a commit that the audit had not seen tells of a part: a listing lags behind, as those of some stores do,
    or a run is at work and adds tables. Of a damaged one there is a finding already."""
    try:
        return table in ledger.read(unit).parts
    except ConfigError:
        return ledger.folder.exists(record_name(unit))


def _unfinished(ledger: Ledger, manifest: Mapping[str, Any], totals: Totals) -> Iterator[Finding]:
    folder = ledger.folder
    try:
        told = folder.read_json(SUCCESS)
    except (FileNotFoundError, ValueError):
        told = None
    told = told if isinstance(told, dict) else {}
    if told.get("recipe") != manifest["recipe"]["key"] or manifest["totals"] is None:
        yield Finding("the run is unfinished (no _SUCCESS of its own): run the same command again to resume")
    elif not manifest["totals"]["samples"] == told.get("samples") == totals.samples:
        yield Finding(f"manifest.json counts {manifest['totals']['samples']} samples, the commits {totals.samples}")
    if not folder.exists(CLASSES):
        yield Finding(f"{CLASSES}: missing", name=CLASSES)

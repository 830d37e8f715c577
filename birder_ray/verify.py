"""`verify` and `status`: what a destination holds, from its files alone; neither needs Ray or torch."""

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from birder_ray.audit import audit
from birder_ray.commit import SUCCESS, Ledger
from birder_ray.errors import VerifyFailed
from birder_ray.folder import Folder
from birder_ray.manifest import begun
from birder_ray.plan import split_name, unit_name
from birder_ray.storage import redact
from birder_ray.totals import Totals

_TOLD = 10
"""Findings that a message lists."""

_READ_ALL, _SAMPLE = 20_000, 2_000
"""Up to so many records `status` reads all, above, so many: a million take minutes, and on an object store money."""


@dataclass(frozen=True)
class Status:
    """Progress of a destination.

    Args:
        finished: time of the finished run, None while one is unfinished. ended: shards whose last unit is committed.
        shards: in the source when the run began. estimated: all sums but the number of units follow from a sample of
        the commits, as there are too many to read.
    """

    destination: str
    model: str
    finished: str | None
    shards: int
    ended: int
    totals: Totals
    estimated: bool = False


def status(url: str, options: dict[str, Any] | None = None) -> Status:
    """Sum up the commits of the destination at `url`.

    A finished run says itself what it holds; of an unfinished one with very many units, a sample of records is read.

    Raises:
        ConfigError: no run has begun there.
    """
    folder = Folder(url, options)
    manifest, ledger = begun(folder), Ledger(folder)
    units, inputs = ledger.units(), len(manifest["inputs"])
    told = folder.read_json(SUCCESS) if folder.exists(SUCCESS) else {}
    done = told.get("finished") if told.get("recipe") == manifest["recipe"]["key"] else None
    sums, limited = manifest["totals"], manifest["config"]["source"]["limit"] is not None
    estimated = False
    if done and sums and (sums["units"], sums["samples"]) == (len(units), told.get("samples")) and not limited:
        totals, ended = Totals(**sums), inputs
    elif len(units) <= _READ_ALL:
        totals, ended = _summed(ledger, sorted(units), manifest["recipe"]["key"])
    else:
        totals, ended = _estimated(ledger, units, manifest["recipe"]["key"])
        estimated = True
    return Status(redact(folder.url), manifest["model"]["name"], done, inputs, ended, totals, estimated)


def _summed(ledger: Ledger, units: Iterable[str], recipe: str) -> tuple[Totals, int]:
    """Sums over the records of `units`, and how many shards end with one of them."""
    totals, ended = Totals(), 0
    for record in ledger.records(units):
        if record.recipe == recipe:
            totals.add(record)
            ended += record.end
    return totals, ended


def _estimated(ledger: Ledger, units: Collection[str], recipe: str) -> tuple[Totals, int]:
    """As `_summed`, of all units, from a sample. Whether a shard has ended, the record of its highest unit tells."""
    dice = random.Random(0)
    totals, _ = _summed(ledger, dice.sample(sorted(units), _SAMPLE), recipe)
    times = len(units) / _SAMPLE
    highest: dict[str, int] = {}
    for prefix, number in map(split_name, units):
        highest[prefix] = max(number, highest.get(prefix, 0))
    shards = dice.sample(sorted(highest), min(_SAMPLE, len(highest)))
    _, ended = _summed(ledger, (unit_name(prefix, highest[prefix]) for prefix in shards), recipe)
    return totals.scaled(times), round(ended * len(highest) / len(shards))


def verify(url: str, options: dict[str, Any] | None = None, deep: bool = False) -> Totals:
    """Prove that the destination holds exactly what its commits say, and the commits all that was read.

    For every unit: samples read = rows in each table + rows in errors; the tables hold the same samples in the same
    order, and with the errors every index from the unit's first to its last; every part has the committed size, hash,
    rows and metadata. For the whole: every unit up to the end of every shard is there, no sample stands twice, there is
    no unit of another recipe, and no part that no commit lists.

    Args:
        deep: decode every column of every part as well: the recipe's columns and types, numbers that are finite,
            probabilities that go together, names that are those of classes.parquet.

    Raises:
        ConfigError: no run has begun there. VerifyFailed: what is wrong, by name.
    """
    folder = Folder(url, options)
    found = audit(Ledger(folder), begun(folder), deep)
    if found.findings:
        problems = [str(finding) for finding in found.findings]
        more = f" (and {len(problems) - _TOLD} more)" if len(problems) > _TOLD else ""
        raise VerifyFailed(f"{redact(folder.url)}: " + "; ".join(problems[:_TOLD]) + more)
    return found.totals

"""`repair`: has exactly what is damaged in a destination done again, by the next run."""

from dataclasses import dataclass
from typing import Any

from birder_ray.audit import audit
from birder_ray.check import Finding
from birder_ray.commit import SUCCESS, Ledger
from birder_ray.folder import Folder
from birder_ray.lock import Lock
from birder_ray.manifest import begun
from birder_ray.storage import redact


@dataclass(frozen=True)
class Repair:
    """What was found and done.

    Args:
        findings: as `verify` has them. units: that are to be done again. strays: files that were removed, no part of
        any unit.
    """

    destination: str
    findings: list[Finding]
    units: list[str]
    strays: list[str]


def repair(url: str, options: dict[str, Any] | None = None, deep: bool = False) -> Repair:
    """Take back the commits of the units that `verify` finds damaged, and remove parts that no commit knows.

    What is whole is not touched; the same command as before then does the missing units again. Where this is stopped
    halfway, what it has done stands, and calling it again, or the run, goes on: first the destination stops to count as
    finished, then units lose their record, then files that no record speaks of any more are deleted.

    Args:
        deep: go by the content of the parts, too, as `verify` does with `deep`.

    Raises:
        ConfigError: no run has begun there. LockHeld: a run is at work there.
    """
    folder = Folder(url, options)
    begun(folder)
    with Lock(folder) as lock:
        ledger = Ledger(folder, lock.check)
        found = audit(ledger, begun(folder), deep).findings
        units = sorted({finding.unit for finding in found if finding.unit is not None})
        strays = sorted({finding.name for finding in found if finding.stray})
        if found:
            ledger.discard(SUCCESS)
        for unit in units:
            ledger.retract(unit)
        for unit in units:
            ledger.erase(unit)
        for name in strays:
            ledger.discard(name)
    return Repair(redact(folder.url), found, units, strays)

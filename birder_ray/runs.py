"""What a run leaves in `_runs/`: a file of its own, there before its first commit, and told at the end how it ended.

Commit records name the run that wrote them, so that each row leads to the versions and the hardware it was made with,
even where the cluster that made it is long gone.
"""

import os
import socket
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from birder_ray.folder import Folder, to_json
from birder_ray.manifest import now, versions
from birder_ray.storage import redact

RUNS = "_runs"
RUNNING, DONE = "running", "done"
"""Outcomes: of a run that goes on, or has died on the spot; and of one that did what it was to do."""


class RunRecord:
    """The record of one run.

    Args:
        name: `20261122T154000Z-1f2e3d`, when it began, UTC, and something that no other has.
    """

    def __init__(self, folder: Folder):
        self.folder = folder
        began, self._clock = now(), time.monotonic()
        self.name = f"{compact(began)}-{uuid.uuid4().hex[:6]}"
        self._told: dict[str, Any] = {
            "run": self.name,
            "outcome": RUNNING,
            "started": began,
            "destination": redact(folder.url),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "versions": versions(),
        }
        self.begun = False

    def begin(self, told: Mapping[str, Any]) -> None:
        """Write it: the run has something to do, and `told` is what it does that with."""
        self._told |= told
        self._write()
        self.begun = True

    def done(self, told: Mapping[str, Any]) -> None:
        """Write that it did what it was to do. Storage that refuses this does not undo that."""
        with suppress(Exception):
            self._end(DONE, told)

    def _end(self, outcome: str, told: Mapping[str, Any]) -> None:
        seconds = round(time.monotonic() - self._clock, 3)
        self._told |= {"outcome": outcome, "finished": now(), "seconds": seconds, **told}
        self._write()

    def failed(self, error: BaseException) -> None:
        """Write that it ended with `error`. Storage that failed the run may fail this too; what the run said counts."""
        with suppress(Exception):
            self._end(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__, {})

    def _write(self) -> None:
        self.folder.write(f"{RUNS}/{self.name}.json", to_json(self._told))  # nobody else writes that name


def compact(time: str) -> str:
    """An ISO 8601 time as `20261122T154000Z`."""
    return datetime.fromisoformat(time).astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")

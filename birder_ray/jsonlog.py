"""The messages of the command line as JSON, one object a line, for whoever collects the logs of many machines."""

import json
import logging
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TextIO

from birder_ray.errors import BirderRayError, Stopped, plain
from birder_ray.progress import Meter, Observer, RunSummary
from birder_ray.stop import STOPPED

_PROGRESS_EVERY_S = 10.0


class JsonLog(Observer):
    """Observer of a run for programs. Every line has `time` (UTC), `level`, `event` and, once it is known, `run`.

    Events: start, notice, begin, progress, end, done, failed; and log, of what libraries and this package log.

    Args:
        stream: where it goes; None: standard error.
    """

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream
        self.run: str | None = None
        self.meter: Meter | None = None
        self.next_line = 0.0

    def listen(self) -> None:
        """Take in what is logged in this process from here on, too."""
        logging.raiseExceptions = False  # a library's faulty call of its logger is told to nobody, as text least of all
        logging.captureWarnings(True)
        logging.getLogger().addHandler(_Handler(self))

    def tell(self, level: str, event: str, **told: Any) -> None:
        """Write one line."""
        print(self.line(level, event, **told), file=self.stream or sys.stderr, flush=True)

    def line(self, level: str, event: str, **told: Any) -> str:
        """What `tell` writes."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, "event": event}
        if self.run is not None:
            line["run"] = self.run
        return json.dumps(line | told, default=str)

    def start(self, run: str) -> None:
        self.run = run
        self.tell("info", "start")

    def notice(self, text: str) -> None:
        self.tell("warning", "notice", message=plain(text))

    def begin(self, meter: Meter) -> None:
        self.meter = meter
        self.tell("info", "begin", images_before=meter.before, images_total=meter.total, workers=meter.workers)

    def update(self) -> None:
        if time.monotonic() >= self.next_line:
            self._progress("progress")

    def end(self) -> None:
        self._progress("end")

    def _progress(self, event: str) -> None:
        assert self.meter is not None, "begin comes first"
        self.next_line = time.monotonic() + _PROGRESS_EVERY_S
        meter = self.meter
        self.tell(
            "info",
            event,
            images=meter.images,
            errors=meter.errors,
            units=meter.units,
            images_left=meter.left,
            images_per_s=round(meter.images_per_s, 3),
            eta_s=None if meter.eta_s is None else round(meter.eta_s),
            utilisation={step: round(share, 3) for step, share in meter.utilisation.items()},
        )

    def done(self, summary: RunSummary) -> None:
        self.tell("info", "done", **asdict(summary))

    def failed(self, error: BirderRayError) -> int:
        """It has not; returns the exit code that `error` asks for."""
        self.tell("error", "failed", **_failure(error))
        return error.exit_code

    def last_words(self) -> str:
        """The line of a process that is stopped there and then, for somebody else to write."""
        return self.line("error", "failed", **_failure(Stopped(STOPPED)))


def _failure(error: BirderRayError) -> dict[str, Any]:
    return {"error": type(error).__name__, "message": plain(str(error)), "exit_code": error.exit_code}


class _Handler(logging.Handler):
    def __init__(self, log: JsonLog):
        super().__init__(logging.WARNING)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.log.tell(record.levelname.lower(), "log", logger=record.name, message=plain(self.format(record)))
        except Exception:
            self.handleError(record)

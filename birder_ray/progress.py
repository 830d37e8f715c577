"""What a run tells while it goes on, and what it says at the end."""

import time
from collections import Counter
from dataclasses import dataclass, field

from birder_ray.record import Record
from birder_ray.schema import INFER
from birder_ray.scored import Scored


@dataclass(frozen=True)
class RunSummary:
    """What a run did.

    Args:
        run: its name. destination: where the tables are. recipe: key of what determined the values.
        images, errors, units: committed by this invocation; images counts the scored ones.
        total_images, total_errors, total_units: in the destination now.
        seconds: wall-clock time of this invocation.
        images_per_s: from the first scored chunk to the last commit; 0 where nothing was to do.
        busy_s: seconds of all workers by step, and of waiting and moving between the steps.
        utilisation: busy share of each step's workers, 0..1, by step.
        error_types: number of quarantined samples of this invocation by type.
        engines: images of this invocation by the engine that scored them, eager or compiled.
        added: tables that units got which were there before.
    """

    run: str
    destination: str
    recipe: str
    images: int
    errors: int
    units: int
    total_images: int
    total_errors: int
    total_units: int
    seconds: float
    images_per_s: float
    busy_s: dict[str, float]
    utilisation: dict[str, float]
    error_types: dict[str, int]
    engines: dict[str, int]
    added: tuple[str, ...] = ()


class Observer:
    """Told of what happens; does nothing by itself. The command line's `Console` is one."""

    def start(self, run: str) -> None:
        """A run of this name has started."""

    def notice(self, text: str) -> None:
        """Something the user should know, on one line."""

    def begin(self, meter: "Meter") -> None:
        """Scoring starts; `meter` stays up to date."""

    def update(self) -> None:
        """The meter has moved."""

    def end(self) -> None:
        """Scoring is over, well or not."""

    def done(self, summary: RunSummary) -> None:
        """The run has done what it was to do."""


@dataclass
class Meter:
    """Counts of one invocation.

    Args:
        total: samples of the whole plan, None where unknown. before: samples committed by earlier invocations.
        workers: most workers at once, by step.
    """

    total: int | None
    before: int
    workers: dict[str, int] = field(default_factory=dict)
    images: int = 0
    errors: int = 0
    committed_images: int = 0
    committed_errors: int = 0
    units: int = 0
    error_types: Counter[str] = field(default_factory=Counter)
    engines: Counter[str] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
    first: float | None = None
    latest: float = 0.0

    def scored(self, chunk: Scored) -> None:
        self.latest = time.perf_counter()
        if self.first is None:
            self.first = self.latest - chunk.seconds.get(INFER, 0.0)
        self.images += chunk.images
        self.errors += len(chunk.errors)
        self.error_types.update(error.error_type for error in chunk.errors)
        self.busy.update(chunk.seconds)
        if chunk.engine is not None:
            self.engines[chunk.engine] += chunk.images

    def committed(self, record: Record) -> None:
        self.latest = time.perf_counter()
        self.units += 1
        self.committed_images += record.rows
        self.committed_errors += record.errors

    @property
    def images_per_s(self) -> float:
        """Since the first chunk began to be scored."""
        return self.images / (self.latest - self.first) if self.first is not None else 0.0

    @property
    def utilisation(self) -> dict[str, float]:
        """Busy share of each step's workers since the first chunk."""
        elapsed = self.latest - self.first if self.first is not None else 0.0
        return {s: min(1.0, self.busy[s] / elapsed / n) if elapsed else 0.0 for s, n in self.workers.items()}

    @property
    def left(self) -> int | None:
        """Samples of the plan yet to score; None where the total is unknown."""
        return None if self.total is None else max(0, self.total - self.before - self.images - self.errors)

    @property
    def eta_s(self) -> float | None:
        """Seconds left; None where the total or the rate is unknown."""
        return None if self.left is None or not self.images_per_s else self.left / self.images_per_s

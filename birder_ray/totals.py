"""Sums over commits: what a destination holds, without its parts being read."""

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Event, Thread

from birder_ray.commit import Ledger
from birder_ray.record import Record
from birder_ray.schema import TRANSFER, WAIT


@dataclass
class Totals:
    """Sums over commits; `bytes` by table, `bytes_read` of encoded images, `seconds` by step."""

    units: int = 0
    samples: int = 0
    rows: int = 0
    errors: int = 0
    bytes_read: int = 0
    bytes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        self.units += 1
        self.samples += record.samples
        self.rows += record.rows
        self.errors += record.errors
        self.bytes_read += record.bytes_read
        for table, part in record.parts.items():
            self.bytes[table] = self.bytes.get(table, 0) + part.bytes
        for step, spent in record.seconds.items():
            self.seconds[step] = self.seconds.get(step, 0.0) + spent

    def __add__(self, other: "Totals") -> "Totals":
        tables, steps = {**self.bytes, **other.bytes}, {**self.seconds, **other.seconds}
        return Totals(
            units=self.units + other.units,
            samples=self.samples + other.samples,
            rows=self.rows + other.rows,
            errors=self.errors + other.errors,
            bytes_read=self.bytes_read + other.bytes_read,
            bytes={table: self.bytes.get(table, 0) + other.bytes.get(table, 0) for table in tables},
            seconds={step: self.seconds.get(step, 0.0) + other.seconds.get(step, 0.0) for step in steps},
        )

    @property
    def steps(self) -> dict[str, float]:
        """Seconds that workers spent, by step; without waiting and transfers."""
        return {step: spent for step, spent in self.seconds.items() if step not in (WAIT, TRANSFER)}

    @property
    def slowest(self) -> str | None:
        """The step that took the most of all workers' time; None without commits. It is the bottleneck where the steps
        share the cores; else it need not be, as no record tells how many workers a step had."""
        return max(self.steps, key=self.steps.__getitem__, default=None)

    @property
    def worked_s(self) -> float:
        """Seconds of all workers together."""
        return sum(self.steps.values())

    @property
    def passed_s(self) -> float:
        """Seconds that chunks waited between the steps, or were moved from one to the next."""
        return sum(self.seconds.values()) - self.worked_s

    def scaled(self, times: float) -> "Totals":
        """All sums times a factor."""
        return Totals(
            units=round(times * self.units),
            samples=round(times * self.samples),
            rows=round(times * self.rows),
            errors=round(times * self.errors),
            bytes_read=round(times * self.bytes_read),
            bytes={table: round(times * size) for table, size in self.bytes.items()},
            seconds={step: times * spent for step, spent in self.seconds.items()},
        )


class Summing:
    """Sums over the commits of `units`, made by a thread: a million records take minutes to read, and nothing of a run
    needs their sums before it ends. To be used with `with`, which ends the thread.

    Args:
        known: the sums, where they are known already.
    """

    def __init__(self, ledger: Ledger, units: Iterable[str], known: Totals | None = None):
        self.so_far = known or Totals()
        self._result: Future[Totals] = Future()
        self._wanted = Event()
        self._wanted.set()
        if known is None:
            Thread(target=self._sum, args=(ledger, sorted(units)), daemon=True).start()
        else:
            self._result.set_result(known)

    def _sum(self, ledger: Ledger, units: list[str]) -> None:
        try:
            for record in ledger.records(units):
                self.so_far.add(record)
                if not self._wanted.is_set():
                    self._result.cancel()
                    return
        except BaseException as error:
            self._result.set_exception(error)
        else:
            self._result.set_result(self.so_far)

    @property
    def complete(self) -> bool:
        """Whether `so_far` holds them all."""
        return self._result.done() and self._result.exception() is None

    def result(self) -> Totals:
        """The sums, once they are complete. Raises whatever reading the records has raised."""
        return self._result.result()

    def __enter__(self) -> "Summing":
        return self

    def __exit__(self, *_: object) -> None:
        self._wanted.clear()

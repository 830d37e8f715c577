"""What Prometheus scrapes of a run on a cluster: counts of what is scored and committed, through Ray's own exporter.

Prometheus shows `birder_ray_images` as `ray_birder_ray_images_total`, and so on; infra/monitoring goes by these names.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread

from ray.util.metrics import Counter, Gauge

from birder_ray.progress import Meter
from birder_ray.record import Record
from birder_ray.scored import Scored

SET_AGAIN_S = 5.0


class Metrics:
    """Counts of one run, told of each chunk and commit by the driver.

    Args:
        recipe: key, the one tag that they all have. run: name of the run.
    """

    def __init__(self, recipe: str, run: str = ""):
        def counter(name: str, description: str, *tags: str) -> Counter:
            made = Counter(f"birder_ray_{name}", description, ("recipe", *tags))
            made.set_default_tags({"recipe": recipe})
            return made

        self.run = run
        self.images = counter("images", "images scored and committed")
        self.errors = counter("errors", "samples quarantined, by step and type of error", "step", "error_type")
        self.units = counter("units", "units committed")
        self.read = counter("read_bytes", "encoded bytes of the images that were read")
        self.written = counter("written_bytes", "bytes of the parts that were committed", "table")
        self.seconds = counter("step_seconds", "seconds of all workers, by step", "step")
        # Counters show up with their first count only: this one tells of a run that never gets to its first commit
        self.running = _gauge("running", "1 while units are scored, 0 afterwards", recipe)
        self.left = _gauge("images_left", "samples of the plan yet to score, where known", recipe)
        self._kept = Kept()
        self._kept.set(self.running, 1)

    def ended(self) -> None:
        self._kept.set(self.running, 0)
        self._kept.close()

    def _spent(self, step: str, seconds: float) -> None:
        if seconds > 0:
            self.seconds.inc(seconds, {"step": step})

    def scored(self, chunk: Scored) -> None:
        for step, seconds in chunk.seconds.items():
            self._spent(step, seconds)
        for error in chunk.errors:
            self.errors.inc(1, {"step": error.step, "error_type": error.error_type})

    def committed(self, record: Record, meter: Meter) -> None:
        self.units.inc(1)
        for counter, value in ((self.images, record.rows), (self.read, record.bytes_read)):
            if value:  # Ray refuses to add nothing
                counter.inc(value)
        grown = {table for table, run in record.added.items() if run == self.run}
        for table in grown or record.parts:
            self.written.inc(record.parts[table].bytes, {"table": table})
        if not grown:  # else they hold those of the runs before
            self._spent("write", record.seconds.get("write", 0.0))
        if meter.left is not None:
            self._kept.set(self.left, meter.left)


def _gauge(name: str, description: str, recipe: str) -> Gauge:
    made = Gauge(f"birder_ray_{name}", description, ("recipe",))
    made.set_default_tags({"recipe": recipe})
    return made


@contextmanager
def exported(recipe: str | None, run: str) -> Iterator[Metrics | None]:
    """Metrics of a run while it goes on; None without a recipe."""
    metrics = Metrics(recipe, run) if recipe is not None else None
    try:
        yield metrics
    finally:
        if metrics is not None:
            metrics.ended()


class Kept:
    """Gauges that stay: Ray 2.60 exports one for 20 to 30 s after it was set, no longer; a thread sets them again."""

    def __init__(self) -> None:
        self._values: dict[Gauge, float] = {}
        self._lock = Lock()
        self._over = Event()
        Thread(target=self._again, name="birder-ray-gauges", daemon=True).start()

    def set(self, gauge: Gauge, value: float) -> None:
        """It is `value` from now on."""
        with self._lock:
            self._values[gauge] = value
            gauge.set(value)

    def close(self) -> None:
        """From now on they fade."""
        self._over.set()

    def _again(self) -> None:
        while not self._over.wait(SET_AGAIN_S):
            with self._lock:
                for gauge, value in self._values.items():
                    gauge.set(value)


class BatchSize:
    """What an inference actor exports: images per forward pass, which a GPU's actor finds out, and halves where memory
    runs out.

    Args:
        recipe: key, its tag; None: nothing is exported.
    """

    def __init__(self, recipe: str | None):
        self._told = 0
        self.gauge = None if recipe is None else _gauge("batch_size", "images per forward pass of an actor", recipe)
        self._kept = None if recipe is None else Kept()

    def now(self, size: int) -> None:
        if self._kept is not None and self.gauge is not None and size != self._told:
            self._kept.set(self.gauge, size)
            self._told = size

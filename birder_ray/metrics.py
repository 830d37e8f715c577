"""What Prometheus scrapes of a run on a cluster: counts of what is scored and committed, through Ray's own exporter.

Prometheus shows `birder_ray_images` as `ray_birder_ray_images_total`, and so on; infra/monitoring goes by these names.
"""

from ray.util.metrics import Counter, Gauge

from birder_ray.commit import Record
from birder_ray.progress import Meter
from birder_ray.scored import Scored


class Metrics:
    """Counts of one run, told of each chunk and commit by the driver.

    Args:
        recipe: key, the one tag that they all have.
    """

    def __init__(self, recipe: str):
        def counter(name: str, description: str, *tags: str) -> Counter:
            made = Counter(f"birder_ray_{name}", description, ("recipe", *tags))
            made.set_default_tags({"recipe": recipe})
            return made

        self.images = counter("images", "images scored and committed")
        self.errors = counter("errors", "samples quarantined, by step and type of error", "step", "error_type")
        self.units = counter("units", "units committed")
        self.read = counter("read_bytes", "encoded bytes of the images that were read")
        self.written = counter("written_bytes", "bytes of the parts that were committed", "table")
        self.seconds = counter("step_seconds", "seconds of all workers, by step", "step")
        # Counters show up with their first count only: this one tells of a run that never gets to its first commit
        self.running = Gauge("birder_ray_running", "1 while units are scored, 0 afterwards", ("recipe",))
        self.left = Gauge("birder_ray_images_left", "samples of the plan yet to score, where known", ("recipe",))
        for gauge in (self.running, self.left):
            gauge.set_default_tags({"recipe": recipe})
        self.running.set(1)

    def ended(self) -> None:
        self.running.set(0)

    def scored(self, chunk: Scored) -> None:
        for error in chunk.errors:
            self.errors.inc(1, {"step": error.step, "error_type": error.error_type})

    def committed(self, record: Record, meter: Meter) -> None:
        self.units.inc(1)
        for counter, value in ((self.images, record.rows), (self.read, record.bytes_read)):
            if value:  # Ray refuses to add nothing
                counter.inc(value)
        for table, part in record.parts.items():
            self.written.inc(part.bytes, {"table": table})
        for step, seconds in record.seconds.items():
            if seconds > 0:
                self.seconds.inc(seconds, {"step": step})
        if meter.left is not None:
            self.left.set(meter.left)

"""What the command line shows: a live bar on a terminal, a line a minute in a log file, a short table at the end."""

import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from birder_ray.errors import BirderRayError, plain, printable
from birder_ray.progress import Meter, Observer, RunSummary
from birder_ray.schema import DECODE, INFER, READ

if TYPE_CHECKING:
    from birder_ray.probe import Probe
    from birder_ray.rerun import Rerun
    from birder_ray.verify import Status

_LINE_EVERY_S = 60.0
_BUSY = 0.8
ADVICE = {
    READ: "storage that is nearer or faster, or more and smaller shards, would help",
    DECODE: "more CPU cores, or --preprocess-actors, would help",
    INFER: "as it should be, only more or faster GPUs or cores would help",
    "write": "a destination that is nearer or faster would help",
}
"""What to change where a step's workers are always busy."""


class _Console(RichConsole):
    """What others chose (names of files, classes, models) may hold a terminal's escape sequences; they are shown as
    text. Rich's own markup in it is for the caller to `escape`."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable(each) if isinstance(each, str) else each for each in objects), **options)


messages = _Console(stderr=True, highlight=False, soft_wrap=True)
results = _Console(highlight=False, soft_wrap=True)


def fail(error: BirderRayError) -> int:
    """Print `error` on one line; returns the exit code it asks for."""
    messages.print(f"[bold red]error:[/] {escape(plain(str(error)))}")
    return error.exit_code


def duration(seconds: float) -> str:
    """`h:mm:ss`, or `m:ss` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _state(meter: Meter) -> str:
    eta = "?" if meter.eta_s is None else duration(meter.eta_s)
    errors = "1 error" if meter.errors == 1 else f"{meter.errors:,} errors"
    busy = " ".join(f"{step} {share:.0%}" for step, share in meter.utilisation.items())
    return f"{meter.images_per_s:,.1f} images/s · {errors} · {eta} left · busy: {busy}"


class Console(Observer):
    """Observer of a run for people (standard error)."""

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.meter: Meter | None = None
        self.next_line = time.monotonic() + _LINE_EVERY_S

    def notice(self, text: str) -> None:
        messages.print(f"[yellow]note:[/] {escape(plain(text))}")

    def begin(self, meter: Meter) -> None:
        self.meter = meter
        if not messages.is_terminal:
            return
        columns = (SpinnerColumn(), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.description}"))
        self.bar = Progress(*columns, console=messages, transient=True, refresh_per_second=4)
        self.task = self.bar.add_task("starting the actors", total=meter.total, completed=meter.before)
        self.bar.start()

    def update(self) -> None:
        assert self.meter is not None, "begin comes first"
        meter = self.meter
        done = meter.before + meter.images + meter.errors
        if self.bar is not None:
            self.bar.update(self.task, completed=done, description=_state(meter))
        elif time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + _LINE_EVERY_S
            of = "" if meter.total is None else f" of {meter.total:,}"
            print(f"{time.strftime('%H:%M:%S')} {done:,}{of} images · {_state(meter)}", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def show_summary(summary: RunSummary) -> None:
    """The table at the end of a run (standard output)."""
    nothing_new = summary.units == 0
    kinds = ", ".join(f"{name} {count:,}" for name, count in sorted(summary.error_types.items()))
    rows = [
        ("images", f"{summary.total_images:,}" + ("" if nothing_new else f" ({summary.images:,} now)")),
        ("errors", f"{summary.total_errors:,}" + (f" ({kinds})" if kinds else "")),
        ("time", duration(summary.seconds) + (" (everything was done already)" if nothing_new else "")),
    ]
    if not nothing_new:
        rows.append(("images/s", f"{summary.images_per_s:,.1f} once running"))
        if summary.engines:
            rows.append(("engine", ", ".join(f"{name} {count:,}" for name, count in sorted(summary.engines.items()))))
        step, share = max(summary.utilisation.items(), key=lambda item: item[1])
        advice = f"; {ADVICE[step]}" if share > _BUSY else ""
        rows.append(("busiest", f"{step} ({share:.0%} of its workers' time{advice})"))
    rows.append(("outputs", f"{summary.destination} ({summary.total_units:,} units, recipe {summary.recipe})"))
    rows.append(("next", f"birder-ray verify {summary.destination}"))
    if summary.total_errors:
        rows.append(("", f"what is in quarantine, and why: {summary.destination}/errors/*.parquet"))
    for name, text in rows:
        results.print(f"[bold]{name:<10}[/]{escape(text)}")


def show_rerun(done: "Rerun") -> None:
    """What a rerun found and did (standard output)."""
    shards = done.changes
    results.print(
        f"[bold]{'source':<10}[/]{len(shards.new):,} shards new, {len(shards.changed):,} changed, "
        f"{len(shards.retired):,} retired, {shards.unchanged:,} as they were"
    )
    results.print(f"[bold]{'snapshot':<10}[/]{done.snapshot}")
    show_summary(done.summary)


def show_status(found: "Status") -> None:
    """How far a destination is (standard output)."""
    totals = found.totals
    state = f"finished {found.finished}" if found.finished else "unfinished; run the same command again to go on"
    results.print(f"{escape(found.destination)}: {escape(state)}")
    results.print(f"model    {escape(found.model)}")
    if found.estimated:
        results.print("estimate from some of the commits, as there are very many")
    results.print(f"shards   {found.ended:,} of {found.shards:,} done")
    results.print(f"images   {totals.rows:,} scored, {totals.errors:,} quarantined, in {totals.units:,} units")
    sizes = {"read": totals.bytes_read, **totals.bytes}
    results.print(f"bytes    {', '.join(f'{name} {size / 1e6:,.1f} MB' for name, size in sizes.items())}")
    results.print(f"seconds  {', '.join(f'{step} {duration(spent)}' for step, spent in totals.seconds.items()) or '0'}")
    if totals.slowest and totals.samples:
        spent, worked, passed = (
            f"{1e3 * seconds / totals.samples:,.1f}"
            for seconds in (totals.seconds[totals.slowest], totals.worked_s, totals.passed_s)
        )
        between = f"; {passed} ms pass between the steps" if totals.passed_s else ""
        results.print(f"slowest  {totals.slowest}: {spent} of {worked} ms of work per image{between}")
        results.print(f"         if its workers were busy all the time: {ADVICE[totals.slowest]}")


def show_probe(found: "Probe | None") -> None:
    """What `plan --probe` measured, and what follows from it (standard output)."""
    if found is None:
        results.print("probe    nothing is left to do, so nothing was measured")
        return
    read, decode, infer = (found.paces[step] for step in (READ, DECODE, INFER))
    kinds = ", ".join(f"{name} {count:,}" for name, count in sorted(found.error_types.items()))
    errors = f"{sum(found.error_types.values()):,} would be quarantined" + (f" ({kinds})" if kinds else "")
    threads, decoders = found.sizes.inference_threads, found.decoders_per_gpu
    actor = f"of {threads} threads" if decoders is None else "on a GPU"
    results.print(
        f"probe    {read.images:,} images, {found.bytes_per_image / 1e3:,.1f} kB on average; {escape(errors)}"
    )
    results.print(
        f"read     {read.images_per_s:,.1f} images/s, {read.bytes / read.seconds / 1e6:,.1f} MB/s by one reader"
    )
    results.print(f"decode   {decode.images_per_s:,.1f} images/s on one core")
    results.print(
        f"infer    {infer.images_per_s:,.1f} images/s by one actor {actor}, {found.engine}, batches of "
        f"{found.batch_size}"
    )
    results.print(
        f"predict  {found.images_per_s:,.1f} images/s on {found.machine.cpus:g} cores and {found.machine.gpus:g} GPUs; "
        f"the bottleneck is {found.bottleneck}: {ADVICE[found.bottleneck]}"
    )
    if decode.core_seconds < _BUSY * decode.seconds:  # it waits for nothing but a core
        results.print("         other programs kept the cores busy meanwhile: without them it is faster")
    if decoders is not None:
        results.print(f"         {decoders:,.1f} cores that decode keep one GPU busy")
    if found.images is None:
        results.print("whole    no telling how long it takes: how many images the source holds is unknown")
    else:
        about = "about " if found.estimated else ""
        results.print(
            f"whole    about {duration(found.images / found.images_per_s)} for {about}{found.images:,} images"
        )

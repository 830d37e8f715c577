"""What the benchmarks share: the memory of their processes, where and when they ran, their tables and JSON files.

Only of the standard library, and quick to import: it runs in the processes that are measured, too.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

RATE, FIRST, WALL = "images/s", "first output (s)", "wall (s)"
RSS, PSS, DRIVER = "peak RSS (GiB)", "peak PSS (GiB)", "peak PSS of the driver (GiB)"

Figures = dict[str, float]
Found = dict[str, dict[str, list[float]]]
"""Contestant → figure, with its unit in brackets → a value per round."""

VERSIONS = ("birder", "torch", "ray", "daft")

_BETTER = {RATE: 1, WALL: -1}
"""Figures that tables give a ratio for, and whether more (1) or less (-1) is better."""

_LOAD_BEFORE = round(os.getloadavg()[0], 2)


def process_start() -> float:
    """When this process began, by the clock of `time.time`."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def again(*call: str) -> tuple[float, float]:
    """Seconds, and peak RSS in MiB, of the running script with other arguments, as a process of its own."""
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, sys.argv[0], *call]) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{shlex.join(call)} ended with exit code {process.returncode}")
    return time.perf_counter() - started, used.ru_maxrss / 1024


class PeakMemory:
    """Highest memory of a process and of all that it started, GiB, sampled until `stop`.

    RSS counts pages that processes share once for each of them, PSS once in all. PSS is read from every page table,
    which takes time that the processes then lack: leave it out where rates are measured.
    """

    def __init__(self, process: int, pss: bool = False):
        self._process = process
        self._pss = pss
        self._peaks: Figures = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> Figures:
        self._stopped.set()
        self._thread.join()
        return self._peaks

    def _watch(self) -> None:
        while not self._stopped.wait(0.5):
            for name, gib in self._now().items():
                self._peaks[name] = max(self._peaks.get(name, 0.0), gib)

    def _now(self) -> Figures:
        family = _family(self._process)
        page = os.sysconf("SC_PAGE_SIZE")
        found = {RSS: sum(_number(process, "statm", lambda text: int(text.split()[1]) * page) for process in family)}
        if self._pss:
            each = {process: _number(process, "smaps_rollup", _pss) for process in family}
            found |= {PSS: sum(each.values()), DRIVER: each[self._process]}
        return {name: size / 1024**3 for name, size in found.items()}


def _family(root: int) -> set[int]:
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            parents[int(folder.name)] = _number(
                int(folder.name), "stat", lambda text: int(text.rpartition(")")[2].split()[1])
            )
    family, found = {root}, 0
    while len(family) > found:
        found = len(family)
        family |= {process for process, parent in parents.items() if parent in family}
    return family


def _number(process: int, file: str, parse: Callable[[str], int]) -> int:
    """Of a file in /proc; 0 where the process has ended meanwhile."""
    with suppress(OSError, IndexError, ValueError):
        return parse(Path("/proc", str(process), file).read_text())
    return 0


def _pss(text: str) -> int:
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))


def steady_rate(done: list[tuple[float, int]]) -> float:
    """images/s over the last two thirds of units or batches, of which (end in seconds, images) are given.

    During the first third, actors are still being added.
    """
    steady = sorted(done)[len(done) // 3 :]
    return sum(rows for _, rows in steady[1:]) / (steady[-1][0] - steady[0][0])


def note(found: Found, name: str, figures: Figures) -> None:
    """Add a round of a contestant, and tell who waits."""
    for what, value in figures.items():
        found.setdefault(name, {}).setdefault(what, []).append(float(f"{value:.4g}"))
    said = ", ".join(f"{what} {_short(value)}" for what, value in figures.items())
    print(f"{name}: {said}", file=sys.stderr, flush=True)


def publish(title: str, found: Found, file: str | None, ours: str | None = None, plotted: str = RATE) -> None:
    """Print `found` as a table and write it, with the circumstances, to `file` as JSON. `plotted`: its main figure."""
    made = circumstances()
    versions = ", ".join(f"{name} {made[name]}" for name in ("birder_ray", *VERSIONS) if name in made)
    machine = f"{made['cpu']}, {made['cores']} cores, {made['memory_gib']} GiB, load before {made['load_before']}"
    print(f"{title}; medians, in brackets the range over the rounds.\n\n    {made['command']}\n")
    print(f"{table(found, ours)}\n")
    print(f"{made['when']}. {machine}. {versions}.")
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(
            json.dumps({"title": title, "plotted": plotted, "made": made, "found": found}, indent=1) + "\n"
        )


def circumstances() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    revision = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": shlex.join(["python", *sys.argv]),
        "cpu": next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?"),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1024**3),
        "load_before": _LOAD_BEFORE,
        **{name: version(name) for name in VERSIONS if find_spec(name)},
        "birder_ray": revision or version("birder-ray"),
    }


def table(found: Found, ours: str | None = None) -> str:
    """Markdown: a row per contestant. With `ours`, how much better that one was, from ratios within the rounds."""
    names = list(dict.fromkeys(what for figures in found.values() for what in figures))
    compared = [what for what in names if what in _BETTER and ours and sum(what in each for each in found.values()) > 1]
    columns = [part for what in names for part in ([what, f"{ours} is"] if what in compared else [what])]
    rows = [["", *columns], ["---"] * (len(columns) + 1)]
    for contestant, figures in found.items():
        row = [contestant]
        for what in names:
            values = figures.get(what)
            row.append(_spread(values) if values else "")
            if what in compared:
                pairs = zip(found[str(ours)][what], values or [], strict=False)
                ratios = [(mine / other) ** _BETTER[what] for mine, other in pairs]
                row.append(f"{_spread(ratios)} x" if ratios and contestant != ours else "")
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _spread(values: list[float]) -> str:
    middle = _short(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({_short(min(values))} to {_short(max(values))})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

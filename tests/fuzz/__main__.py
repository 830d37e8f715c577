"""Seeded fuzzing of everything that reads other people's bytes.

    python -m tests.fuzz --mutants 5000 --seed 0 [--kind png] [--keep FOLDER] [--report FILE.md]

Mutants of JPEG, PNG, WebP, TIFF, GIF, tar, Parquet and CSV files go through listing, reading and decoding in a child
process. Passed: every sample of the file is scored or quarantined with a plain error type, its neighbours untouched,
within the time and memory limits. Anything else fails: an exception, a death of the child (which is attributed to the
mutant at work, and the next child goes on after it), more than LIMIT_S seconds. Exit code 1 if one failed.

To see one again: `python -m tests.fuzz --kind png --seed 0 --only 123 --keep FOLDER` writes and runs it.
"""

import argparse
import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.corpus import KINDS
from tests.fuzz.mutate import mutant

LIMIT_S = 30.0
START_S = 120.0
VICTIM = ("-m", "tests.fuzz.victim")
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Tally:
    """What became of the mutants of one kind: outcomes by name, and what failed by number."""

    mutants: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)
    slowest_s: float = 0.0
    grown_mib: int = 0


def fuzz(
    kind: str, seed: int, first: int, stop: int, limit_s: float = LIMIT_S, victim: tuple[str, ...] = VICTIM
) -> Tally:
    """Run mutants `first` to `stop` of `kind`, in as many children as it takes."""
    tally = Tally()
    while first < stop:
        command = [sys.executable, *victim, kind, *map(str, (seed, first, stop))]
        first = _one_child(command, first, stop, limit_s, tally)
    return tally


def _one_child(command: list[str], first: int, stop: int, limit_s: float, tally: Tally) -> int:
    """Returns the first number that is still to do."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    assert child.stdout is not None
    begun, since, ready, pending = first, time.monotonic(), False, b""
    try:
        while begun < stop:
            left = since + (limit_s if ready else START_S) - time.monotonic()
            if not select.select([child.stdout], [], [], max(0, left))[0]:
                tally.mutants += 1
                tally.failures[begun] = f"longer than {limit_s:g} s"
                return begun + 1
            read = os.read(child.stdout.fileno(), 1 << 16)
            if not read:
                break
            *lines, pending = (pending + read).split(b"\n")
            for event in map(json.loads, lines):
                ready, seconds, since = True, time.monotonic() - since, time.monotonic()
                if "end" in event:
                    begun = event["end"] + 1
                    _count(tally, event, seconds)
    finally:
        child.kill()
        code = child.wait()
        child.stdout.close()
    if begun >= stop:
        return stop
    if not ready:
        raise RuntimeError(f"the child did not start (exit code {code}): {' '.join(command)}")
    tally.mutants += 1
    tally.failures[begun] = f"killed the process, exit code {code}"
    return begun + 1


def _count(tally: Tally, event: dict, seconds: float) -> None:
    number, grown, fault = event.pop("end"), event.pop("grown"), event.pop("fault", None)
    tally.mutants += 1
    tally.slowest_s, tally.grown_mib = max(tally.slowest_s, seconds), max(tally.grown_mib, grown)
    tally.outcomes.update(event)
    if fault is not None:
        tally.failures[number] = fault


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutants", type=int, default=5000, help="in all, shared by the kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this; may be repeated")
    parser.add_argument("--only", type=int, help="number of one mutant")
    parser.add_argument("--keep", type=Path, help="folder for the mutants that failed (with --only: for that one)")
    parser.add_argument("--report", type=Path, help="file for the table of results, Markdown")
    told = parser.parse_args()
    kinds = tuple(told.kind or KINDS)
    rows = [
        "| format | mutants | outcomes (samples) | slowest | memory grew by | failed |",
        "|---|---|---|---|---|---|",
    ]
    failed = 0
    for place, kind in enumerate(kinds):
        share = (told.mutants + place) // len(kinds)
        numbers = (0, share) if told.only is None else (told.only, told.only + 1)
        tally = fuzz(kind, told.seed, *numbers)
        outcomes = ", ".join(f"{name} {count}" for name, count in tally.outcomes.most_common())
        rows.append(
            f"| {kind} | {tally.mutants} | {outcomes} | {tally.slowest_s:.1f} s | {tally.grown_mib} MiB "
            f"| {len(tally.failures)} |"
        )
        sys.stdout.write(rows[-1] + "\n")
        sys.stdout.flush()
        for number, why in tally.failures.items():
            sys.stdout.write(f"    {kind} {number}: {why}\n")
        kept = tally.failures if told.only is None else [told.only]
        for number in kept if told.keep else ():
            told.keep.mkdir(parents=True, exist_ok=True)
            (told.keep / f"{told.seed}-{number}.{kind}").write_bytes(mutant(kind, told.seed, number))
        failed += len(tally.failures)
    if told.report:
        told.report.write_text("\n".join(rows) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

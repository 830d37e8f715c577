"""Real runs, disturbed at seeded instants and resumed: what is drawn, how it is done, and what must be true after."""

import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from birder_ray.commit import SUCCESS
from birder_ray.folder import Folder
from birder_ray.lock import LOCK
from birder_ray.record import COMMITS
from birder_ray.runs import RUNS
from birder_ray.schema import ERRORS, OUTPUT_TABLES
from birder_ray.verify import verify
from tests.chaos.data import Data
from tests.chaos.driver import STALE_S
from tests.chaos.outcome import Wrong
from tests.chaos.processes import Driver, family, send
from tests.results import assert_same

HANG_S = 240.0
TITLES = {"preprocess": "_PreprocessActor", "infer": "_InferActor", "raylet": "raylet/raylet"}
DRIVER_FAULTS = ("driver KILL", "driver TERM", "driver INT", "driver STOP", "machine KILL")
ACTOR_FAULTS = tuple(f"{who} {what}" for who in ("preprocess", "infer") for what in ("KILL", "TERM", "STOP"))
START_FAULTS = ("preprocess-raises", "preprocess-dies", "infer-raises", "infer-dies", "memory", "no-memory", "clock")
ENDS = {"driver KILL": -9, "machine KILL": -9, "head KILL": -9, "driver TERM": -15, "driver INT": -2}


class Surroundings(Protocol):
    """What a kind of seed adds to a run: where it writes, what else can go wrong, and how that is undone."""

    def disturb(self, chance: random.Random) -> list[str]:
        """Let things go wrong from now on; returns which."""

    def strike(self, fault: str, driver: Driver) -> bool:
        """Carry out a fault of its own; whether it is one."""

    def refused(self, name: str) -> bool:
        """Whether requests for a file of the destination were refused for good, as far as a run can tell."""

    def mend(self) -> None:
        """Let nothing go wrong any more."""


@dataclass
class Place:
    """Where a seed's runs happen.

    Args:
        url, options: of the destination, as the checker reads it. told: blocks of the pipeline file.
        temporary: RAY_TMPDIR of drivers, and with `private` of all that they start; of the cluster without.
        faults: that may be drawn besides those of the driver and its actors.
    """

    url: str
    options: dict[str, Any]
    told: dict[str, Any]
    temporary: Path
    private: bool = True
    faults: tuple[str, ...] = ()
    surroundings: Surroundings | None = None
    workers: Path | None = None

    def folder(self) -> Folder:
        """The destination, past any proxy."""
        return Folder(self.url, self.options)


@dataclass
class Run:
    """The runs of one seed."""

    data: Data
    place: Place
    chance: random.Random
    struck: list[str] = field(default_factory=list)
    code: int | None = None

    def start(self, faults: tuple[str, ...] = ()) -> Driver:
        return Driver(self.data.config(self.place.url, **self.place.told), self.place.temporary, faults)

    def commits(self) -> int:
        return len(self.place.folder().names(COMMITS))

    def await_commits(self, driver: Driver, commits: int) -> None:
        """Until so many stand, or the run is over."""
        deadline = time.monotonic() + HANG_S
        while self.commits() < commits and not driver.ended:
            if time.monotonic() > deadline:
                raise Wrong(f"hangs: no {commits} commits in {HANG_S:g} s; {driver.said()}")
            time.sleep(0.1)

    def disturbed(self) -> None:
        """One run with one to three faults."""
        chance, struck = self.chance, []
        around = self.place.surroundings.disturb(chance) if self.place.surroundings else []
        pool = [*DRIVER_FAULTS, *ACTOR_FAULTS, *self.place.faults * 3]
        # few: most of them end a run before anything else can strike it
        at_start = tuple(f"{name}-0" for name in chance.sample(START_FAULTS, chance.choice([0, 0, 0, 0, 1, 2])))
        events = [chance.choice(pool) for _ in range(chance.choice([0, 1] if around else [1, 1, 2, 3]))]
        before, driver = self.commits(), self.start(_spelled(at_start))
        if "clock-0" in at_start:
            (driver.folder / "clock").write_text(str(chance.choice([-86_400, -60, 60, 86_400])))
        self.struck += [name.removesuffix("-0") for name in at_start] + around
        try:
            for number, fault in enumerate(events, 1):
                if chance.random() < 0.25 and number == 1:
                    time.sleep(chance.uniform(0, 8))
                else:
                    self.await_commits(driver, before + chance.choice([0, 1, 2]) * number)
                    time.sleep(chance.uniform(0, 0.3))
                if driver.ended:
                    break
                if self.strike(driver, fault):
                    self.struck.append(fault)
                    struck.append(fault)
            self.code = driver.wait(HANG_S)
            self._judge(driver, struck)
        finally:
            driver.end(self.place.private)

    def strike(self, driver: Driver, fault: str) -> bool:
        """Whether there was something to strike."""
        who, what = fault.split()
        if self.place.surroundings and self.place.surroundings.strike(fault, driver):
            return True
        if who == "machine":
            driver.end(self.place.private)
            return True
        driver.await_start()
        pids = [driver.process.pid] if who == "driver" else self.actors(TITLES[who])
        if what == "STOP":
            seconds = self.chance.uniform(0.5, 3)
            stopped = [pid for pid in pids if send(pid, signal.SIGSTOP)]
            time.sleep(seconds)
            return bool([pid for pid in stopped if send(pid, signal.SIGCONT)])
        return bool([pid for pid in pids if send(pid, getattr(signal, f"SIG{what}"))])

    def actors(self, title: str, patience_s: float = 20) -> list[int]:
        """Pids of the actors of a step, once there are some."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            found = family(self.place.workers or self.place.temporary)
            if pids := [pid for pid, command in found.items() if title in command.split(" -")[0]]:
                return pids
            time.sleep(0.2)
        return []

    def _judge(self, driver: Driver, struck: list[str]) -> None:
        if self.code is None:
            raise Wrong(f"hangs: not over {HANG_S:g} s after the last fault; {driver.said()}")
        self.struck.append(f"→{self.code}")
        allowed = {0, 1} | {ENDS[fault] for fault in struck if fault in ENDS}
        if self.code not in allowed:
            raise Wrong(f"exit code {self.code}: {driver.said()}")
        if self.code == 1 and not driver.said().startswith(("error: ", "stopped")):
            raise Wrong(f"no plain line: {driver.log()}")
        around = self.place.surroundings
        if self.code == 1 and self.place.folder().exists(LOCK) and not (around and around.refused(LOCK)):
            raise Wrong(f"a run that ended by itself left its lock: {driver.said()}")
        deadline = time.monotonic() + 30
        while self.place.private and (left := family(self.place.temporary)):
            if time.monotonic() > deadline:
                raise Wrong(f"left processes behind: {sorted(left.values())[:3]}")
            time.sleep(0.2)

    def finish(self) -> None:
        """The resume, undisturbed, and everything that must be true after it."""
        if self.place.surroundings:
            self.place.surroundings.mend()
        for _ in range(4):
            driver = self.start()
            try:
                code, said = driver.wait(HANG_S), driver.said()
            finally:
                driver.end(self.place.private)
            if "another run" not in said:
                break
            time.sleep(STALE_S)
        if code != 0:
            raise Wrong(f"the undisturbed resume ended with {code}: {driver.log()[-1500:]}")
        self.check()

    def check(self) -> None:
        place, folder = self.place, self.place.folder()
        verify(place.url, place.options)
        try:
            assert_same(self.data.whole, place.url, place.options, tolerance=1e-4)
        except AssertionError as error:
            raise Wrong(f"not what an undisturbed run gives: {' '.join(str(error).split())[:300]}") from error
        left, wanted = _files(folder), _files(Folder(self.data.whole))
        if left != wanted:
            raise Wrong(f"files too many: {left - wanted}, missing: {wanted - left}")
        if not folder.exists(SUCCESS) or folder.exists(LOCK):
            raise Wrong("a finished run must leave _SUCCESS, and no lock")


def _spelled(names: tuple[str, ...]) -> tuple[str, ...]:
    """What `tests.chaos.driver` looks for."""
    return tuple("no-memory" if name == "no-memory-0" else name for name in names if name != "clock-0")


def _files(folder: Folder) -> Counter[str]:
    """Number of files by folder, temporary ones too; those beside the tables by name."""
    found: Counter[str] = Counter()
    for entry in folder.fs.find(folder.path):
        name = entry.removeprefix(folder.path).strip("/")
        top = name.partition("/")[0]
        found[top if top in (*OUTPUT_TABLES, ERRORS, COMMITS) else name] += top != RUNS
    return +found

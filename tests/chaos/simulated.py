"""A simulated world for whole runs without Ray: operations that fail, processes that die or freeze, clocks that jump.

Whether a fault strikes is drawn from the seed, the attempt, the operation, the file's name and how often that was
done before, and not from a common sequence: so a replay strikes the same operations, however threads interleave.
"""

import datetime as clock
import os
import random
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from birder_ray import lock

CHANGES = ("write", "create", "replace", "delete", "pipe_file", "rm_file")
REMOTE = ("pipe_file", "rm_file", "cat_file", "info", "ls")
JUMPS_S = (-86_400, -300, -30, 65, 3600, 86_400)


_FINGERPRINT = re.compile(r"-[0-9a-f]{12}(?=-\d{6})")
"""The part of a unit's name that holds the time its shard was written, and so is another in a replay."""


class Died(BaseException):
    """Stands for SIGKILL: whoever raised it changes nothing any more."""


class Throttled(Exception):
    """What botocore raises, as far as anyone looks at it."""

    def __init__(self, status: int):
        super().__init__(f"An error occurred ({status}) when calling an operation")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


@dataclass
class Attempt:
    """One process of a history: who it is, what strikes it how often, and what struck it so far.

    Args:
        rates: probability of each kind of fault, per operation. burst: operations that fail in a row.
    """

    seed: str
    host: str
    pid: int
    rates: dict[str, float] = field(default_factory=dict)
    burst: int = 1
    noise: float = 0.0
    meanwhile: Callable[[], None] | None = None
    offset_s: float = 0.0
    dead: bool = False
    struck: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.times: Counter[str] = Counter()
        self.failing: Counter[str] = Counter()
        self.running = threading.Event()
        self.running.set()
        self.guard = threading.Lock()

    def draw(self, key: str) -> str | None:
        """The fault that strikes this operation, if any."""
        with self.guard:
            self.times[key] += 1
            if self.failing[key]:
                self.failing[key] -= 1
                return "transient"
            chance = random.Random(f"{self.seed} {key} {self.times[key]}")
            drawn = chance.random()
            for kind, rate in self.rates.items():
                drawn -= rate
                if drawn < 0:
                    operation = key.partition(" ")[0]
                    if (kind == "lost" and operation not in CHANGES) or (kind == "stale" and operation != "ls"):
                        return None
                    if kind == "transient":
                        self.failing[key] = self.burst - 1
                    if kind == "freeze":
                        del self.rates[kind]  # once
                    self.struck.append(f"{kind}@{key}")
                    return kind
        return None

    def operate(self, operation: str, name: str, do: Callable[[], Any], stale: Callable[[], Any]) -> Any:
        """`do()`, struck by whatever is due; `stale()` gives an answer of earlier."""
        name = _FINGERPRINT.sub("", name)
        self.running.wait()
        if self.dead:
            raise Died
        kind = self.draw(f"{operation} {name}")
        chance = random.Random(f"{self.seed} {kind} {operation} {name}")
        changes = operation in CHANGES
        if kind == "die":
            if changes and chance.random() < 0.5:
                do()
            self.dead = True
            raise Died
        if kind == "transient":
            remote = operation in REMOTE
            raise chance.choice([OSError(5, "Input/output error"), TimeoutError(), *[Throttled(503)] * 2 * remote])
        if kind == "lost" and changes:
            do()
            raise ConnectionResetError(104, "Connection reset by peer")
        if kind == "refused":
            raise chance.choice([PermissionError(13, "Permission denied"), OSError(28, "No space left on device")])
        if kind == "clock":
            self.offset_s += chance.choice(JUMPS_S)
        if kind == "stale":
            return stale()
        if kind == "freeze" and self.meanwhile is not None:
            self.running.clear()
            try:
                self.meanwhile()
            finally:
                self.running.set()
        return do()


def current() -> Attempt | None:
    """The attempt that this thread belongs to."""
    return getattr(threading.current_thread(), "chaos_attempt", None)


@contextmanager
def attempting(attempt: Attempt) -> Iterator[None]:
    """This thread, and all that it starts, belong to `attempt`."""
    thread, before = threading.current_thread(), current()
    thread.chaos_attempt = attempt  # type: ignore[attr-defined]
    try:
        yield
    finally:
        thread.chaos_attempt = before  # type: ignore[attr-defined]


def strike(operation: str, name: str, do: Callable[[], Any], stale: Callable[[], Any] | None = None) -> Any:
    attempt = current()
    return do() if attempt is None else attempt.operate(operation, name, do, stale or do)


@dataclass
class World:
    """The attempts by pid, and how much later it is than the real clocks say."""

    processes: dict[int, Attempt] = field(default_factory=dict)
    later_s: float = 0.0


@contextmanager
def world() -> Iterator[World]:
    """Threads inherit their attempt; pids, hosts and clocks are the attempt's; waiting takes no time."""
    made = World()
    processes = made.processes
    start, sleep, now, kill = threading.Thread.start, time.sleep, time.time, os.kill
    getpid, gethostname, monotonic, boot = os.getpid, socket.gethostname, time.monotonic, lock._boot

    def inherit(thread: threading.Thread) -> None:
        thread.chaos_attempt = current()  # type: ignore[attr-defined]
        start(thread)

    def wait(seconds: float) -> None:
        if current() is None:
            sleep(seconds)
        else:
            made.later_s += seconds
            sleep(0.001)  # for a thread of a process that is dead by now, which still holds a file

    def signal(pid: int, number: int) -> None:
        if pid not in processes:
            kill(pid, number)
        elif processes[pid].dead or processes[pid].host != socket.gethostname():
            raise ProcessLookupError(3, "No such process")

    def ask(real: Callable[[], Any], told: Callable[[Attempt], Any]) -> Callable[[], Any]:
        return lambda: real() if (attempt := current()) is None else told(attempt)

    class Clock(clock.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> clock.datetime:  # type: ignore[override]
            return clock.datetime.fromtimestamp(time.time(), tz)

    with ExitStack() as stack:
        for where, name, replacement in [
            (threading.Thread, "start", inherit),
            (time, "sleep", wait),
            (time, "time", ask(now, lambda attempt: now() + made.later_s + attempt.offset_s)),
            (time, "monotonic", ask(monotonic, lambda attempt: monotonic() + made.later_s)),
            (os, "getpid", ask(getpid, lambda attempt: attempt.pid)),
            (os, "kill", signal),
            (socket, "gethostname", ask(gethostname, lambda attempt: attempt.host)),
            (lock, "_boot", ask(boot, lambda attempt: f"boot of {attempt.host}")),
        ]:
            stack.enter_context(patch.object(where, name, replacement))
        for module in [module for name, module in sys.modules.items() if name.startswith("birder_ray.")]:
            if getattr(module, "datetime", None) is clock.datetime:
                stack.enter_context(patch.object(module, "datetime", Clock))
        yield made

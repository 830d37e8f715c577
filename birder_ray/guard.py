"""Isolating the sample that kills its process: a crash in native code takes the whole actor down, and Ray runs the
chunk again. Attempts are counted outside the process that dies, so the third time the culprit is known. A sample that
hangs is made to kill its process, and so is found the same way.
"""

import faulthandler
import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Condition
from typing import NamedTuple, Protocol

from birder_ray.chunk import Chunk
from birder_ray.errors import RunFailed, SampleError, ShardDamaged
from birder_ray.folder import Folder
from birder_ray.schema import INFER, READ
from birder_ray.source.base import Item

DEADLY = 2
"""So many deaths while alone at work make a sample poison; one may be chance, a machine lost at that moment."""

HOPELESS = 20
"""So many deaths over one chunk that no sample is to blame for end the run."""

HOPELESS_START = 4
"""So many deaths of an actor while it starts end the run."""

_UNITS_IN_FLIGHT = 1000

ATTEMPTS = "_attempts.json"

Key = tuple[str, str, int]
"""Step, unit and number of a chunk; while reading, step, shard's prefix and first index."""


class Attempt(NamedTuple):
    """What is known of a chunk when work on it starts.

    Args:
        deaths: earlier ones over it. poison: sample indices, of all its unit. wanted: false once the run is to stop,
            unless inference has begun with its unit.
    """

    deaths: int
    poison: frozenset[int]
    wanted: bool


class Attempts(Protocol):
    """Where attempts are counted; must outlive the process that does the work."""

    def begin(self, key: Key) -> Attempt:
        """Start work on a chunk; a chunk that is not wanted is not begun."""

    def at(self, key: Key, index: int | None) -> None:
        """The sample of this index is now alone at work; None: none is."""

    def end(self, key: Key) -> None:
        """The chunk is done."""


class AttemptBook:
    """`Attempts` in the memory of one process, and whether the run has been asked to stop.

    Args:
        folder: destination in which the blame is kept, so that it outlives the run. Without it, it does not.
    """

    def __init__(self, folder: Folder | None = None):
        self.folder = folder
        self.open: set[Key] = set()
        self.deaths: Counter[Key] = Counter()
        self.alone: dict[Key, int] = {}
        self.blame: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
        self.inferred: deque[str] = deque(maxlen=_UNITS_IN_FLIGHT)
        self.stopped = False
        with suppress(FileNotFoundError, ValueError, TypeError):
            for step, unit, index, deaths in folder.read_json(ATTEMPTS) if folder else ():
                self.blame[step, unit][int(index)] += int(deaths)

    def begin(self, key: Key) -> Attempt:
        step, unit, _ = key
        if self.stopped and step != READ and unit not in self.inferred:
            return Attempt(0, frozenset(), wanted=False)
        if step == INFER:
            self.inferred.append(unit)
        blame = self.blame[step, unit]
        if key in self.open:
            self.deaths[key] += 1
            if key in self.alone:
                blame[self.alone.pop(key)] += 1
                self._save()
        self.open.add(key)
        poison = frozenset(index for index, deaths in blame.items() if deaths >= DEADLY)
        return Attempt(self.deaths[key], poison, wanted=True)

    def at(self, key: Key, index: int | None) -> None:
        if index is None:
            self.alone.pop(key, None)
        else:
            self.alone[key] = index
        self._save()

    def end(self, key: Key) -> None:
        self.open.discard(key)
        self.deaths.pop(key, None)
        self.alone.pop(key, None)

    def _save(self) -> None:
        """As another book will read it: whoever is alone at work when this process ends is to blame for that."""
        if self.folder is None:
            return
        total = {key: Counter(blame) for key, blame in self.blame.items()}
        for (step, unit, _), index in self.alone.items():
            total.setdefault((step, unit), Counter())[index] += 1
        rows = [[*key, index, deaths] for key, blame in total.items() for index, deaths in blame.items()]
        with suppress(Exception):  # storage is away, with an exception of its own kind: the memory of this book stands
            self.folder.write_json(ATTEMPTS, rows)

    def stop(self) -> None:
        self.stopped = True

    def stopping(self) -> bool:
        return self.stopped


class Turns:
    """Several chunks may be at work in one process, or one that is alone: else a sample could take the blame for the
    death of its process that a chunk beside it has caused."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._at_work = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._at_work += 1
        try:
            yield
        finally:
            with self._changed:
                self._at_work -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._at_work == 0)
            yield  # holding the lock, so that nobody begins


def guarded(
    step: str,
    stage: Callable[[Chunk], Chunk],
    attempts: Attempts,
    chunk: Chunk,
    sample_timeout_s: float | None = None,
    turns: Turns | None = None,
) -> Chunk | None:
    """`stage(chunk)`, with the samples that kill the process quarantined as `ProcessKilled`; None if it is not wanted.

    After a death over the chunk its samples are tried one by one first, each announced before it is tried.

    Args:
        sample_timeout_s: a sample alone that takes longer ends the process; a chunk of n has n/10 times more.
        turns: of the threads of this process, where there are several.

    Raises:
        RunFailed: the process dies over this chunk again and again, whatever is left out.
    """
    key = (step, chunk.unit, chunk.number)
    deaths, poison, wanted = attempts.begin(key)
    if not wanted:
        return None
    if deaths >= HOPELESS + DEADLY * len(poison):
        raise RunFailed(f"{step} died {deaths} times over unit {chunk.unit}; not enough memory on its machine?")
    chunk = _without(chunk, poison, step)
    turns = turns or Turns()
    if deaths:
        with turns.alone():
            for position, sample in enumerate(chunk.samples):
                attempts.at(key, sample.index)
                with _limited(sample_timeout_s, 1):
                    stage(_only(chunk, position))
            attempts.at(key, None)
    with turns.shared(), _limited(sample_timeout_s, len(chunk.samples)):
        result = stage(chunk)
    attempts.end(key)
    return result


def watched(attempts: Attempts, prefix: str) -> Callable[[int, Iterator[Item]], Iterator[Item]]:
    """Guards the reading of a shard: an index at which it kills the process again is where the shard is damaged.

    Returns:
        What wraps the items read from an index on; raises ShardDamaged there.
    """

    def watch(start: int, items: Iterator[Item]) -> Iterator[Item]:
        key = (READ, prefix, start)
        deaths, poison, _ = attempts.begin(key)
        index = start
        try:
            while index not in poison:
                if deaths:
                    attempts.at(key, index)
                item = next(items, None)
                if deaths:
                    attempts.at(key, None)
                if item is None:
                    break
                yield item
                index = item[0].index + 1
        except GeneratorExit:  # enough was read
            attempts.end(key)
            raise
        attempts.end(key)
        if index in poison:
            raise ShardDamaged("ProcessKilled", f"reading on at index {index} killed the process each time")

    return watch


@contextmanager
def starting(step: str, attempts: Attempts, actor: str) -> Iterator[None]:
    """Around the start of an actor. Raises RunFailed where its process has died in there too often."""
    key = (step, actor, 0)
    deaths = attempts.begin(key).deaths
    if deaths >= HOPELESS_START:
        raise RunFailed(f"{step}: its process died {deaths} times while it started; not enough memory for the model?")
    yield
    attempts.end(key)


@contextmanager
def _limited(sample_timeout_s: float | None, samples: int) -> Iterator[None]:
    """Ends the process if this takes too long, whatever native code it is stuck in."""
    if sample_timeout_s is None:
        yield
        return
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(sample_timeout_s * (1 + samples / 10), exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def _without(chunk: Chunk, poison: frozenset[int], step: str) -> Chunk:
    if not poison:
        return chunk
    error = SampleError("ProcessKilled", f"the {step} process died, or hung, each time this sample was tried")
    kept = [position for position, sample in enumerate(chunk.samples) if sample.index not in poison]
    killed = [sample.failed(step, error) for sample in chunk.samples if sample.index in poison]
    return replace(chunk.pick(kept), errors=chunk.errors + killed)


def _only(chunk: Chunk, position: int) -> Chunk:
    return replace(chunk.pick([position]), errors=[])

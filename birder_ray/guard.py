"""Isolating the sample that kills its process: a crash in native code takes the whole actor down, and Ray runs the
chunk again. Attempts are counted outside the process that dies, so the third time the culprit is known.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from birder_ray.chunk import Chunk
from birder_ray.errors import RunFailed, SampleError

DEADLY = 2
"""So many deaths while alone at work make a sample poison; one may be chance, a machine lost at that moment."""

HOPELESS = 20
"""So many deaths over one chunk end the run: it is not its samples."""

Key = tuple[str, str, int]
"""Step, unit and number of a chunk."""


class Attempts(Protocol):
    """Where attempts are counted; must outlive the process that does the work."""

    def begin(self, key: Key) -> tuple[int, frozenset[int]]:
        """Start work on a chunk; returns earlier deaths over it and its known poison (sample indices)."""

    def at(self, key: Key, index: int | None) -> None:
        """The sample of this index is now alone at work; None: none is."""

    def end(self, key: Key) -> None:
        """The chunk is done."""


@dataclass
class AttemptBook:
    """`Attempts` in the memory of one process."""

    open: set[Key] = field(default_factory=set)
    deaths: Counter[Key] = field(default_factory=Counter)
    alone: dict[Key, int] = field(default_factory=dict)
    blame: dict[Key, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))

    def begin(self, key: Key) -> tuple[int, frozenset[int]]:
        if key in self.open:
            self.deaths[key] += 1
            if key in self.alone:
                self.blame[key][self.alone.pop(key)] += 1
        self.open.add(key)
        poison = frozenset(index for index, deaths in self.blame[key].items() if deaths >= DEADLY)
        return self.deaths[key], poison

    def at(self, key: Key, index: int | None) -> None:
        if index is None:
            self.alone.pop(key, None)
        else:
            self.alone[key] = index

    def end(self, key: Key) -> None:
        self.open.discard(key)
        for kept in (self.deaths, self.alone, self.blame):
            kept.pop(key, None)


def guarded(step: str, stage: Callable[[Chunk], Chunk], attempts: Attempts, chunk: Chunk) -> Chunk:
    """`stage(chunk)`, with the samples that kill the process quarantined as `ProcessKilled`.

    After a death over the chunk its samples are tried one by one first, each announced before it is tried.

    Raises:
        RunFailed: the process dies over this chunk again and again, whatever is left out.
    """
    key = (step, chunk.unit, chunk.number)
    deaths, poison = attempts.begin(key)
    if deaths >= HOPELESS:
        raise RunFailed(f"{step} died {deaths} times over unit {chunk.unit}; not enough memory on its machine?")
    if deaths:
        chunk = _without(chunk, poison, step)
        for position, sample in enumerate(chunk.samples):
            attempts.at(key, sample.index)
            stage(_only(chunk, position))
        attempts.at(key, None)
    result = stage(chunk)
    attempts.end(key)
    return result


def _without(chunk: Chunk, poison: frozenset[int], step: str) -> Chunk:
    error = SampleError("ProcessKilled", f"the {step} process died each time this sample was tried")
    kept = [position for position, sample in enumerate(chunk.samples) if sample.index not in poison]
    killed = [sample.failed(step, error) for sample in chunk.samples if sample.index in poison]
    return replace(_pick(chunk, kept), errors=chunk.errors + killed)


def _only(chunk: Chunk, position: int) -> Chunk:
    return replace(_pick(chunk, [position]), errors=[])


def _pick(chunk: Chunk, positions: list[int]) -> Chunk:
    return replace(
        chunk,
        samples=[chunk.samples[p] for p in positions],
        data=None if chunk.data is None else [chunk.data[p] for p in positions],
        images=None if chunk.images is None else chunk.images[positions],
    )

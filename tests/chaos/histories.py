"""Whole runs in a simulated world: hundreds of histories of faults, each in well under a second."""

import hashlib
import os
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fsspec
import numpy as np
import pyarrow as pa

from birder_ray import pipeline
from birder_ray.commit import SUCCESS, Ledger
from birder_ray.config import RunConfig
from birder_ray.errors import BirderRayError, RunFailed, VerifyFailed
from birder_ray.folder import Folder
from birder_ray.lock import LOCK, STALE_S
from birder_ray.parts import part_name
from birder_ray.read import read_chunks
from birder_ray.runs import RUNS
from birder_ray.scored import Scored
from birder_ray.sizes import Hardware
from birder_ray.verify import verify
from tests.built import FACTS, NAMES, ROWS, InHand, tables
from tests.chaos.outcome import Outcome, Wrong
from tests.chaos.simulated import Attempt, Died, World, attempting, current, world
from tests.chaos.stores import DiskFolder, ObjectStore
from tests.results import assert_same, table
from tests.test_histories import _source as make_source

fsspec.register_implementation("chaos", ObjectStore, clobber=True)

RATES = {"die": 0.02, "transient": 0.05, "lost": 0.05, "refused": 0.01, "clock": 0.05, "freeze": 0.03, "stale": 0.2}
STREAM_ENDS = (Died, RunFailed, KeyboardInterrupt)


def _noisy(made: dict[str, bytes], noise: float) -> dict[str, bytes]:
    """Values that differ within the promised tolerance, as they do from one batch composition to another: so parts
    written twice have different hashes."""
    found = {}
    for name, data in made.items():
        rows = pa.ipc.open_stream(data).read_all()
        for position, column in enumerate(rows.schema):
            if pa.types.is_float32(column.type) and column.name == "probability":
                values = pa.array(rows.column(position).to_numpy() + np.float32(noise), pa.float32())
                rows = rows.set_column(position, column, values)
            elif pa.types.is_fixed_size_list(column.type):
                flat = rows.column(position).combine_chunks().flatten().to_numpy() + np.float32(noise)
                vectors = pa.FixedSizeListArray.from_arrays(
                    pa.array(flat, column.type.value_type), column.type.list_size
                )
                rows = rows.set_column(position, column, vectors)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
        found[name] = sink.getvalue().to_pybytes()
    return found


@dataclass
class _Ends:
    """How the stream of chunks ends, before it comes to its end."""

    after: int = 10**9
    how: type[BaseException] = Died


class _History:
    def __init__(self, seed: int, root: Path):
        self.seed = seed
        self.root = root
        self.chance = random.Random(f"history {seed}")
        self.on_disk = self.chance.random() < 0.5
        self.destination = str(root / "out") if self.on_disk else f"chaos://chaos-{os.getpid()}-{seed}/out"
        self.ends: dict[int, _Ends] = {}
        self.world = World()
        self.struck: list[str] = []
        self.said = ""
        self.grows = False
        self.little = 0
        """So many runs ask for one table only; those after them add the others."""

    # -- the parts of a run that are replaced

    def stream(self, work: Sequence[Any], config: RunConfig, *_: Any) -> Iterator[Scored]:
        attempt = current()
        ends = self.ends.get(attempt.pid, _Ends()) if attempt else _Ends()
        noise = attempt.noise if attempt else 0.0
        order = random.Random(f"{self.seed} {attempt.pid if attempt else 0}")

        def chunks() -> Iterator[Scored]:
            made = [chunk for each in work for chunk in read_chunks(each, config.source, 4)]
            order.shuffle(made)
            for number, chunk in enumerate(made):
                if number >= ends.after:
                    if attempt and ends.how is Died:
                        attempt.dead = True
                    raise ends.how("the stream ended")
                scored = replace(chunk, data=None, tables=_noisy(tables(chunk.shard, chunk.samples), noise))
                yield InHand.chunk(scored)

        return chunks()

    @contextmanager
    def replaced(self) -> Iterator[None]:
        @contextmanager
        def session(*_: Any, **__: Any) -> Iterator[Hardware]:
            yield Hardware(2, 0, 2, 0, 16 * 1024**3)

        with ExitStack() as stack:
            self.world = stack.enter_context(world())
            for where, name, value in [
                (pipeline.runtime, "stream", self.stream),
                (pipeline, "session", session),
                (pipeline, "Near", InHand),
                (pipeline, "_identify", lambda config: pipeline._Model(FACTS, None, NAMES)),
                (os, "fsync", lambda file: None),
            ]:
                stack.enter_context(patch.object(where, name, value))
            if self.on_disk:
                stack.enter_context(patch.object(pipeline, "Folder", DiskFolder))
            yield

    # -- runs

    def attempt(self, **fields: Any) -> Attempt:
        pid = 10_000_000 + len(self.world.processes)
        host = self.chance.choice(["here", "here", "there"])
        made = Attempt(f"{self.seed} {pid}", host, pid, noise=(pid % 10) * 1e-7, **fields)
        self.world.processes[pid] = made
        return made

    def run(self, attempt: Attempt, limit: int | None = None, retry: bool = False) -> str:
        """How a run went that may be struck: `done`, or the name of what ended it."""
        outputs = {"outputs": {"predictions": {}}} if self.little > 0 else {}
        self.little -= 1
        config = RunConfig(
            source={"uri": str(self.root / "data"), "limit": limit},
            model="m",
            destination=self.destination,
            compute={"unit_rows": ROWS},
            run={"max_error_rate": 1, "retry_errors": retry},
            **outputs,
        )
        try:
            with attempting(attempt):
                pipeline.run(config)
            return "done"
        except (Died, BirderRayError, KeyboardInterrupt) as end:
            self.said = str(end)
            return type(end).__name__
        except (OSError, Exception) as error:
            if any(kind.startswith(("refused", "transient", "lost")) for kind in attempt.struck):
                return f"raw {type(error).__name__}"  # the command line makes one line of it
            raise
        finally:
            self.struck += attempt.struck
            attempt.dead = True  # the process is over, however it ended

    def disturbed(self, nested: bool = False) -> None:
        chance = self.chance
        kinds = chance.sample(sorted(RATES), k=chance.choice([1, 1, 2, 3]))
        never = {"freeze"} if nested else set()
        never |= {"lost", "stale"} if self.on_disk else set()
        kinds = [kind for kind in kinds if kind not in never]
        attempt = self.attempt(
            rates={kind: RATES[kind] * chance.choice([0.5, 1, 3]) for kind in kinds},
            burst=chance.choice([1, 1, 2, 4, 40]),
            offset_s=chance.choice([0, 0, 0, -300, 300, 86_400]),
        )
        if chance.random() < 0.4:
            self.ends[attempt.pid] = _Ends(chance.randrange(12), chance.choice(STREAM_ENDS))
        limit = chance.choice([3, 15, 20, 44]) if chance.random() < 0.15 else None
        if self.grows and "stale" in kinds:
            limit = None  # what both listings hide, beyond a limit, lacks its table until `repair` (ADR 10)
        if not nested:
            attempt.meanwhile = lambda: self._take_over(attempt)
        how = self.run(attempt, limit, retry=chance.random() < 0.15)
        self.struck.append(f"→{how}")

    def _take_over(self, frozen: Attempt) -> None:
        """Another machine's run, while this one is frozen for longer than a lock lasts."""
        self.chance.random()
        self.world.later_s += STALE_S + 5
        if self.chance.random() < 0.5:
            self.disturbed(nested=True)
        else:
            self.struck.append(f"→{self.run(self.attempt())} meanwhile")

    def finish(self) -> None:
        """The user's resume, tried again as often as the lock of a dead run tells them to wait."""
        for _ in range(4):
            how = self.run(self.attempt())
            if how != "LockHeld":
                break
            self.world.later_s += STALE_S + 5
        if how != "done":
            raise Wrong(f"the undisturbed resume ended as {how}: {self.said}")

    # -- checks

    def files(self, destination: str) -> dict[str, bytes]:
        """All but the records of runs, of which there are as many as there were runs."""
        if "://" not in destination:
            root = Path(destination)
            found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        else:
            store = ObjectStore.stores.get(destination.split("/")[2], {})
            found = {key.removeprefix("out/"): data for key, (data, _) in store.items()}
        return {name: data for name, data in found.items() if not name.startswith(f"{RUNS}/")}

    def check_commits(self) -> None:
        """A commit never promises what is not there, and a run that says it is finished is."""
        ledger = Ledger(Folder(self.destination))
        for record in ledger.records(sorted(ledger.units())):
            for name, part in record.parts.items():
                try:
                    data = ledger.folder.read(part_name(name, record.unit))
                except FileNotFoundError:
                    raise Wrong(f"{part_name(name, record.unit)} is committed but missing") from None
                if hashlib.sha256(data).hexdigest() != part.sha256:
                    raise Wrong(f"{part_name(name, record.unit)} is not what was committed")
        if ledger.folder.exists(SUCCESS):
            try:
                verify(self.destination)
            except VerifyFailed as error:
                # What a listing hides can be neither counted nor cleared away; the next run does
                hidden = any(fault.startswith("stale@ls out/") for fault in self.struck)
                if not (hidden and re.search(" counts | no commit knows ", str(error))):
                    raise

    def check_whole(self, whole: str) -> None:
        verify(self.destination)
        assert_same(whole, self.destination)
        # Units of a destination that began with fewer tables have other hashes in their names
        left, wanted = (
            Counter(re.sub(r"-[0-9a-f]{12}-", "-", name) for name in self.files(each))
            for each in (self.destination, whole)
        )
        if left != wanted:
            raise Wrong(f"files too many: {sorted(left - wanted)}, missing: {sorted(wanted - left)}")
        if LOCK in left:
            raise Wrong("the lock is left")
        if table(whole, "errors").num_rows and not any(name.startswith("errors/") for name in left):
            raise Wrong("the errors are lost")


def play(outcome: Outcome, root: Path) -> None:
    """One history: disturbed runs, then the resume, which must end like an undisturbed run."""
    seed, history = outcome.seed, _History(outcome.seed, root)
    make_source(history.chance, root / "data")
    outcome.kind = "disk, simulated" if history.on_disk else "objects, simulated"
    history.struck = outcome.faults
    with history.replaced():
        destination, history.destination = history.destination, str(root / "whole")
        history.finish()
        history.destination = destination
        grows = random.Random(f"grows {seed}")
        history.little = grows.choice([0, 0, 1, 2, 3])
        history.grows = history.little > 0
        if history.grows and grows.random() < 0.5:
            history.finish()
        for _ in range(history.chance.choice([1, 2, 3, 4])):
            history.disturbed()
            history.check_commits()
        history.little = 0
        history.finish()
        history.check_whole(str(root / "whole"))
        before = history.files(history.destination)
        history.finish()
        if history.files(history.destination) != before:
            raise Wrong("running a finished run again changed the destination")
    ObjectStore.stores.pop(f"chaos-{os.getpid()}-{seed}", None)

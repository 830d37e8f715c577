"""Where a short run spends its time: a timeline of `score` over 64 photos, against the least that Ray itself takes.

    python benchmarks/startup.py [--rounds 3] [--images 64] [--network hgnet_v2_b2] [--engine eager] [--imports]

The floor is an interpreter that starts Ray, sends one row through a Ray Data chain of one actor and shuts Ray down; it
and the run take turns; times of one run compare, those of two days do not.
`--imports` adds what each process imports, by package.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from measuring import Found, note, process_start, publish
from photos import as_tars
from throughput import OURS, arguments, prepare, title, unit_rows

AT, STEP, CPU = "at (s)", "after the last of its process (s)", "CPU of its process so far (s)"
STEPS = {"driver": "birder_ray.pipeline", "preprocess": "birder_ray.preprocess", "infer": "birder_ray.infer"}

FLOOR = """
import os
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
import ray, ray.data
ray.init(address="local", object_store_memory=2 << 30, include_dashboard=False, logging_level="error",
         log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
class Same:
    def __call__(self, block):
        return block
chain = ray.data.from_items([1]).map_batches(Same, num_cpus=0.1, compute=ray.data.ActorPoolStrategy(size=1))
assert sum(len(batch["item"]) for batch in chain.iter_batches()) == 1
ray.shutdown()
"""


def mark(who: str, what: str, at: float | None = None) -> None:
    """Append to the trace: the time, and the CPU seconds of this process so far."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    row = [who, what, at or time.time(), spent.ru_utime + spent.ru_stime]
    with open(os.environ["STARTUP_TRACE"], "a") as file:
        file.write(json.dumps(row) + "\n")


def marked(who: str, what: str, call):
    """`call`, with its first end in the trace."""

    def wrapper(*args, **kwargs):
        result = call(*args, **kwargs)
        if not hasattr(wrapper, "ended"):
            wrapper.ended = True
            mark(who, what)
        return result

    return wrapper


def traced_actor(actor: type, who: str, module: str, inside: list[tuple[str, str, str]]) -> type:
    """The actor with its start in the trace; `inside`: module, function and name of what it calls while it starts."""
    from importlib import import_module

    from birder_ray import runtime

    class Traced:
        def __init__(self, *args):
            mark(who, "process", process_start())
            mark(who, "worker ready, entered")
            with runtime._uncollected():  # as the actor would
                import_module(module)
            mark(who, "imports")
            for place, name, what in inside:
                holder = import_module(place)
                setattr(holder, name, marked(who, what, getattr(holder, name)))
            self.actor = actor(*args)
            mark(who, "actor ready")
            self.called = False

        def __call__(self, block):
            if not self.called:
                mark(who, "first chunk begun")
            for table in self.actor(block):
                if not self.called:
                    mark(who, "first chunk done")
                self.called = True
                yield table

    return Traced


def child(config: dict) -> None:
    """One run with its trace."""
    mark(OURS, "interpreter", process_start())
    from birder_ray import RunConfig, pipeline, runtime, session

    mark(OURS, "imports")
    told = RunConfig(**config)
    pipeline.list_shards = marked(OURS, "listed", pipeline.list_shards)
    pipeline._identify = marked(OURS, "model identified", pipeline._identify)
    pipeline.make_plan = marked(OURS, "planned", pipeline.make_plan)
    session._start = marked(OURS, "Ray started", session._start)
    pipeline._Scoring._committed = marked(OURS, "first commit", pipeline._Scoring._committed)
    pipeline._Scoring._check_complete = marked(OURS, "last commit", pipeline._Scoring._check_complete)
    inside = [
        ("birder_ray.infer", "resolve", "weights resolved"),
        ("birder_ray.backbone.network", "_load", "network loaded"),
        ("birder_ray.backbone.network", "Passes", "taps found, outputs checked"),
    ]
    runtime._PreprocessActor = traced_actor(runtime._PreprocessActor, "preprocess", "birder_ray.preprocess", [])
    runtime._InferActor = traced_actor(runtime._InferActor, "infer", "birder_ray.infer", inside)
    pipeline.run(told)
    mark(OURS, "Ray shut down")


def measure(folder: Path, told: argparse.Namespace) -> Found:
    checkpoint, tars = prepare(folder, told), as_tars(folder / "tars", told.images)
    found: Found = {}
    for number in range(told.rounds):
        note(found, "Ray alone", {AT: _timed([sys.executable, "-c", FLOOR])})
        config = {
            "source": str(tars),
            "model": str(checkpoint),
            "destination": str(folder / f"out-{number}"),
            "compute": {"unit_rows": unit_rows(told.images), "engine": told.engine},
        }
        trace = folder / f"trace-{number}"
        os.environ["STARTUP_TRACE"] = str(trace)
        started = time.time()
        whole = _timed([sys.executable, __file__, "--child", json.dumps(config)])
        first: dict[str, dict[str, float]] = {}
        for who, what, at, cpu in map(json.loads, trace.read_text().splitlines()):
            first.setdefault(f"{who}: {what}", {AT: at - started, CPU: cpu})
        last: dict[str, float] = {}
        for name, figures in sorted(first.items(), key=lambda item: item[1][AT]):
            who = name.partition(":")[0]
            note(found, name, {AT: figures[AT], STEP: figures[AT] - last.get(who, 0), CPU: figures[CPU]})
            last[who] = figures[AT]
        note(found, f"{OURS}: whole run", {AT: whole})
    return found


def _timed(command: list[str]) -> float:
    started = time.time()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return time.time() - started


def imports() -> None:
    """What each process imports, in ms of its own time by top package; told of by the interpreter, which slows it."""
    for who, module in STEPS.items():
        told = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", f"import {module}"], capture_output=True, text=True, check=True
        )
        own: Counter[str] = Counter()
        for micros, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", told.stderr, re.MULTILINE):
            own[name.partition(".")[0]] += int(micros)
        parts = ", ".join(f"{name} {micros / 1000:.0f}" for name, micros in own.most_common(12))
        print(f"\n{who} ({module}): {sum(own.values()) / 1000:.0f} ms: {parts}")


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(images=64)
    parser.add_argument("--imports", action="store_true", help="also say what each process imports")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.child:
        child(json.loads(told.child))
        return
    with tempfile.TemporaryDirectory(prefix="br-start-") as folder:
        found = measure(Path(folder), told)
    publish(f"Start-up: {title(told)}", found, told.json, plotted=AT)
    if told.imports:
        imports()


if __name__ == "__main__":
    main()

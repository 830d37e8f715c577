"""How throughput scales with actors, decoders, rows per unit and nodes, and the most that one driver takes.

    python benchmarks/scaling.py [--what actors units] [--json scaling.json] [--plots DIR] [--quick]

The run is the real one, from reading tars of small JPEGs to commits; only the compute is made up: GPUs are logical, an
actor sleeps for as long as its images would take and gives noise. Parts are written by tasks, as on a cluster that
writes to an object store. All processes share this machine's cores, which those of a real fleet do not: the cores in
use tell where it is the machine that ends a curve, not the pipeline.

Each point is a run with a Ray of its own. Throughput is the slope of committed rows over the last two thirds of the
commits. Linear is so many times the first point; where units or tables are varied, the best point.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster
from ray.thirdparty_files import psutil

from birder_ray import RunConfig, arrivals, pipeline, runtime, schema
from birder_ray.chunk import Chunk
from birder_ray.folder import Folder
from birder_ray.tables import build, to_ipc
from birder_ray.testing import make_shards, tiny_checkpoint

TABLES = schema.OUTPUT_TABLES
RATE = 400  # images/s of an actor that sleeps
CHUNK_ROWS = 256  # as a long run on GPUs has them
EMBEDDING, LEVELS = 2048, {"stage1": 96, "stage2": 384, "stage3": 768, "stage4": 1536}  # HGNet v2 B2
LOGICAL_CPUS, STORE_BYTES = 8, 2**29  # of all nodes, as Ray starts a process for each; of a node, soon full
WRITERS = arrivals.Far(LOGICAL_CPUS).writers
KNEE, FULL, SAMPLE_S = 80, 85, 0.25  # per cent, s
THREADS = {"MainThread": "iterate", "birder-ray-write": "commit"}  # other Python ones are Ray Data's
PROCESSES = {"driver": "#D55E00", "raylet, GCS": "#009E73", "workers": "#56B4E9", "machine": "black"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """A run: where on its curve; images/s that it may reach; inference actors, each on a logical GPU, and decoders,
    with the images/s of one; by default they hardly sleep. Nodes: besides a head without CPUs; 0: the head alone."""

    x: int
    rate: float
    actors: int
    decoders: int
    unit_rows: int = 512
    infer_rate: float = 1e9
    decode_rate: float = 1e9
    nodes: int = 0
    tables: tuple[str, ...] = TABLES[:2]


# What is varied, s that a run may take: commits must have come evenly for a while (writing everything fills a disk)
CURVES = {
    "actors": ("inference actors", 30, [Point(n, n * RATE, n, 4, infer_rate=RATE) for n in (1, 2, 4, 8, 16)]),
    "decoders": ("preprocess actors", 30, [Point(n, n * RATE, 16, n, decode_rate=RATE) for n in (1, 2, 4, 8)]),
    "units": ("rows per unit", 30, [Point(n, 6 * RATE, 8, 2, n, infer_rate=RATE) for n in (64, 256, 512, 1024, 2048)]),
    "nodes": ("nodes", 30, [Point(n, 3 * n * RATE, 3 * n, 2 * n, nodes=n, infer_rate=RATE) for n in (1, 2, 4)]),
    "driver": ("tables written", 10, [Point(n, 4000, 2, 1, 2048, tables=TABLES[:n]) for n in (1, 2, 3)]),
}


def stand_ins(point: Point, meeting: str) -> tuple[type, type]:
    """The two actors of `runtime` around made-up compute; `meeting`: folder in which all inference actors sign in."""
    vectors = schema.embeddings_schema(EMBEDDING, "float32"), schema.features_schema(LEVELS, ("mean", "max", "std"))
    every = dict(zip(TABLES, (schema.predictions_schema(368, logits=False), *vectors), strict=True))
    widths = {field.name: field.type.list_size for each in vectors for field in each if field not in schema.KEY_FIELDS}
    names = [f"{n:05d}_Animalia_Chordata_Aves_Passeriformes_Corvidae_Genus_species" for n in range(368)]

    def preprocess(chunk: Chunk) -> Chunk:
        time.sleep(seconds := len(chunk.samples) / point.decode_rate)
        pixels = np.zeros((len(chunk.samples), 32, 32, 3), np.uint8)
        return chunk.after("decode", seconds, chunk.samples, [], images=pixels)

    class Infer:
        batch_size = CHUNK_ROWS

        def __init__(self) -> None:
            self.gpu = threading.Lock()
            self.noise = np.random.default_rng().standard_normal(2 * CHUNK_ROWS * EMBEDDING, np.float32)
            Path(meeting, str(os.getpid())).touch()

        def __call__(self, chunk: Chunk) -> Chunk:
            while len(os.listdir(meeting)) < point.actors:  # a curve is of whole fleets, not of how Ray starts them
                time.sleep(0.05)
            rows = len(chunk.samples)
            with self.gpu:  # which computes one chunk at a time, however many the actor works on
                time.sleep(seconds := rows / point.infer_rate)
            columns = {name: self.some(rows, width) for name, width in widths.items()}
            columns |= {"top_probabilities": self.some(rows, 5), "entropy": self.some(rows, 1)}
            columns["top_indices"] = np.random.randint(0, len(names), (rows, 5), np.int32)
            tables = {n: to_ipc(build(every[n], chunk.shard, chunk.samples, columns, names)) for n in point.tables}
            return chunk.after("infer", seconds, chunk.samples, [], tables=tables, engine="eager")

        def some(self, rows: int, width: int) -> np.ndarray:
            """Noise from another place each time, so that no compressor finds any of it again."""
            at = np.random.randint(len(self.noise) - rows * width)
            return self.noise[at : at + rows * width].reshape(rows, width)

    def around(actor: type, module: str, stage: str, made: Callable[[], Any]) -> type:
        def start(self: Any, *told: Any) -> None:
            sys.modules["birder_ray.device"] = SimpleNamespace(lost=lambda error: False)  # the real one imports torch
            sys.modules[module] = SimpleNamespace(**{stage: lambda *_, **__: made()})
            actor.__init__(self, *told)

        return type(stage, (actor,), {"__init__": start})

    decoder = around(runtime._PreprocessActor, "birder_ray.preprocess", "Preprocess", lambda: preprocess)
    return decoder, around(runtime._InferActor, "birder_ray.infer", "Infer", Infer)


def child(point: Point, root: Path) -> None:
    """Run it; note what the driver's threads are for."""
    threads, create = {}, Folder.create

    def noting(*told: Any) -> bool:
        for thread in threading.enumerate():
            threads[thread.native_id] = THREADS.get(thread.name.partition("_")[0], "Ray Data")
        return create(*told)

    (root / "met").mkdir()
    runtime._PreprocessActor, runtime._InferActor = stand_ins(point, str(root / "met"))
    Folder.create, pipeline.Near = noting, lambda: arrivals.Far(LOGICAL_CPUS)
    cluster, count = Cluster(), max(1, point.nodes)
    node = {"num_cpus": LOGICAL_CPUS // count, "num_gpus": point.actors // count, "object_store_memory": STORE_BYTES}
    for told in [{**node, "num_cpus": 0, "num_gpus": 0}] * bool(point.nodes) + [node] * count:  # the first is the head
        cluster.add_node(**told, include_dashboard=False)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    actors = {"inference_actors": point.actors, "preprocess_actors": point.decoders}
    compute = {**actors, "batch_size": CHUNK_ROWS, "unit_rows": point.unit_rows}
    paths = {"source": f"{root}/tars", "model": f"{root}/hgnet_v2_b0_tiny.pt", "destination": f"{root}/out"}
    pipeline.run(RunConfig(**paths, outputs=dict.fromkeys(point.tables), compute=compute))
    ray.shutdown()
    cluster.shutdown()
    (root / "told.json").write_text(json.dumps(threads))


def sample(driver: int) -> Row:
    """CPU seconds so far: of the driver's threads; of its process, its descendants and everyone, by what they are."""
    family = psutil.Process(driver)
    spent = {("driver", driver): sum(family.cpu_times()[:2]), ("machine", 0): sum(psutil.cpu_times()[:3])}
    for each in family.children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            kind = "raylet, GCS" if each.name() in ("raylet", "gcs_server") else "workers"
            spent[kind, each.pid] = sum(each.cpu_times()[:2])
    threads = {each.id: each.user_time + each.system_time for each in family.threads()}
    return {"at": time.time(), "processes": spent, "threads": threads}


def measure(point: Point, made: Path, seconds: float) -> Row:
    """One run of about so many seconds, watched."""
    images = max(math.ceil(seconds * point.rate), 12 * point.unit_rows)
    root = Path(tempfile.mkdtemp(prefix="br", dir="/tmp"))  # the paths of Ray's sockets must be short
    command = [sys.executable, __file__, "--child", json.dumps(asdict(point)), str(root)]
    shard, samples = max(1024, point.unit_rows), []
    try:
        (root / "tars").mkdir()
        for number in range(math.ceil(images / shard)):
            os.link(made / f"{shard}/shard-000000.tar", root / f"tars/shard-{number:06d}.tar")
        os.link(made / "hgnet_v2_b0_tiny.pt", root / "hgnet_v2_b0_tiny.pt")
        with open(root / "said", "w") as said:
            run = subprocess.Popen(command, env={**os.environ, "RAY_TMPDIR": str(root)}, stdout=said, stderr=said)
        while run.poll() is None:
            with suppress(psutil.Error):  # it ended meanwhile
                samples.append(sample(run.pid))
            time.sleep(SAMPLE_S)
        if run.returncode:
            sys.exit(f"{point}: exit code {run.returncode}\n{(root / 'said').read_text()[-3000:]}")
        files = sorted((root / "out/_commits").iterdir(), key=lambda file: file.stat().st_mtime)
        commits = [(file.stat().st_mtime, json.loads(file.read_text())) for file in files]
        return row_of(point, commits[len(commits) // 3 :], samples, json.loads((root / "told.json").read_text()))
    finally:
        shutil.rmtree(root)


def row_of(point: Point, commits: list[tuple[float, Row]], samples: list[Row], threads: dict[str, str]) -> Row:
    """The figures of a point over its steady commits."""
    times, records = zip(*commits, strict=True)
    done = list(accumulate(record["rows"] for record in records))
    rate = statistics.linear_regression(times, done).slope
    inside = [each for each in samples if times[0] <= each["at"] <= times[-1]]
    first, took = inside[0], inside[-1]["at"] - inside[0]["at"]

    def cores(kind: str) -> Counter[str]:
        used: Counter[str] = Counter()
        latest = {each: seconds for sample in inside for each, seconds in sample[kind].items()}  # some end early
        for (name, number), seconds in latest.items():
            used[name] += (seconds - first[kind].get((name, number), 0.0)) / took
        return used

    for each in samples:
        each["threads"] = {(threads.get(str(t), "Ray core"), t): s for t, s in each["threads"].items()}
    processes, driver = cores("processes"), cores("threads")
    python = driver["iterate"] + driver["commit"] + driver["Ray Data"]
    most = {"read": 2 * point.decoders, "decode": point.decoders, "infer": point.actors, "write": WRITERS}
    busy = {step: sum(record["seconds"].get(step, 0.0) for record in records) * rate / done[-1] for step in most}
    size = sum(part["bytes"] for record in records for part in record["parts"].values()) / done[-1]
    return {
        "images/s": rate,
        "MB/s": rate * size / 1e6,
        **{f"{step} busy, %": 100 * busy[step] / count for step, count in most.items()},
        "driver's Python busy, %": 100 * python,
        "machine busy, %": 100 * processes["machine"] / os.cpu_count(),
        "most its Python could do, images/s": rate / python,
        **{f"{process}, cores": processes[process] for process in PROCESSES},
        **{f"driver: {part}, µs/image": 1e6 * driver[part] / rate for part in sorted(driver)},
    }


def report(name: str, x: str, rows: dict[int, Row]) -> None:
    """A table of a column per point, and what is full where throughput does not scale."""
    best = max(row["images/s"] for row in rows.values())
    print(f"\n## {name}\n\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print(f"| {x} |", " | ".join(map(str, rows)), "|\n|---" + "|---" * len(rows) + "|")
    full = []
    for n, row in rows.items():
        row["linear, images/s"] = best if name in ("units", "driver") else rows[1]["images/s"] * n
        row["of linear, %"] = 100 * row["images/s"] / row["linear, images/s"]
        busy = [f"{what[:-3]} {row[what]:.0f} %" for what in row if what.endswith("busy, %") and row[what] >= FULL]
        full.append(f"- {n}: {', '.join(busy) or 'nothing, chunks wait for Ray'}")
    for what in dict.fromkeys(what for row in rows.values() for what in row):
        print(f"| {what} |", " | ".join(f"{row.get(what, 0.0):,.3g}" for row in rows.values()), "|")
    good = [str(n) for n, row in rows.items() if row["of linear, %"] >= KNEE]
    print(f"\n{KNEE} % of linear or more at {', '.join(good)}. What is full:\n", *full, sep="\n")


def plot(x: str, rows: dict[int, Row], path: Path) -> None:
    from matplotlib.figure import Figure

    def line(axes: Any, what: str, style: str, colour: str, label: str) -> None:
        axes.plot(list(rows), [row[what] for row in rows.values()], style, color=colour, label=label)
        axes.legend(fontsize="small")

    figure = Figure(figsize=(6, 6), layout="constrained")
    rates, cores = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    line(rates, "linear, images/s", "--", "0.5", "linear")
    line(rates, "images/s", "o-", "#0072B2", "measured")
    for (process, colour), style in zip(PROCESSES.items(), ("o-", "s-", "v-", ":"), strict=True):
        line(cores, f"{process}, cores", style, colour, process)
    rates.set(xscale="log", yscale="log", ylabel="images/s")
    cores.set(xlabel=x, ylabel=f"cores in use, of {os.cpu_count()}", ylim=(0, None))
    cores.minorticks_off()
    cores.set_xticks(list(rows), list(map(str, rows)))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=CURVES, default=list(CURVES))
    parser.add_argument("--quick", action="store_true", help="few images")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--plots", type=Path, help="folder for a PNG of each curve")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.child:
        sys.exit(child(Point(**json.loads(told.child[0])), Path(told.child[1])))
    found = {}
    with tempfile.TemporaryDirectory(prefix="br-scaling-", dir="/tmp") as made:
        tiny_checkpoint(f"{made}/hgnet_v2_b0_tiny.pt")
        for size in {max(1024, point.unit_rows) for name in told.what for point in CURVES[name][2]}:
            make_shards(f"{made}/{size}", size, 1, labels=False)
        for name in told.what:
            x, seconds, points = CURVES[name]
            found[name] = {point.x: measure(point, Path(made), 3 if told.quick else seconds) for point in points}
            report(name, x, found[name])
            if told.plots:
                plot(x, found[name], told.plots / f"scaling-{name}.png")
    if told.json:
        told.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

"""What the plan, the resume, `status` and the commits cost, in seconds and memory, far past what one machine scores.

    python benchmarks/scale.py plan [--shards 10000 100000] [--units 10]     plan, resume, status
    python benchmarks/scale.py records --s3 URL [--units 20000]        listing and reading records on an object store
    python benchmarks/scale.py commits [--s3 URL --option KEY=VALUE]   the write step alone, fed with made-up chunks
    python benchmarks/scale.py run [--units 2000] [--plot run.png]           a real run of tiny units, watched

`plan` writes one real record file per unit into a folder of its own (--folder, about 4 kB of disk each) and no image:
the shards are `Shard` objects with counts. Every figure comes from a process of its own; `MB` is what its peak memory
has grown by since its imports. The machine's load at the time stands beside the figures.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

RECIPE = "0123456789abcdef"
UNIT_ROWS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["plan", "records", "commits", "run", "child"])
    parser.add_argument("names", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--shards", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument(
        "--units", type=int, default=0, help="per shard (plan: 10), or in all (run: 2000, records: 20000)"
    )
    parser.add_argument("--unit-rows", type=int, nargs="+", default=[64, 2048, 65_536])
    parser.add_argument("--megabytes", type=int, default=1000, help="written for each line of `commits`")
    parser.add_argument("--s3", help="also time commits to this URL, or records at it")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--plot", help="PNG of the driver's memory")
    told = parser.parse_args()
    if told.what == "child":
        print(json.dumps(CHILDREN[told.names[0]](*map(json.loads, told.names[1:]))))
    else:
        {"plan": plan, "records": records, "commits": commits, "run": run}[told.what](told)


def child(name: str, *values: Any) -> dict[str, Any]:
    """What `CHILDREN[name]` returns in a process of its own."""
    command = [sys.executable, __file__, "child", name, *map(json.dumps, values)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(call: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What `call` returns, and its seconds and memory."""
    before, started = _peak_mb(), time.perf_counter()
    value = call()
    return value, {"s": round(time.perf_counter() - started, 2), "MB": round(_peak_mb() - before)}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _line(*cells: Any) -> None:
    print(
        "| " + " | ".join(f"{cell:,}" if isinstance(cell, int | float) else str(cell) for cell in cells) + " |",
        flush=True,
    )


def _header(*cells: str) -> None:
    _line(*cells)
    _line(*("---" for _ in cells))


# ---- plan ----


def shards_of(count: int, units: int, unit_rows: int) -> list[Any]:
    from birder_ray.source.base import Shard

    name = "camera-traps/2026/site-{:06d}/shard-{:06d}.parquet".format
    return [
        Shard(f"s3://bucket/{name(n // 100, n)}", name(n // 100, n), "parquet", f"{n:016x}", 10**9, units * unit_rows)
        for n in range(count)
    ]


def build(folder: str, shards: int, units: int, first: int, stop: int) -> dict[str, Any]:
    """Records of units `first` to `stop` of every shard, and a manifest."""
    from birder_ray.plan import unit_name, unit_prefix
    from birder_ray.schema import SCHEMA_VERSION

    listed = shards_of(shards, units, UNIT_ROWS)
    os.makedirs(f"{folder}/_commits", exist_ok=True)
    part = {"rows": UNIT_ROWS, "bytes": 123_456, "sha256": "0" * 64}
    record = {
        "unit": "UNIT", "shard": "SHARD", "recipe": RECIPE, "samples": UNIT_ROWS, "rows": UNIT_ROWS, "errors": 0,
        "end": "END", "limited": False, "damaged": False,
        "parts": dict.fromkeys(("predictions", "embeddings", "features"), part),
        "seconds": {"read": 0.1, "decode": 1.2, "infer": 3.4, "write": 0.2}, "finished": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    text = json.dumps(record, indent=1)
    for shard in listed:
        prefix = unit_prefix(RECIPE, UNIT_ROWS, shard)
        own = text.replace("SHARD", shard.name)
        for number in range(first, stop):
            unit = unit_name(prefix, number)
            end = "true" if number == units - 1 else "false"
            with open(f"{folder}/_commits/{unit}.json", "w") as file:
                file.write(own.replace("UNIT", unit).replace('"END"', end))
    manifest = {
        "schema_version": SCHEMA_VERSION, "recipe": {"key": RECIPE, "core": "", "tables": {}, "facts": {}},
        "model": {"name": "none"}, "unit_rows": UNIT_ROWS, "config": {"source": {"limit": None}}, "totals": None,
        "inputs": [{"name": s.name, "uri": s.uri, "size": s.size, "fingerprint": s.fingerprint} for s in listed],
    }  # fmt: skip
    Path(folder, "manifest.json").write_text(json.dumps(manifest))
    return {}


def finish(folder: str, shards: int, units: int) -> dict[str, Any]:
    """Say that the run of `build` is finished."""
    path = Path(folder, "manifest.json")
    count = shards * units
    totals = {
        "units": count,
        "samples": count * UNIT_ROWS,
        "rows": count * UNIT_ROWS,
        "errors": 0,
        "bytes": {},
        "seconds": {},
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | {"totals": totals}))
    told = {"recipe": RECIPE, "finished": "2026-01-01T00:00:00+00:00", "samples": totals["samples"]}
    Path(folder, "_SUCCESS").write_text(json.dumps(told))
    return {}


def child_plan(folder: str, shards: int, units: int, unit_rows: int) -> dict[str, Any]:
    """make_plan alone."""
    from birder_ray.commit import Ledger
    from birder_ray.folder import Folder
    from birder_ray.plan import make_plan

    listed = shards_of(shards, units, unit_rows)
    ledger = Ledger(Folder(folder))
    plan, cost = measured(lambda: make_plan(listed, RECIPE, unit_rows, ledger))
    return cost | {"tasks": len(plan.work), "done": len(plan.done), "todo": plan.units_todo}


def child_status(folder: str) -> dict[str, Any]:
    from birder_ray.verify import status

    found, cost = measured(lambda: status(folder))
    return cost | {"units": found.totals.units, "samples": found.totals.samples}


def child_sums(folder: str) -> dict[str, Any]:
    """What a resume sums up beside the run."""
    from birder_ray.commit import Ledger
    from birder_ray.folder import Folder
    from birder_ray.totals import Summing

    ledger = Ledger(Folder(folder))
    units = ledger.units()

    def call() -> int:
        with Summing(ledger, units) as summing:
            return summing.result().units

    count, cost = measured(call)
    return cost | {"units": count}


def plan(told: argparse.Namespace) -> None:
    units = told.units or 10
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    _header("shards", "units", "images", "committed", "what", "s", "MB", "result")
    for shards in told.shards:
        root = tempfile.mkdtemp(prefix="br-scale-", dir=told.folder)
        try:
            for first, stop in ((0, 0), (0, units // 2), (units // 2, units)):
                child("build", root, shards, units, first, stop)
                committed = shards * stop
                for rows in (UNIT_ROWS, 100 * UNIT_ROWS) if stop == 0 else (UNIT_ROWS,):
                    found = child("plan", root, shards, units, rows)
                    result = f"{found['tasks']:,} tasks"
                    _line(
                        shards,
                        shards * units,
                        shards * units * rows,
                        committed,
                        "plan",
                        found["s"],
                        found["MB"],
                        result,
                    )
                if stop == units // 2:
                    found = child("sums", root)
                    images = shards * units * UNIT_ROWS
                    read = f"{found['units']:,} records"
                    _line(
                        shards, shards * units, images, committed, "sums, beside the run", found["s"], found["MB"], read
                    )
                if stop:
                    _status(root, shards, units, committed, "status")
            child("finish", root, shards, units)
            _status(root, shards, units, shards * units, "status, finished")
        finally:
            shutil.rmtree(root)


def _status(root: str, shards: int, units: int, committed: int, what: str) -> None:
    found = child("status", root)
    result = f"{found['samples']:,} samples"
    _line(shards, shards * units, shards * units * UNIT_ROWS, committed, what, found["s"], found["MB"], result)


# ---- records ----


def child_records(url: str, options: dict[str, Any], units: int) -> dict[str, Any]:
    """The steps of a resume that ask the store for records."""
    from birder_ray.commit import Ledger
    from birder_ray.folder import Folder

    ledger = Ledger(Folder(url, options))
    found, listed = measured(ledger.units)
    assert len(found) == units
    some = sorted(found)[:2000]
    _, read = measured(lambda: sum(1 for _ in ledger.records(some)))
    return {"listed": listed, "read": read, "some": len(some)}


def records(told: argparse.Namespace) -> None:
    """Listing all records, and reading 2,000 of them, on an object store."""
    from concurrent.futures import ThreadPoolExecutor

    from birder_ray.folder import Folder

    units, options = told.units or 20_000, _options(told)
    with tempfile.TemporaryDirectory(prefix="br-scale-", dir=told.folder) as local:
        child("build", local, units, 1, 0, 1)
        folder, paths = Folder(told.s3, options), sorted(Path(local, "_commits").iterdir())
        with ThreadPoolExecutor(32) as pool:
            started = time.perf_counter()
            list(pool.map(lambda path: folder.write(f"_commits/{path.name}", path.read_bytes()), paths))
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{units:,} records written at {units / (time.perf_counter() - started):.0f}/s\n")
    found = child("records", told.s3, options, units)
    _header("what", "records", "s", "records/s", "MB")
    for what, count, cost in (("listed", units, found["listed"]), ("read", found["some"], found["read"])):
        _line(what, count, cost["s"], round(count / cost["s"]), cost["MB"])


def _options(told: argparse.Namespace) -> dict[str, Any]:
    from birder_ray.config import override

    options: dict[str, Any] = {}
    for text in told.option:
        override(options, text, "--option")
    return options


# ---- commits ----

WIDTH = 768
CHUNK_ROWS = 32
DISTINCT_CHUNKS = 64
"""So many rows of noise that no compressor finds them again."""


def _tables() -> list[dict[str, bytes]]:
    import numpy as np

    from birder_ray.chunk import Sample
    from birder_ray.schema import embeddings_schema, features_schema, predictions_schema
    from birder_ray.tables import build as table
    from birder_ray.tables import to_ipc

    schemas = {
        "predictions": predictions_schema(10_000, logits=False),
        "embeddings": embeddings_schema(WIDTH, "float32"),
        "features": features_schema({"stage4": WIDTH}, ("mean",)),
    }
    random = np.random.default_rng(0)
    names = [f"{n:05d}_Animalia_Chordata_Aves_Passeriformes_Corvidae_Genus_species" for n in range(10_000)]
    made = []
    for number in range(DISTINCT_CHUNKS):
        samples = [Sample(f"site/shard.tar/{number:06d}-{n:06d}", n, None, "") for n in range(CHUNK_ROWS)]
        columns = {
            "top_indices": random.integers(0, 10_000, (CHUNK_ROWS, 5), np.int32),
            "top_probabilities": np.sort(random.random((CHUNK_ROWS, 5), np.float32))[:, ::-1].copy(),
            "entropy": random.random((CHUNK_ROWS, 1), np.float32),
            "embedding": random.standard_normal((CHUNK_ROWS, WIDTH), np.float32),
            "stage4_mean": random.standard_normal((CHUNK_ROWS, WIDTH), np.float32),
        }
        made.append({name: to_ipc(table(schema, "s", samples, columns, names)) for name, schema in schemas.items()})
    return made


def child_commits(url: str, options: dict[str, Any], unit_rows: int, units: int) -> dict[str, Any]:
    """Collector and Ledger, fed as fast as they take it."""
    from collections.abc import Sequence
    from dataclasses import replace

    from birder_ray.chunk import Chunk, Sample
    from birder_ray.collect import Collector
    from birder_ray.commit import Ledger
    from birder_ray.folder import Folder
    from birder_ray.manifest import Recipe
    from birder_ray.parts import Part, Parts
    from birder_ray.scored import Scored, joined, look

    class InHand:
        writers = 4

        def put(self, parts: Parts, chunks: Sequence[Scored]) -> dict[str, Part] | None:
            return parts.write(joined([(chunk.block, chunk.row) for chunk in chunks]))

    tables = _tables()
    folder = Folder(url, options)
    recipe = Recipe(RECIPE, RECIPE, dict.fromkeys(tables[0], RECIPE), {})
    sizes: list[int] = []
    per_unit = unit_rows // CHUNK_ROWS
    samples = [Sample(f"site/shard.tar/{n:06d}", n, None, "") for n in range(CHUNK_ROWS)]

    def call() -> None:
        written = Collector(
            Ledger(folder),
            recipe,
            unit_rows,
            InHand(),
            set(),
            lambda r: sizes.append(sum(p.bytes for p in r.parts.values())),
        )
        for number in range(units * per_unit):
            unit, at = divmod(number, per_unit)
            data = {name: bytes(bytearray(ipc)) for name, ipc in tables[number % DISTINCT_CHUNKS].items()}
            name = f"shard-0123456789ab-{unit:06d}"
            last = at == per_unit - 1
            block = Chunk(name, "s", at, last, False, samples, [], {"infer": 0.1}, tables=data).to_table()
            written.add(replace(look(block)[0], block=block))
        written.drain()
        written.close()

    _, cost = measured(call)
    return cost | {"units": len(sizes), "bytes": sum(sizes)}


def commits(told: argparse.Namespace) -> None:
    """Commits of so many rows each, on disk and on S3."""
    options = _options(told)
    print(
        f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {4 * 2 * WIDTH} bytes of vectors per row\n"
    )
    _header("where", "rows per unit", "commits", "commits/s", "rows/s", "MB/s", "MB per unit", "peak memory MB")
    for where, root in [
        ("disk", tempfile.mkdtemp(prefix="br-commits-", dir=told.folder)),
        *([("S3", told.s3)] if told.s3 else []),
    ]:
        for rows in told.unit_rows:
            units = max(3, told.megabytes * 1_000_000 // (rows * 4 * 2 * WIDTH))
            units = min(units, 1000)
            found = child("commits", f"{root}/{rows}", options if where == "S3" else {}, rows, units)
            took, megabytes = found["s"], found["bytes"] / 1e6
            _line(
                where, rows, units, round(units / took, 2), round(units * rows / took), round(megabytes / took, 1),
                round(megabytes / units, 1), found["MB"],
            )  # fmt: skip
            if where == "disk":
                shutil.rmtree(f"{root}/{rows}")
        if where == "disk":
            os.rmdir(root)


# ---- run ----


def child_run(root: str, units: int, temporary: str) -> dict[str, Any]:
    """A run of `units` units of two images, the memory of this process every second."""
    import ray

    from birder_ray import RunConfig
    from birder_ray import run as score
    from birder_ray.progress import Meter, Observer
    from birder_ray.testing import make_shards, tiny_checkpoint

    per_shard = 200
    make_shards(f"{root}/data", per_shard, max(1, 2 * units // per_shard))
    tiny_checkpoint(f"{root}/hgnet_v2_b0_tiny.pt")
    watched: list[tuple[float, float, int]] = []
    meters: list[Meter] = []
    over = threading.Event()

    class Watch(Observer):
        def begin(self, meter: Meter) -> None:
            meters.append(meter)

    def watch() -> None:
        started = time.perf_counter()
        while not over.wait(1):
            units_done = meters[0].units if meters else 0
            watched.append((round(time.perf_counter() - started, 1), _rss_mb(), units_done))

    ray.init(
        address="local", num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False,
        object_store_memory=512 * 1024**2, logging_level="error", _temp_dir=temporary,
    )  # fmt: skip
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        config = RunConfig(
            source=f"{root}/data", model=f"{root}/hgnet_v2_b0_tiny.pt", destination=f"{root}/out",
            compute={"unit_rows": 2, "gpus_per_actor": 0},
        )  # fmt: skip
        summary = score(config, Watch())
    finally:
        over.set()
        watcher.join()
        ray.shutdown()
    return {"watched": watched, "summary": asdict(summary)}


def _rss_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def run(told: argparse.Namespace) -> None:
    """Run and plot."""
    root, temporary = tempfile.mkdtemp(prefix="br-run-", dir=told.folder), tempfile.mkdtemp(prefix="br", dir="/tmp")
    load = os.getloadavg()[0]
    try:
        found = child("run", root, told.units or 2000, temporary)
    finally:
        for folder in (root, temporary):
            shutil.rmtree(folder, ignore_errors=True)
    busy = [(second, rss, units) for second, rss, units in found["watched"] if units]
    summary = found["summary"]
    print(f"load average {load:.1f} on {os.cpu_count()} cores")
    took = busy[-1][0] - busy[0][0]
    rate = (busy[-1][2] - busy[0][2]) / took
    print(f"{summary['units']} units, {summary['images']} images in {summary['seconds']:.0f} s; {rate:.1f} commits/s")
    _header("units committed", "driver's RSS, MB")
    for share in (0, 0.1, 0.25, 0.5, 0.75, 1):
        _, rss, units = busy[round(share * (len(busy) - 1))]
        _line(units, round(rss))
    if told.plot:
        _plot(found["watched"], told.plot)


def _plot(watched: list[tuple[float, float, int]], path: str) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, memory = pyplot.subplots(figsize=(7, 3))
    seconds, rss, units = zip(*watched, strict=True)
    memory.plot(seconds, rss, color="tab:blue", label="driver's RSS")
    memory.set(xlabel="seconds", ylabel="MB", ylim=(0, 1.2 * max(rss)))
    commits_axis = memory.twinx()
    commits_axis.plot(seconds, units, color="tab:orange", label="units committed")
    commits_axis.set(ylabel="units", ylim=(0, None))
    figure.legend(loc="lower right", bbox_to_anchor=(0.88, 0.2), frameon=False)
    figure.tight_layout()
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    figure.savefig(path, dpi=90)


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {
    "build": build,
    "finish": finish,
    "plan": child_plan,
    "status": child_status,
    "sums": child_sums,
    "records": child_records,
    "commits": child_commits,
    "run": child_run,
}


if __name__ == "__main__":
    main()

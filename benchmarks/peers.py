"""birder-ray against what its users would write instead, for the same three outputs of the same photos, in one run.

    python benchmarks/peers.py [--network hieradet_small] [--engine compiled] [--images 400] [--rounds 3] [--json FILE]
    python benchmarks/peers.py --check --images 60 --rounds 1 --network efficientnet_lite0

Contestants take turns: `birder-ray score`, peers_ray_data.py and peers_daft.py. `two passes`: with birder's public API,
as its users call it; `one pass`: with birder-ray's own network and engine, so that only the pipelines differ. Rates are
of the last two thirds of units or batches; start-up is in `wall`. Figures are medians over the rounds, ratios compare
figures of one run. Memory: peak of the sum over all processes, pages that they share counted once for each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import throughput
from peers_network import PeakMemory

RATE, FIRST, WALL, MEMORY = "images/s", "first output (s)", "wall (s)", "peak memory (GiB)"
OURS = "birder-ray score"
PEERS = {
    f"{title}, {passes}": [script, *options]
    for title, script in {"Ray Data": "peers_ray_data.py", "Daft": "peers_daft.py"}.items()
    for passes, options in {"two passes": [], "one pass": ["--one-pass"]}.items()
}
CLOSE = 1e-3
TIMEOUT_S = 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=throughput.NETWORKS, default="hgnet_v2_b2")
    parser.add_argument("--engine", choices=("eager", "compiled"), default="eager", help="of every contestant")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--check", action="store_true", help="also compare the outputs of the first round")
    parser.add_argument("--json", help="also write the figures to this file")
    told = parser.parse_args()
    photos = sorted(throughput.PHOTOS.glob("*.JPEG"))
    if not photos:
        sys.exit(f"no photos in {throughput.PHOTOS}")
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        os.environ["BIRDER_RAY_CACHE"] = f"{folder}/cache"  # packages of compiled networks
        found = measure(Path(folder), photos, told)
    report(found, told)
    if told.json:
        Path(told.json).write_text(json.dumps({**vars(told), "found": found}, indent=1))


def measure(folder: Path, photos: list[Path], told: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    checkpoint, tars, _ = throughput.prepare(folder, photos, told.network, told.images)
    if told.engine == "compiled":  # once per machine, as in throughput.py
        throughput.forward(checkpoint, told.engine, "all", 1, 1, told.batch_size, 0)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in (OURS, *told.peers)}
    for turn in range(told.rounds):
        found[OURS].append(ours(folder, checkpoint, tars, told))
        for number, name in enumerate(told.peers):
            output = folder / f"peer-{turn}-{number}"
            found[name].append(peer(PEERS[name], checkpoint, tars, output, told))
            if told.check and not turn:
                print(f"{name}: {compare(folder / 'out', output)}", flush=True)
        print({name: figures[-1] for name, figures in found.items()}, flush=True)
    return found


def ours(folder: Path, checkpoint: Path, tars: Path, told: argparse.Namespace) -> dict[str, float]:
    memory = PeakMemory(with_root=False)
    rate, first, wall = throughput.score(folder, checkpoint, tars, told)
    return {RATE: round(rate, 2), FIRST: round(first, 2), WALL: round(wall, 2), MEMORY: round(memory.stop(), 2)}


def peer(script: list[str], checkpoint: Path, tars: Path, output: Path, told: argparse.Namespace) -> dict[str, float]:
    size = throughput.NETWORKS[told.network][1]
    options: dict[str, Any] = {
        "source": tars, "checkpoint": checkpoint, "output": output, "engine": told.engine, "size": size,
        "batch-size": told.batch_size,
    }  # fmt: skip
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    command = [sys.executable, str(Path(__file__).with_name(script[0])), *script[1:], *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    figures = json.loads(done.stdout.splitlines()[-1])
    if figures["images"] != told.images:
        sys.exit(f"{script[0]} wrote {figures['images']} rows for {told.images} photos")
    keys = {RATE: "steady_images_per_s", FIRST: "first_batch_s", WALL: "wall_s", MEMORY: "peak_rss_gib"}
    return {name: figures[key] for name, key in keys.items()}


def compare(ours: Path, theirs: Path) -> str:
    """What the outputs of a peer have in common with birder-ray's; ends the program if that is too little."""
    vectors = pq.read_table(ours / "features").sort_by("sample")
    embeddings = pq.read_table(ours / "embeddings").sort_by("sample")
    predictions = pq.read_table(ours / "predictions").sort_by("sample")
    peers = pq.read_table(theirs).sort_by("key")
    if [sample.rpartition("/")[2] for sample in predictions["sample"].to_pylist()] != peers["key"].to_pylist():
        sys.exit(f"{theirs}: other photos")
    same = np.mean(np.array(predictions["prediction"].to_pylist()) == np.array(peers["prediction"].to_pylist()))
    names = [name for name in vectors.column_names if name not in ("sample", "shard", "index")]
    apart = {name: _apart(vectors, peers, name) for name in names}
    apart |= {"embedding": _apart(embeddings, peers, "embedding")}
    apart |= {"top_probabilities": _apart(predictions, peers, "top_probabilities")}
    worst = max(apart, key=lambda name: apart[name])
    if same < 1 or apart["embedding"] > CLOSE or apart["top_probabilities"] > CLOSE:
        sys.exit(f"{theirs}: same prediction for {same:.1%} of the photos, largest differences {apart}")
    return (
        f"same prediction for each of {len(peers)} photos, embeddings within {apart['embedding']:.1e}, probabilities "
        f"within {apart['top_probabilities']:.1e}, all columns within {apart[worst]:.1e} ({worst})"
    )


def _apart(ours: Any, theirs: Any, name: str) -> float:
    values = [np.array(table[name].to_pylist(), np.float32) for table in (ours, theirs)]
    return float(np.abs(values[0] - values[1]).max())


def report(found: dict[str, list[dict[str, float]]], told: argparse.Namespace) -> None:
    middle = {
        name: {what: statistics.median(turn[what] for turn in turns) for what in turns[0]}
        for name, turns in found.items()
    }
    size = throughput.NETWORKS[told.network][1]
    print(
        f"\n{told.images} photos, {told.network} at {size} px, {told.engine}, batch {told.batch_size}, "
        f"{told.rounds} rounds, medians; in brackets the range of birder-ray's advantage over the rounds\n"
    )
    print(f"| contestant | {RATE} | birder-ray is | {FIRST} | {WALL} | birder-ray is | {MEMORY} |")
    print("|---|---|---|---|---|---|---|")
    for name, figures in middle.items():
        faster = [ours[RATE] / theirs[RATE] for ours, theirs in zip(found[OURS], found[name], strict=True)]
        sooner = [theirs[WALL] / ours[WALL] for ours, theirs in zip(found[OURS], found[name], strict=True)]
        ratios = ["" if name == OURS else _ratio(values) for values in (faster, sooner)]
        print(
            f"| {name} | {figures[RATE]:.1f} | {ratios[0]} | {figures[FIRST]:.1f} | {figures[WALL]:.1f} | {ratios[1]} "
            f"| {figures[MEMORY]:.1f} |"
        )


def _ratio(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} x ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    main()

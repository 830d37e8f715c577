"""birder-ray against what its users would write instead, for the same three outputs of the same photos, in one run.

    python benchmarks/peers.py [--network hieradet_small] [--engine eager] [--images 640] [--rounds 3] [--json FILE]
    python benchmarks/peers.py --check --images 64 --rounds 1 --network efficientnet_lite0

Contestants take turns: birder-ray, peers_ray_data.py and peers_daft.py. `two passes`: with birder's public API, as its
users call it, and compiled as its own `predict` compiles it, method by method; `fused`: both methods as one function,
of which the compiler makes one pass; `one pass`: with birder-ray's own network and engine, so that only the pipelines
differ. Rates are of the last two thirds of units or batches; start-up is in `wall`. Memory is RSS: memory.py has
birder-ray's without counting shared pages twice. All read the same folder of files; of several tars Daft 0.7.26 stands
still (`--source tar`).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import throughput
from measuring import Figures, Found, note, publish
from photos import sources
from throughput import NETWORKS, OURS

PEERS = {
    f"{title}, {passes}": [script, *options]
    for title, script in {"Ray Data": "peers_ray_data.py", "Daft": "peers_daft.py"}.items()
    for passes, options in {"two passes": [], "fused": ["--fused"], "one pass": ["--one-pass"]}.items()
}
CLOSE = 1e-3
TIMEOUT_S, TRIES = 900, 3  # Daft 0.7.26 was seen to stand still for ever, with all of its threads asleep


def main() -> None:
    parser = throughput.arguments(__doc__)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--source", choices=("folder", "tar"), default="folder")
    parser.add_argument("--check", action="store_true", help="also compare the outputs of the first round")
    told = parser.parse_args()
    told.images = told.images or NETWORKS[told.network].images
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        found = measure(Path(folder), told)
    publish(f"Peers: {throughput.title(told)}", found, told.json, OURS)


def measure(folder: Path, told: argparse.Namespace) -> Found:
    checkpoint = throughput.prepare(folder, told)
    found: Found = {}
    with sources([told.source], folder, told.images) as made:
        source = made[told.source]
        for turn in range(told.rounds):
            note(found, OURS, throughput.score(folder, checkpoint, source, told))
            for number, name in enumerate(told.peers):
                output = folder / f"peer-{turn}-{number}"
                note(found, name, peer(PEERS[name], checkpoint, Path(source["uri"]), output, told))
                if told.check and not turn:
                    print(f"{name}: {compare(folder / 'out', output)}", file=sys.stderr, flush=True)
    return found


def peer(script: list[str], checkpoint: Path, source: Path, output: Path, told: argparse.Namespace) -> Figures:
    options: dict[str, Any] = {
        "source": source, "checkpoint": checkpoint, "output": output, "engine": told.engine,
        "size": NETWORKS[told.network].size_px, "batch-size": told.batch_size,
    }  # fmt: skip
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    command = [sys.executable, str(Path(__file__).with_name(script[0])), *script[1:], *arguments]
    for _ in range(TRIES):
        with subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True) as process:
            try:
                out, err = process.communicate(timeout=TIMEOUT_S)
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                print(f"{script[0]} stood still for {TIMEOUT_S} s; once more", file=sys.stderr, flush=True)
    else:
        sys.exit(f"{' '.join(command)}: does not end")
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{err[-3000:]}")
    said = json.loads(out.splitlines()[-1])
    if said["images"] != told.images:
        sys.exit(f"{script[0]} wrote {said['images']} rows for {told.images} photos")
    figures: Figures = said["figures"]
    return figures


def compare(ours: Path, theirs: Path) -> str:
    """What the outputs of a peer have in common with birder-ray's; ends the program if that is too little."""
    vectors = pq.read_table(ours / "features").sort_by("sample")
    embeddings = pq.read_table(ours / "embeddings").sort_by("sample")
    predictions = pq.read_table(ours / "predictions").sort_by("sample")
    peers = pq.read_table(theirs).sort_by("key")
    if [Path(sample).stem for sample in predictions["sample"].to_pylist()] != peers["key"].to_pylist():
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


if __name__ == "__main__":
    main()

"""The same three outputs from a plain Ray Data script: read → decode → actors with the network → write_parquet.

    python benchmarks/peers_ray_data.py --source TARS_OR_FOLDER --checkpoint NETWORK_TAG.pt --output DIR \\
        [--engine compiled] [--fused | --one-pass]

As Ray's guide to batch inference has it, tuned: uint8 between the stages, torchvision's decoder, decoding in the read
tasks, an actor of one thread per core, fractions of CPUs that always fit together. Prints one line of JSON.
"""

import argparse
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from measuring import PeakMemory
from peers_network import Network, decode, parse_arguments, report

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
import ray


class Decode:
    def __init__(self, size: int, column: str, key: str):
        self.size, self.column, self.key = size, column, key

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"key": Path(row[self.key]).stem, "pixels": decode(row[self.column], self.size)}


class Score:
    def __init__(self, told: argparse.Namespace, threads: int | None):
        self.network = Network(told, threads)

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        return self.network(batch["key"].tolist(), batch["pixels"])


def main() -> None:
    memory = PeakMemory(os.getpid())
    told = parse_arguments(__doc__)
    temporary = tempfile.mkdtemp(prefix="peers-", dir="/tmp")  # short: Ray's sockets lie in it
    ray.init(
        address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
        object_store_memory=2 * 1024**3, _temp_dir=temporary,
    )  # fmt: skip
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        run(told)
    finally:
        ray.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)
    report(told.output, memory)


def run(told: argparse.Namespace) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Blocks of whole batches, small enough to keep every actor busy to the end. Not by `repartition`, which takes a CPU
    rows = 2 * told.batch_size
    context.target_max_block_size = int((rows - 0.5) * told.size**2 * 3)
    resources = ray.cluster_resources()
    cpus, gpus = resources["CPU"], int(resources.get("GPU", 0))
    workers = gpus or told.workers
    # Read, score and write together must fit at any time: with the default of one CPU each they wait for ever on two
    side = {"num_cpus": min(1, cpus / 8)}
    each = {"num_cpus": min(1, round(cpus * 5 / 8 / workers, 2)), "num_gpus": 1 if gpus else 0}
    tars = sorted(str(path) for path in told.source.rglob("*.tar"))
    if tars:
        images = ray.data.read_webdataset(tars, decoder=None, override_num_blocks=len(tars), **side)
        column, key = "jpg", "__key__"
    else:
        files = [str(path) for path in sorted(told.source.rglob("*")) if path.is_file()]
        blocks = -(-len(files) // rows)
        images = ray.data.read_binary_files(files, include_paths=True, override_num_blocks=blocks, **side)
        column, key = "bytes", "path"
    (
        images.map(Decode(told.size, column, key).__call__, **side)  # row by row, so that it runs in the read tasks
        .map_batches(
            Score,
            fn_constructor_args=(told, None if gpus else max(1, int(cpus // workers))),
            batch_size=told.batch_size,
            compute=ray.data.ActorPoolStrategy(size=workers),
            **each,
        )
        .write_parquet(str(told.output), ray_remote_args=side)
    )


if __name__ == "__main__":
    main()

"""The same three outputs from a plain Daft script: read → decode UDF → class UDF with the network → write_parquet.

    python benchmarks/peers_daft.py --source TARS_OR_FOLDER --checkpoint NETWORK_TAG.pt --output DIR \\
        [--engine compiled] [--fused | --one-pass]

Daft's native runner, tuned: batch UDFs, uint8 between them, torchvision's decoder (Daft's own resize gives other pixels
than birder's), a process of one torch thread per core. Prints one line of JSON.
"""

import argparse
import os
from pathlib import Path
from typing import Any

# Daft starts the UDFs' processes as modules of its own, which would not find this folder
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))

import daft
import numpy as np
import pyarrow as pa
from daft import DataType
from measuring import PeakMemory
from peers_network import VECTORS, Network, decode, parse_arguments, report

FLOATS = DataType.list(DataType.float32())
ROW = DataType.struct(
    {
        "key": DataType.string(),
        "prediction": DataType.string(),
        "top_indices": DataType.list(DataType.int32()),
        "top_probabilities": FLOATS,
        **dict.fromkeys(VECTORS, FLOATS),
        "scored_at": DataType.float64(),
    }
)


@daft.cls
class Decode:
    def __init__(self, size: int):
        import torch

        torch.set_num_threads(1)
        self.size = size

    @daft.method.batch(return_dtype=DataType.binary(), batch_size=16)
    def __call__(self, images: daft.Series) -> list[bytes]:
        return [decode(_bytes(image), self.size).tobytes() for image in images.to_pylist()]


def _bytes(image: bytes | daft.File) -> bytes:
    """Rows of a tar are references to its members."""
    if isinstance(image, bytes):
        return image
    with image.open() as member:
        data: bytes = member.read()
        return data


def scorer(told: argparse.Namespace, workers: int, gpus: int) -> Any:
    """The network as a class UDF, in processes of its own."""

    @daft.cls(use_process=True, max_concurrency=workers, gpus=1 if gpus else 0)
    class Score:
        def __init__(self, threads: int | None):
            os.environ["LOG_LEVEL"] = "WARNING"  # Daft sets a number, on which birder's import fails
            self.network = Network(told, threads)

        @daft.method.batch(return_dtype=ROW, unnest=True, batch_size=told.batch_size)
        def score(self, keys: daft.Series, pixels: daft.Series) -> pa.Array:
            stacked = np.frombuffer(b"".join(pixels.to_pylist()), np.uint8)
            stacked = stacked.reshape(-1, told.size, told.size, 3)
            table = self.network([Path(key).stem for key in keys.to_pylist()], stacked)
            return table.to_struct_array().combine_chunks()

    return Score(None if gpus else max(1, (os.cpu_count() or 1) // workers))


def main() -> None:
    memory = PeakMemory(os.getpid())
    told = parse_arguments(__doc__)
    run(told)
    report(told.output, memory)


def run(told: argparse.Namespace) -> None:
    import torch

    gpus = torch.cuda.device_count()
    workers = gpus or told.workers
    tars = sorted(str(path) for path in told.source.rglob("*.tar"))
    if tars:
        rows = daft.read_webdataset(tars, batch_size=told.batch_size)
        key, image = rows["__key__"], rows["jpg"]
    else:
        files = [str(path) for path in sorted(told.source.rglob("*")) if path.is_file()]
        rows = daft.from_pydict({"path": files}).into_batches(told.batch_size)  # or it decodes them all at once
        key, image = rows["path"], daft.functions.download(rows["path"])
    network = scorer(told, workers, gpus)
    decoded = rows.select(key.alias("key"), Decode(told.size)(image).alias("pixels"))
    decoded.select(network.score(decoded["key"], decoded["pixels"])).write_parquet(str(told.output))


if __name__ == "__main__":
    main()

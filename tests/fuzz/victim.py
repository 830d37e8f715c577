"""The process that may die: takes mutants through listing, reading and decoding, and tells what became of each."""

import json
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from birder_ray.chunk import Chunk, InputSpec, Sample
from birder_ray.config import SourceConfig
from birder_ray.errors import ConfigError
from birder_ray.plan import Work
from birder_ray.preprocess import Preprocess
from birder_ray.read import read_chunks
from birder_ray.source import list_shards
from birder_ray.testing import make_images
from tests.fuzz.corpus import IMAGE_KINDS
from tests.fuzz.mutate import mutant

SPECS = (
    InputSpec((32, 32)),
    InputSpec((32, 32), decoder="pil"),
    InputSpec((32, 32), center_crop=0.875, simple_crop=True),
    InputSpec((32, 32), channels=1),
)
SUFFIXES = {"tar": "tar", "parquet": "parquet", "manifest": "csv"}
ERROR_TYPES = {
    "EmptyFile", "UndecodableImage", "TruncatedImage", "DecompressionBomb", "DamagedTar", "TruncatedTar", "TooLarge",
    "DamagedParquet", "DamagedManifest", "MissingColumn", "BadUri", "BadRow", "NotFound", "Forbidden", "ReadFailed",
}  # fmt: skip
MEMORY_BYTES = 4 << 30
"""Address space that mutants may take on top of what the libraries take."""


def main() -> None:
    """Arguments: kind, seed, first number, one past the last. A line per event, as JSON, on standard output."""
    kind, seed, first, stop = sys.argv[1], *map(int, sys.argv[2:5])
    steps = [Preprocess(spec, threads=1) for spec in SPECS]
    good = make_images(2)
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    _say(ready=True)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, stop):
            data = mutant(kind, seed, number)
            _say(begin=number)
            before = _peak()
            try:
                step = steps[number % len(steps)]
                outcome = _image(step, data, good) if kind in IMAGE_KINDS else _shard(step, data, kind, folder)
            except Exception as error:
                outcome = {"fault": f"{type(error).__name__}: {error}"[:500]}
            _say(end=number, grown=_peak() - before, **outcome)


def _say(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _image(step: Preprocess, data: bytes, good: list[bytes]) -> dict[str, Any]:
    """The mutant between two good images, which must not feel it."""
    samples = [Sample(f"s{index}", index, None, f"/s{index}") for index in range(3)]
    chunk = step(Chunk("u", "s", 0, True, True, samples, [], data=[good[0], data, good[1]]))
    chunk = Chunk.from_table(chunk.to_table())
    assert [sample.index for sample in chunk.samples if sample.index != 1] == [0, 2], "a neighbour was lost"
    return _balance([chunk], range(3))


def _shard(step: Preprocess, data: bytes, kind: str, folder: str) -> dict[str, Any]:
    path = Path(folder) / f"m.{SUFFIXES[kind]}"
    path.write_bytes(data)
    config = SourceConfig(uri=str(path), format=kind)
    try:
        (shard,) = list_shards(config)
    except ConfigError as error:
        assert str(error), "a refusal without a reason"
        return {"refused": 1}
    units = None if shard.count is None else max(1, -(-shard.count // 4))
    work = Work(shard, "u", 4, 0, units, units)
    chunks = [Chunk.from_table(chunk.to_table()) for chunk in read_chunks(work, config, 2)]
    chunks = [Chunk.from_table(step(chunk).to_table()) for chunk in chunks]
    assert len({chunk.unit for chunk in chunks}) == sum(chunk.last for chunk in chunks), "a unit without an end"
    assert chunks[-1].end, "the shard has no end"
    errors = [error for chunk in chunks for error in chunk.errors]
    damaged = any(error.index == -1 for error in errors)
    held = sum(len(chunk.samples) for chunk in chunks) + sum(error.index >= 0 for error in errors)
    assert damaged or shard.count in (None, held), f"{shard.count} rows listed, {held} read, and no error"
    if damaged:
        return _balance(chunks, None)
    return _balance(chunks, range(held))


def _balance(chunks: list[Chunk], indices: range | None) -> dict[str, Any]:
    """Every sample once: scored, or quarantined for a plain reason."""
    held = [sample.index for chunk in chunks for sample in chunk.samples]
    errors = [error for chunk in chunks for error in chunk.errors]
    for chunk in chunks:
        assert chunk.images is not None and len(chunk.images) == len(chunk.samples), "pixels and samples differ"
    for error in errors:
        assert error.error_type in ERROR_TYPES, f"error type {error.error_type}: {error.message}"
        assert error.message and error.message.isprintable(), f"message {error.message!r}"
        assert len(error.message) <= 2000, "an endless message"
    own = sorted(held + [error.index for error in errors if error.index >= 0])
    assert len(set(own)) == len(own), "a sample stands twice"
    assert indices is None or own == list(indices), f"{own} instead of {indices}"
    return {"scored": len(held), **Counter(error.error_type for error in errors)}


if __name__ == "__main__":
    main()

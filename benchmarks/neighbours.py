"""Seconds, peak memory and recall of `birder-ray similar`, `duplicates` and `leakage`.

    PYTHONPATH=. python benchmarks/neighbours.py [--rows 1000000] [--size 768] [--dtype float16]
    PYTHONPATH=. python benchmarks/neighbours.py --recall DEST
    PYTHONPATH=. python benchmarks/neighbours.py --photos DIR

The first makes up a destination: classes of very different sizes, whose centres and whose spread lie in 128 of the
dimensions, more in some than in others, and noise in all. One row in a hundred is a copy of an earlier one, at a cosine
of about 0.97. Each command is a process of its own; its peak is the RSS of that. The second measures the recall of
`similar` on a real destination, against a search of all. The third says how far the versions of real photos are apart,
by perceptual hash and by the embeddings of the demo's network.
"""

import argparse
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measuring import again

from birder_ray.folder import Folder
from birder_ray.neighbours import duplicates, leakage, similar
from birder_ray.neighbours.index import opened
from birder_ray.neighbours.rows import Rows
from birder_ray.neighbours.vectors import directions
from birder_ray.scores import Scores
from tests.vectors import SHARD, destination

UNIT, CLASSES, INNER, COPIES, POOL = 2048, 5000, 128, 0.01, 4 * 2048
QUERIES, K = 200, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=768)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--recall", metavar="DEST")
    parser.add_argument("--photos", metavar="DIR")
    told = parser.parse_args()
    if told.recall:
        print(f"recall@{K} {recall(told.recall):.4f}")
    elif told.photos:
        versions(told.photos)
    else:
        made_up(told.rows, told.size, told.dtype)


def made_up(rows: int, size: int, dtype: str) -> None:
    """Each command on a destination of so many embeddings of so many values."""
    with tempfile.TemporaryDirectory(prefix="br-neighbours-") as folder:
        train, test, few = f"{folder}/train", f"{folder}/test", rows // 20
        destination(Folder(train), units(rows, size, 1), dtype)
        destination(Folder(test), units(few, size, 2), dtype)
        print("| command | s | peak, MiB |\n|---|---|---|")
        for name, *call in (
            ("`similar`, index made", "similar", train, f"{SHARD}/{rows // 2}"),
            ("`similar`, index kept", "similar", train, f"{SHARD}/{rows // 2}"),
            ("`duplicates`", "duplicates", train),
            (f"`leakage` of {few:,}", "leakage", train, test),
        ):
            seconds, peak = again(*call)
            print(f"| {name} | {seconds:.1f} | {peak:,.0f} |", flush=True)
        index = sum(os.path.getsize(path) for path in Path(train, "neighbours").iterdir())
        print(f"\nindex {index / rows:.0f} bytes a row; recall@{K} {recall(train):.4f}; ", end="")
        print("copies found {:.4f} of {:,}, {:,} others".format(*planted(train, rows)))


def units(rows: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Vectors of each unit. Copies are of rows of the first four units, and of none but those of this seed."""
    shape, dice = np.random.default_rng(0), np.random.default_rng(seed)
    scale = (1 / np.sqrt(1 + np.arange(INNER))).astype(np.float32)
    axes = shape.standard_normal((INNER, size), np.float32)
    centres = shape.standard_normal((CLASSES, INNER), np.float32)
    shares = shape.pareto(1.2, CLASSES) + 0.1
    shares /= shares.sum()
    pool = np.empty((0, size), np.float32)
    for start in range(0, rows, UNIT):
        n = min(UNIT, rows - start)
        inner = centres[dice.choice(CLASSES, n, p=shares)] + 0.6 * dice.standard_normal((n, INNER), np.float32)
        made = (inner * scale) @ axes + 0.5 * dice.standard_normal((n, size), np.float32)
        if len(pool) < POOL:
            pool = np.concatenate([pool, made])
        else:
            at = copied(start, n)
            noise = dice.standard_normal((len(at), size), np.float32)
            originals = pool[dice.integers(0, len(pool), len(at))]
            made[at] = originals + 0.25 * noise * np.linalg.norm(originals, axis=1, keepdims=True) / np.sqrt(size)
        yield made


def copied(start: int, n: int) -> np.ndarray:
    """Which of the `n` rows of the unit that begins at `start` are copies."""
    return np.flatnonzero(np.random.default_rng(start).random(n) < COPIES)


def planted(url: str, rows: int) -> tuple[float, int, int]:
    """Share of the copies that `duplicates` found, how many there are, and how many others it found."""
    wanted = {s + int(at) for s in range(POOL, rows, UNIT) for at in copied(s, min(UNIT, rows - s))}
    table = pq.read_table(f"{url}/duplicates/embedding.parquet")
    found = {row["index"] for row in table.to_pylist() if row["sample"] != row["keeper"]}
    return len(wanted & found) / len(wanted), len(wanted), len(found - wanted)


def recall(url: str) -> float:
    """Of the ten nearest to each of 200 rows, the share that the index gives to be ranked."""
    rows = Rows(Scores(url), "embeddings")
    index = opened(rows)
    chosen = np.random.default_rng(0).choice(len(rows), min(QUERIES, len(rows)), replace=False)
    queries = directions(rows.take(chosen, ["embedding"])["embedding"])
    best, nearest = np.full((len(chosen), K + 1), -2.0, np.float32), np.full((len(chosen), K + 1), -1)
    for start, part in rows.stream(["embedding"]):
        cosines = np.concatenate([best, queries @ directions(part["embedding"]).T], axis=1)
        places = np.concatenate([nearest, np.tile(np.arange(start, start + part.num_rows), (len(chosen), 1))], axis=1)
        top = np.argpartition(-cosines, K, axis=1)[:, : K + 1]
        best, nearest = np.take_along_axis(cosines, top, 1), np.take_along_axis(places, top, 1)
    hits = total = 0
    for own, vector, near in zip(chosen, queries, nearest, strict=True):
        wanted = set(near.tolist()) - {int(own)}
        hits += len(wanted & set(index.search(vector, 4 * K + 64).tolist()))
        total += len(wanted)
    return hits / total


def versions(folder: str) -> None:
    """How far each photo is from versions of itself, and from the others."""
    from PIL import Image, ImageEnhance, ImageOps

    from birder_ray.backbone import resolve
    from birder_ray.chunk import Chunk, Sample
    from birder_ray.config import ComputeConfig, RunConfig
    from birder_ray.demo import prepare
    from birder_ray.infer import Infer
    from birder_ray.neighbours.hashing import hashed
    from birder_ray.preprocess import Preprocess

    with tempfile.TemporaryDirectory(prefix="br-neighbours-") as demo:
        config = RunConfig(**prepare(demo))
        weights = resolve(config.model)
        preprocess = Preprocess(weights.input_spec(config.model))
        infer = Infer(config.model, config.outputs, ComputeConfig(engine="eager"))
    photos = [Image.open(path).convert("RGB") for path in sorted(Path(folder).iterdir()) if path.is_file()]

    def encoded(quality: int, change: Callable = lambda image: image) -> list[bytes]:
        made = []
        for photo in photos:
            buffer = io.BytesIO()
            change(photo).save(buffer, "JPEG", quality=quality)
            made.append(buffer.getvalue())
        return made

    def looks(images: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        samples = [Sample(str(at), at, None, "") for at in range(len(images))]
        chunk = infer(preprocess(Chunk("", "", 0, last=True, end=True, samples=samples, errors=[], data=images)))
        table = pa.ipc.open_stream(chunk.tables["embeddings"]).read_all()
        return np.array([hashed(data)[1] for data in images], np.uint64), directions(table["embedding"])

    def cropped(share: float) -> Callable:
        return lambda i: i.crop((i.width * share, i.height * share, i.width * (1 - share), i.height * (1 - share)))

    hashes, vectors = looks(encoded(95))
    print("| version | bits: median, most | cosine: median, least | up to 4 bits | from 0.95 |\n|---|---|---|---|---|")
    for name, images in {
        "JPEG, quality 90": encoded(90),
        "JPEG, quality 75": encoded(75),
        "JPEG, quality 50": encoded(50),
        "half the width and height": encoded(85, lambda image: image.resize((image.width // 2, image.height // 2))),
        "1 % cut off at each side": encoded(90, cropped(0.01)),
        "2.5 % cut off at each side": encoded(90, cropped(0.025)),
        "a fifth brighter": encoded(90, lambda image: ImageEnhance.Brightness(image).enhance(1.2)),
        "mirrored": encoded(90, ImageOps.mirror),
    }.items():
        other, moved = looks(images)
        bits, cosines = np.bitwise_count(hashes ^ other), (vectors * moved).sum(axis=1)
        told = f"{np.median(bits):.0f}, {bits.max()} | {np.median(cosines):.3f}, {cosines.min():.3f}"
        print(f"| {name} | {told} | {(bits <= 4).mean():.1%} | {(cosines >= 0.95).mean():.1%} |")
    pairs = np.triu_indices(len(photos), 1)
    bits, cosines = np.bitwise_count(hashes[:, None] ^ hashes)[pairs], (vectors @ vectors.T)[pairs]
    print(f"\n{len(bits):,} pairs of different photos: {bits.min()} bits at least, cosine {cosines.max():.3f} at most")


if __name__ == "__main__":
    commands: dict[str, Callable] = {"similar": similar, "duplicates": duplicates, "leakage": leakage}
    if len(sys.argv) > 1 and sys.argv[1] in commands:
        commands[sys.argv[1]](*sys.argv[2:])
    else:
        main()

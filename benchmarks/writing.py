"""What the encodings and the compression of the parts save and cost, on the outputs of real runs.

    python benchmarks/writing.py                            everything, as Markdown tables
    python benchmarks/writing.py tables --json writing.json
    python benchmarks/writing.py tables columns layout readers bytes

It scores --photos with the real weights of EfficientNet-Lite0 and with HGNet v2 B2 of seeded random weights (368
classes, 256 px), in chunks of 32 as on CPUs, without Ray. The photos are too few for a unit of 2,048 rows: they come as
they are, then as seeded crops of 60 to 100 % of each side, every other time mirrored, so that no row repeats another.
The scored tables are kept in --cache (120 MB), so that only the first call scores (a few minutes).

Times are CPU time of one thread, medians of --rounds rounds in which all candidates take turns: compare within a table.
"""

import argparse
import io
import json
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from birder_ray.parts import encode
from birder_ray.schema import EMBEDDINGS, FEATURES, OUTPUT_TABLES, PREDICTIONS

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "photos"
CHUNK_ROWS = 32
NETWORKS = ("efficientnet_lite0", "hgnet_v2_b2")
STRINGS = ("shard", "label", "prediction", "top_classes.list.element")
Found = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"of {', '.join(SECTIONS)}; all, if none is named")
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="folder of n<wordnet id>_<class>.JPEG files")
    parser.add_argument("--rows", type=int, default=2048, help="of the unit")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir(), "birder-ray-writing"))
    parser.add_argument("--json", type=Path, help="also write the figures there")
    told = parser.parse_args()
    pa.set_cpu_count(1)
    warnings.filterwarnings("ignore", module="duckdb")
    every = {network: scored(network, told) for network in NETWORKS}
    found = {}
    for name in told.what or SECTIONS:
        print(f"\n## {name}\n\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n", flush=True)
        found[name] = SECTIONS[name](every, told)
    if told.json:
        told.json.write_text(json.dumps(found, indent=1))


# ---- the tables ----


def scored(network: str, told: argparse.Namespace) -> dict[str, pa.Table]:
    """The tables of one unit, as the driver gets them: in chunks. Logits, and embeddings as float16, are extra."""
    names = [told.cache / f"{network}-{told.rows}-{table}.arrow" for table in OUTPUT_TABLES]
    if not all(name.exists() for name in names):
        for name, table in zip(names, _score(network, told), strict=True):
            with pa.OSFile(str(name), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
    tables = [pa.ipc.open_file(pa.BufferReader(name.read_bytes())).read_all() for name in names]
    predictions, embeddings, features = tables
    return {
        PREDICTIONS: predictions.drop_columns(["logits"]),
        "predictions + logits": predictions,
        EMBEDDINGS: embeddings,
        "embeddings, float16": _halved(embeddings),
        FEATURES: features,
    }


def _score(network: str, told: argparse.Namespace) -> list[pa.Table]:
    from birder_ray.backbone import resolve
    from birder_ray.chunk import Chunk, Sample
    from birder_ray.config import ModelConfig, OutputsConfig
    from birder_ray.demo import efficientnet_lite_checkpoint
    from birder_ray.infer import Infer
    from birder_ray.preprocess import Preprocess
    from birder_ray.testing import tiny_checkpoint

    told.cache.mkdir(parents=True, exist_ok=True)
    weights = str(told.cache / f"{network}.pt")
    if network == "efficientnet_lite0":
        efficientnet_lite_checkpoint(weights)
        model = ModelConfig(name=weights, network=network, center_crop=0.875, simple_crop=True)
    else:
        tiny_checkpoint(weights, network=network, num_classes=368, size=256)
        model = ModelConfig(name=weights, network=network)
    outputs = OutputsConfig(predictions={"logits": True}, embeddings={}, features={})
    preprocess, infer = Preprocess(resolve(model).input_spec(model)), Infer(model, outputs, device="cpu")
    shard, done = "train/shard-000000.tar", []
    rows = list(enumerate(_views(told.photos, told.rows)))
    for at in range(0, len(rows), CHUNK_ROWS):
        some = rows[at : at + CHUNK_ROWS]
        samples = [Sample(f"{shard}/{key}_{row:06d}", row, label, "") for row, (key, label, _) in some]
        data = [data for _, (_, _, data) in some]
        chunk = infer(preprocess(Chunk("u", shard, at // CHUNK_ROWS, False, False, samples, [], data=data)))
        assert chunk.tables and not chunk.errors, chunk.errors
        done.append(chunk.tables)
    return [pa.concat_tables(pa.ipc.open_stream(chunk[name]).read_all() for chunk in done) for name in OUTPUT_TABLES]


def _views(folder: Path, count: int) -> Iterator[tuple[str, str, bytes]]:
    """WordNet id, class and JPEG of the photos, then of crops of them."""
    from PIL import Image, ImageOps

    photos = sorted(folder.glob("*.JPEG"))
    for row in range(count):
        photo, view = photos[row % len(photos)], row // len(photos)
        data = photo.read_bytes()
        if view:
            draw, buffer = random.Random(f"{photo.name} {view}"), io.BytesIO()
            with Image.open(io.BytesIO(data)) as opened:
                image = opened.convert("RGB")
            scale = draw.uniform(0.6, 1.0)
            width, height = int(image.width * scale), int(image.height * scale)
            left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
            image = image.crop((left, top, left + width, top + height))
            (ImageOps.mirror(image) if view % 2 else image).save(buffer, "JPEG", quality=90)
            data = buffer.getvalue()
        key, _, label = photo.stem.partition("_")
        yield key, label, data


def _halved(table: pa.Table) -> pa.Table:
    """Embeddings as float16, rounded as torch does: to the nearest, ties to even."""
    kind = pa.list_(pa.float16(), table.schema.field("embedding").type.list_size)
    schema = table.schema.set(3, pa.field("embedding", kind))
    batches = []
    for batch in table.to_batches():
        values = pa.array(batch.column(3).flatten().to_numpy().astype(np.float16))
        batches.append([*batch.columns[:3], pa.FixedSizeListArray.from_arrays(values, type=kind)])
    return pa.Table.from_batches([pa.record_batch(columns, schema=schema) for columns in batches])


# ---- candidates ----


@dataclass(frozen=True)
class Candidate:
    """A way to write a table.

    Args:
        split: types whose values are split into streams of bytes. statistics: `scalars`, or of all columns or none.
        dictionary: columns with a dictionary; None: all. encodings: of single columns.
    """

    compression: str = "zstd"
    level: int | None = 1
    split: tuple[str, ...] = ("float",)
    statistics: str | bool = "scalars"
    dictionary: tuple[str, ...] | None = STRINGS
    encodings: tuple[tuple[str, str], ...] = ()
    page: int | None = None
    group: int | None = None

    def __call__(self, table: pa.Table) -> pa.Buffer:
        leaves = {leaf(field): field for field in table.schema}
        split = {path: "BYTE_STREAM_SPLIT" for path, field in leaves.items() if str(value_type(field)) in self.split}
        sink = pa.BufferOutputStream()
        pq.write_table(
            table,
            sink,
            compression=self.compression,
            compression_level=self.level if self.compression == "zstd" else None,
            use_dictionary=True if self.dictionary is None else [path for path in self.dictionary if path in leaves],
            column_encoding=None if self.dictionary is None else split | dict(self.encodings),
            write_statistics=(
                [path for path in leaves if "." not in path] if self.statistics == "scalars" else self.statistics
            ),
            data_page_size=self.page,
            row_group_size=self.group,
        )
        return sink.getvalue()


def leaf(field: pa.Field) -> str:
    return f"{field.name}.list.element" if pa.types.is_nested(field.type) else field.name


def value_type(field: pa.Field) -> pa.DataType:
    return field.type.value_type if pa.types.is_nested(field.type) else field.type


Write = Callable[[pa.Table], Any]
BEFORE = Candidate(split=(), statistics=True)
CANDIDATES: dict[str, Write] = {
    "`encode`": lambda table: encode(table, {}),
    "before: zstd 1, not split": BEFORE,
    "pyarrow's defaults: snappy, dictionaries": Candidate("snappy", split=(), statistics=True, dictionary=None),
    "not split, lz4": Candidate("lz4", split=()),
    "not split, zstd 3": Candidate(level=3, split=()),
    "split, no compression": Candidate("none"),
    "split, snappy": Candidate("snappy"),
    "split, lz4": Candidate("lz4"),
    "split, zstd -1": Candidate(level=-1),
    "split, zstd 1": Candidate(),
    "split, zstd 3": Candidate(level=3),
    "split, zstd 6": Candidate(level=6),
    "split, zstd 9": Candidate(level=9),
}


# ---- measuring ----


def cpu(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    value = call()
    return time.process_time() - started, value


def rates(table: pa.Table, candidates: dict[str, Write], told: argparse.Namespace, readers: bool) -> Found:
    """Bytes and microseconds per image of each candidate; they take turns."""
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET threads = 1")
    seconds: dict[tuple[str, str], list[float]] = {}
    sizes = {}
    with tempfile.TemporaryDirectory(prefix="br-writing-") as folder:
        path = Path(folder, "part.parquet")
        for _ in range(told.rounds):
            for name, write in candidates.items():
                took, data = cpu(lambda write=write: write(table))
                seconds.setdefault((name, "encode"), []).append(took)
                sizes[name] = len(data)
                if readers:
                    path.write_bytes(data)
                    reading = {
                        "pyarrow reads": lambda: pq.read_table(path, use_threads=False),
                        "DuckDB reads": lambda: connection.sql(f"FROM '{path}'").to_arrow_table(),
                    }
                    for reader, call in reading.items():
                        seconds.setdefault((name, reader), []).append(cpu(call)[0])
    steps = [step for name, step in seconds if name == next(iter(candidates))]
    per_image = {key: round(statistics.median(taken) / table.num_rows * 1e6, 2) for key, taken in seconds.items()}
    return [
        {"candidate": name, "bytes": round(sizes[name] / table.num_rows, 1)}
        | {f"{step}, µs": per_image[name, step] for step in steps}
        for name in candidates
    ]


def show(found: Found) -> None:
    if found:
        _line(*found[0])
        _line(*("---" for _ in found[0]))
    for row in found:
        _line(*row.values())
    print(flush=True)


def _line(*cells: Any) -> None:
    print("| " + " | ".join(f"{cell:,}" if isinstance(cell, int | float) else str(cell) for cell in cells) + " |")


# ---- sections ----

Tables = dict[str, dict[str, pa.Table]]


def tables(every: Tables, told: argparse.Namespace) -> dict[str, Found]:
    """Each table by each candidate, per image."""
    found = {}
    for network, made in every.items():
        for name, table in made.items():
            title = f"{network}, {name} ({table.nbytes / table.num_rows:,.0f} bytes of Arrow)"
            print(f"### {title}\n")
            found[title] = rates(table, CANDIDATES, told, readers=True)
            show(found[title])
    return found


def columns(every: Tables, told: argparse.Namespace) -> dict[str, Found]:
    """Single columns by encoding: those of predictions, and made-up sample names of five kinds."""
    alone = {
        f"{network}, {column}": made[PREDICTIONS].select([column])
        for network, made in every.items()
        for column in made[PREDICTIONS].column_names
        if column != "sample"
    }
    alone |= {f"sample, {kind}": pa.table({"sample": names}) for kind, names in _sample_names(told.rows).items()}
    found: Found = []
    for title, table in alone.items():
        row: dict[str, Any] = {"column": title}
        path, kind = leaf(table.schema.field(0)), value_type(table.schema.field(0))
        for encoding in ("PLAIN", "dictionary", "DELTA_BINARY_PACKED", "DELTA_BYTE_ARRAY", "BYTE_STREAM_SPLIT"):
            fits = {"PLAIN": True, "dictionary": True, "DELTA_BYTE_ARRAY": pa.types.is_string(kind)}
            fits |= {
                "DELTA_BINARY_PACKED": pa.types.is_integer(kind),
                "BYTE_STREAM_SPLIT": not pa.types.is_string(kind),
            }
            chosen: dict[str, Any] = {"dictionary": (), "encodings": ((path, encoding),), "split": ()}
            write = Candidate(**(chosen if encoding != "dictionary" else {"dictionary": (path,), "split": ()}))
            row[encoding] = round(len(write(table)) / table.num_rows, 2) if fits[encoding] else ""
        found.append(row)
    print("Bytes per image of a file of that column alone, zstd 1, footer included (0.2 to 0.4).\n")
    show(found)
    return {"bytes per image": found}


def _sample_names(rows: int) -> dict[str, list[str]]:
    draw = random.Random(0)
    unique = [f"{draw.getrandbits(128):032x}" for _ in range(rows)]
    return {
        "numbers in a tar": [f"train/shard-000017.tar/{row:06d}" for row in range(rows)],
        "hashes in a tar": [f"train/shard-000017.tar/{name}" for name in unique],
        "images by class": [
            f"val/n{row // 50:08d}_class/n{row // 50:08d}_{draw.randint(0, 30_000):05d}.JPEG" for row in range(rows)
        ],
        "camera trap": [
            f"site-{row // 400:02d}/2026-07-{1 + row // 60 % 28:02d}/IMG_{row:04d}.JPG" for row in range(rows)
        ],
        "ids of a manifest": unique,
    }


def layout(every: Tables, told: argparse.Namespace) -> dict[str, Found]:
    """Pages, row groups and statistics of the two tables of vectors."""
    candidates: dict[str, Write] = {
        "as chosen: pages of 1 MiB, one row group": Candidate(),
        "statistics of all columns": Candidate(statistics=True),
        "no statistics": Candidate(statistics=False),
        **{f"pages of {size} KiB": Candidate(page=size * 1024) for size in (64, 256, 4096, 16_384)},
        **{f"row groups of {rows}": Candidate(group=rows) for rows in (256, 512, 1024)},
        "index DELTA_BINARY_PACKED": Candidate(encodings=(("index", "DELTA_BINARY_PACKED"),)),
        "chunks combined first": lambda table: Candidate()(table.combine_chunks()),
    }
    found = {}
    for network, made in every.items():
        for name in (EMBEDDINGS, FEATURES):
            print(f"### {network}, {name}\n")
            found[f"{network}, {name}"] = rates(made[name], candidates, told, readers=True)
            show(found[f"{network}, {name}"])
    return found


def readers(every: Tables, told: argparse.Namespace) -> dict[str, Found]:
    """Who reads the very values back."""
    import daft
    import duckdb
    import pandas as pd
    import polars as pl

    reading: dict[str, Callable[[str, pa.Schema], pa.Table]] = {
        f"pyarrow {pa.__version__}": lambda path, schema: pq.read_table(path),
        f"DuckDB {duckdb.__version__}": lambda path, schema: duckdb.sql(f"FROM '{path}'").to_arrow_table(),
        f"polars {pl.__version__}": lambda path, schema: pl.read_parquet(path).to_arrow(),
        f"pandas {pd.__version__}": lambda path, schema: pa.Table.from_pandas(pd.read_parquet(path), schema),
        f"Daft {daft.__version__}": lambda path, schema: daft.read_parquet(path).to_arrow(),
    }
    writing: dict[str, Write] = {
        "`encode`": lambda table: encode(table, {}),
        "float16 split too": Candidate(split=("float", "halffloat")),
        "index and sample DELTA": Candidate(
            encodings=(("index", "DELTA_BINARY_PACKED"), ("sample", "DELTA_BYTE_ARRAY"))
        ),
    }
    found: Found = []
    with tempfile.TemporaryDirectory(prefix="br-writing-") as folder:
        path = str(Path(folder, "part.parquet"))
        for how, write in writing.items():
            for name in every[NETWORKS[0]]:
                row: dict[str, Any] = {"written": how, "table": name}
                for reader, read in reading.items():
                    outcomes = set()
                    for made in every.values():
                        Path(path).write_bytes(write(made[name]))
                        try:
                            outcomes.add("same" if same(made[name], read(path, made[name].schema)) else "OTHER VALUES")
                        except Exception as error:  # each reader has exceptions of its own
                            outcomes.add(" ".join(str(error).split())[:100])
                    row[reader] = "; ".join(sorted(outcomes))
                found.append(row)
    show(found)
    return {"readers": found}


def same(table: pa.Table, read: pa.Table) -> bool:
    """Whether all values are equal, floats bit for bit; float16 may have become float32."""
    return table.column_names == read.column_names and all(
        _values(table[name]) == _values(read[name]) for name in table.column_names
    )


def _values(column: pa.ChunkedArray) -> Any:
    array = column.combine_chunks()
    nested = pa.types.is_nested(array.type)
    if not pa.types.is_floating(array.type.value_type if nested else array.type):
        return array.to_pylist()
    lengths = pc.list_value_length(array).to_pylist() if nested else len(array)
    return lengths, (array.flatten() if nested else array).to_numpy(False).astype(np.float32).tobytes()


def in_memory(every: Tables, told: argparse.Namespace) -> dict[str, Found]:
    """What becomes of the encoded bytes before they are written: a copy, a hash."""
    import hashlib

    found: Found = []
    for network, made in every.items():
        for name in OUTPUT_TABLES:
            buffer = Candidate()(made[name])
            data = buffer.to_pybytes()
            calls: dict[str, Callable[[], Any]] = {
                "encode": lambda table=made[name]: Candidate()(table),
                "to_pybytes": buffer.to_pybytes,
                "sha256 of bytes": lambda data=data: hashlib.sha256(data).digest(),
                "sha256 of the Buffer": lambda data=buffer: hashlib.sha256(data).digest(),
            }
            taken: dict[str, list[float]] = {}
            for _ in range(told.rounds):
                for step, call in calls.items():
                    taken.setdefault(step, []).append(cpu(call)[0])
            row = {"table": f"{network}, {name}", "MB": round(len(buffer) / 1e6, 2)}
            found.append(row | {step: round(statistics.median(s) / told.rows * 1e6, 2) for step, s in taken.items()})
    print("Microseconds per image.\n")
    show(found)
    return {"microseconds per image": found}


SECTIONS: dict[str, Callable[[Tables, argparse.Namespace], dict[str, Found]]] = {
    "tables": tables,
    "columns": columns,
    "layout": layout,
    "readers": readers,
    "bytes": in_memory,
}


if __name__ == "__main__":
    main()

"""How parts are written: every value comes back bit for bit, in every reader, with the encodings that were chosen."""

from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from birder_ray.classes import classes_table
from birder_ray.parts import encode
from birder_ray.schema import ERRORS_SCHEMA, embeddings_schema, features_schema, part_metadata, predictions_schema

ROWS, SIZE = 300, 24
RANDOM = np.random.default_rng(0)
SPECIAL = np.array([0.0, -0.0, 1e-45, -1e-40, 1.1754944e-38, 3.4028235e38, -3.4028235e38, 1.0], np.float32)
SPECIAL_HALVES = np.array([0.0, -0.0, 6e-8, -6e-8, 6.1e-5, 65504, -65504, 1.0], np.float16)


def _floats(*shape: int) -> np.ndarray:
    """Values of every magnitude, with zeros of both signs, subnormals and the greatest."""
    values = RANDOM.standard_normal(shape).astype(np.float32) * np.float32(10) ** RANDOM.integers(-30, 30, shape)
    values = values.astype(np.float32)
    values.reshape(-1)[: len(SPECIAL)] = SPECIAL[: values.size]
    return values


def _vectors(values: np.ndarray) -> pa.Array:
    kind = pa.list_(pa.from_numpy_dtype(values.dtype), values.shape[1])
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)


def _keys() -> list[pa.Array]:
    samples = pa.array([f"train/shard.tar/ä{n:04d}" for n in range(ROWS)])
    return [samples, pa.repeat(pa.scalar("train/shard.tar"), ROWS), pa.array(range(1000, 1000 + ROWS), pa.int64())]


def _predictions() -> pa.Table:
    """With images that have no label, and some that have no top classes at all."""
    schema = predictions_schema(SIZE, logits=True)
    counts = [n % 4 for n in range(ROWS)]
    lists = {
        "top_indices": [[(n + k) % SIZE for k in range(count)] for n, count in enumerate(counts)],
        "top_classes": [[f"species {(n + k) % SIZE}" for k in range(count)] for n, count in enumerate(counts)],
        "top_probabilities": [_floats(count).tolist() for count in counts],
    }
    columns = dict(zip(schema.names, _keys(), strict=False)) | {
        "label": pa.array([None if n % 3 else f"label {n % 5}" for n in range(ROWS)], pa.string()),
        "prediction": pa.array([f"species {n % SIZE}" for n in range(ROWS)]),
        "probability": pa.array(_floats(ROWS)),
        "entropy": pa.array(_floats(ROWS)),
        "logits": _vectors(_floats(ROWS, SIZE)),
    }
    columns |= {name: pa.array(values, schema.field(name).type) for name, values in lists.items()}
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _halves() -> pa.Table:
    values = RANDOM.standard_normal((ROWS, SIZE)).astype(np.float16)
    values.reshape(-1)[: len(SPECIAL_HALVES)] = SPECIAL_HALVES
    return pa.table([*_keys(), _vectors(values)], schema=embeddings_schema(SIZE, "float16"))


def _features() -> pa.Table:
    schema = features_schema({"stage1": SIZE, "stage2": 2 * SIZE}, ("mean", "std"))
    vectors = [_vectors(_floats(ROWS, field.type.list_size)) for field in schema if field.name.startswith("stage")]
    return pa.table([*_keys(), *vectors], schema=schema)


def _errors() -> pa.Table:
    texts = [pa.array([f"{text} {n % 3}" for n in range(ROWS)]) for text in ("decode", "Error", "", "file:///ü")]
    return pa.table([*_keys(), *texts], schema=ERRORS_SCHEMA)


TABLES = {
    "predictions": _predictions(),
    "embeddings": pa.table([*_keys(), _vectors(_floats(ROWS, SIZE))], schema=embeddings_schema(SIZE, "float32")),
    "float16": _halves(),
    "features": _features(),
    "errors": _errors(),
    "classes": classes_table([f"species {n}" for n in range(SIZE)]),
}


@pytest.fixture(params=TABLES)
def table(request) -> pa.Table:
    """In several chunks, as the driver gets it."""
    made = TABLES[request.param]
    return pa.concat_tables(made.slice(at, 32) for at in range(0, made.num_rows, 32))


@pytest.fixture
def path(table: pa.Table, tmp_path: Path) -> str:
    (tmp_path / "part.parquet").write_bytes(encode(table, part_metadata("r" * 16, "unit")))
    return str(tmp_path / "part.parquet")


def _values(column: pa.ChunkedArray) -> list:
    """Values that are equal only if they are so bit for bit; DuckDB gives float16 as float32."""
    kind = column.type.value_type if pa.types.is_nested(column.type) else column.type
    if not pa.types.is_floating(kind):
        return column.to_pylist()
    return [None if row is None else np.asarray(row, np.float32).tobytes() for row in column.to_pylist()]


def _assert_same(table: pa.Table, read: pa.Table) -> None:
    assert read.column_names == table.column_names
    assert read.num_rows == table.num_rows
    for name in table.column_names:
        assert _values(read[name]) == _values(table[name]), name


def test_pyarrow_reads_the_values_the_schema_and_the_metadata(table, path):
    read = pq.read_table(path)
    _assert_same(table, read)
    assert read.schema.equals(table.schema)
    told = {key.encode(): value.encode() for key, value in part_metadata("r" * 16, "unit").items()}
    assert read.schema.metadata == (table.schema.metadata or {}) | told
    assert told.items() <= pq.read_metadata(path).metadata.items()


def test_duckdb_reads_the_values(table, path):
    _assert_same(table, duckdb.sql(f"FROM '{path}'").to_arrow_table())


def test_polars_reads_the_values(table, path):
    _assert_same(table, pl.read_parquet(path).to_arrow())


def _chunks(name: str) -> dict[str, pq.ColumnChunkMetaData]:
    """By path in the file. One row group."""
    file = pq.ParquetFile(pa.BufferReader(encode(TABLES[name], {})))
    assert file.metadata.num_row_groups == 1
    group = file.metadata.row_group(0)
    return {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}


def _paths(*encodings: str) -> set[str]:
    """Columns, by table and path, that have any of these encodings."""
    return {
        f"{name}/{path}"
        for name in TABLES
        for path, chunk in _chunks(name).items()
        if set(encodings) & set(chunk.encodings)
    }


def test_all_float32_and_nothing_else_is_split_into_streams_of_bytes():
    assert _paths("BYTE_STREAM_SPLIT") == {
        "predictions/probability",
        "predictions/entropy",
        "predictions/top_probabilities.list.element",
        "predictions/logits.list.element",
        "embeddings/embedding.list.element",
        *(f"features/stage{n}_{pooling}.list.element" for n in (1, 2) for pooling in ("mean", "std")),
    }


def test_what_repeats_has_a_dictionary_and_nothing_else():
    shards = {f"{name}/shard" for name in TABLES if name != "classes"}
    assert _paths("RLE_DICTIONARY", "PLAIN_DICTIONARY") == shards | {
        "predictions/label",
        "predictions/prediction",
        "predictions/top_classes.list.element",
        "errors/step",
        "errors/error_type",
    }


@pytest.mark.parametrize("name", TABLES)
def test_all_is_compressed_and_only_vectors_and_lists_have_no_statistics(name):
    for path, chunk in _chunks(name).items():
        assert chunk.compression == "ZSTD", path
        assert chunk.is_stats_set == (".list." not in path), path


def test_statistics_of_the_index_let_readers_skip_parts():
    statistics = _chunks("embeddings")["index"].statistics
    assert (statistics.min, statistics.max) == (1000, 999 + ROWS)


def test_vectors_come_out_smaller_than_without_the_encodings():
    """What they are for: positive activations, whose exponents lie close together."""
    values = np.abs(RANDOM.standard_normal((ROWS, 512))).astype(np.float32)
    made = pa.table([*_keys(), _vectors(values)], schema=embeddings_schema(512, "float32"))
    plain = pa.BufferOutputStream()
    pq.write_table(made, plain, compression="zstd", compression_level=1, use_dictionary=False)
    assert len(encode(made, {})) < 0.95 * len(plain.getvalue())

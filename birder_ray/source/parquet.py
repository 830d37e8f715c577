"""Parquet files with encoded images in a binary column, or in Hugging Face's `struct<bytes, path>`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from birder_ray.chunk import Sample
from birder_ray.config import SourceConfig
from birder_ray.errors import ConfigError, SampleError, ShardDamaged
from birder_ray.source.base import SEQUENTIAL, Item, Shard, Wanted
from birder_ray.storage import open_binary, redact

_USUAL_NAMES = ("image", "img", "bytes", "jpg", "content")
_BATCH_ROWS = 16
_ROWS_PER_BYTE = 64
"""A footer that promises more rows is damaged: plans are made from it, and take memory for every 2,048 rows."""


class _Watched:
    """A file that remembers why it could not be read: Arrow's own errors about the content are OSErrors, too."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except Exception as error:
            self.error = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def opened(shard: Shard, config: SourceConfig) -> Iterator[pq.ParquetFile]:
    """The Parquet file of `shard`.

    Raises:
        ShardDamaged: its footer, or a page read in the `with` block, is damaged.
    """
    with open_binary(shard.uri, config.options, **SEQUENTIAL) as raw:
        file = _Watched(raw)
        try:
            parquet = pq.ParquetFile(file, buffer_size=1 << 20)
            rows, size = parquet.metadata.num_rows, file.seek(0, 2)
            groups = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            if min(groups, default=0) < 0 or sum(groups) != rows or rows > size * _ROWS_PER_BYTE:
                raise ShardDamaged("DamagedParquet", f"the footer speaks of {rows} rows, the file has {size} bytes")
            yield parquet
        except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
            if file.error:
                raise file.error from None
            raise ShardDamaged("DamagedParquet", str(error)) from None


def footer(shard: Shard, config: SourceConfig) -> pq.FileMetaData | None:
    """Row count and schema of `shard`; None where they cannot be read, which reading the shard will report."""
    try:
        with opened(shard, config) as file:
            return file.metadata
    except Exception:
        return None


def image_column(schema: pa.Schema, config: SourceConfig) -> str | None:
    """The column of image bytes: the one that the configuration names, or the likeliest; None: there is none."""
    names = [field.name for field in schema if _holds_bytes(field.type)]
    if config.image_column:
        return config.image_column if config.image_column in names else None
    return next((name for name in (*_USUAL_NAMES, *names) if name in names), None)


def label_column(names: list[str], config: SourceConfig, where: str) -> str | None:
    """The column of labels: the one that the configuration names, or `label` if there is one.

    Raises:
        ConfigError: the named column is missing.
    """
    if config.label_column and config.label_column not in names:
        raise ConfigError(f"{where}: no label column {config.label_column}; the columns are {', '.join(names)}")
    return config.label_column or ("label" if "label" in names else None)


def read(shard: Shard, config: SourceConfig, start: int, wanted: Wanted) -> Iterator[Item]:
    """See `Format`. Row groups without a wanted row are not read."""
    uri = redact(shard.uri)
    with opened(shard, config) as file:
        image = image_column(file.schema_arrow, config)
        if image is None:
            raise ShardDamaged("MissingColumn", f"no column {config.image_column or ''} of image bytes")
        try:
            label = label_column(file.schema_arrow.names, config, uri)
        except ConfigError as error:
            raise ShardDamaged("MissingColumn", str(error)) from None
        nested = pa.types.is_struct(file.schema_arrow.field(image).type)
        columns = [f"{image}.bytes" if nested else image, *([label] if label else [])]
        index = 0
        for group in range(file.num_row_groups):
            end = index + file.metadata.row_group(group).num_rows
            if not any(map(wanted, range(max(index, start), end))):
                index = end
                continue
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
                data = pc.struct_field(batch.column(image), "bytes") if nested else batch.column(image)
                labels = texts(batch.column(label)) if label else [None] * batch.num_rows
                for row in range(batch.num_rows):
                    if index >= start and wanted(index):
                        sample = Sample(f"{shard.name}#{index}", index, labels[row], f"{uri}#{index}")
                        yield sample, data[row].as_py() or SampleError("EmptyFile", "the row has no image bytes")
                    index += 1
            if index != end:  # Arrow says nothing
                raise ShardDamaged("DamagedParquet", f"the rows of group {group} end at {index}, not at {end}")


def count(shard: Shard, config: SourceConfig, at_most: int) -> int:
    """See `Format`."""
    with opened(shard, config) as file:
        return min(int(file.metadata.num_rows), at_most)


def texts(column: pa.Array) -> list[str | None]:
    """A column as text: the values found, whatever their type."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())  # Parquet promises UTF-8, but nobody checks
    return [_as_text(value) for value in column.to_pylist()]


def _as_text(value: Any) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else None if value is None else str(value)


def _holds_bytes(type_: pa.DataType) -> bool:
    if pa.types.is_struct(type_):
        index = type_.get_field_index("bytes")
        return index >= 0 and _holds_bytes(type_.field(index).type)
    return type_ in (pa.binary(), pa.large_binary(), pa.binary_view())

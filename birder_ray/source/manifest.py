"""Manifests: a CSV or Parquet table that names an image URI per row."""

import csv
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import IO, NamedTuple

from birder_ray.chunk import Sample
from birder_ray.config import SourceConfig
from birder_ray.errors import ConfigError, SampleError, ShardDamaged
from birder_ray.source import parquet
from birder_ray.source.base import SEQUENTIAL, Item, Shard, Wanted, count_intact
from birder_ray.source.fetch import fetch, prefetch
from birder_ray.source.resolve import Place, Resolver
from birder_ray.storage import has_suffix, open_binary, redact

_URI_NAMES = ("uri", "url", "image", "image_uri", "path", "file", "filename", "photo_url", "image_url")
_LONGEST_LINE = 1 << 20
_ID_NAMES = ("id", "image_id", "photo_id", "sample")


class Columns(NamedTuple):
    """Columns of a manifest; without `id` the URI names the sample."""

    uri: str
    id: str | None
    label: str | None


class _Row(NamedTuple):
    uri: str
    id: str
    label: str | None
    problem: SampleError | None


def columns(names: list[str], config: SourceConfig, where: str) -> Columns:
    """Which of the columns `names` holds what.

    Raises:
        ConfigError: there is no column of URIs, or not the one that the configuration names.
    """
    spelled = {name.lower(): name for name in reversed(names)}

    def pick(given: str | None, usual: tuple[str, ...], option: str) -> str | None:
        if given and given not in names:
            raise ConfigError(f"{where}: no column {given} ({option}); the columns are {', '.join(names)}")
        return given or next((spelled[name] for name in usual if name in spelled), None)

    uri = pick(config.image_column, _URI_NAMES, "image_column")
    if uri is None:
        found = ", ".join(names)
        raise ConfigError(f"{where}: no column of image URIs; name it as image_column, the columns are {found}")
    label = pick(config.label_column, ("label",), "label_column")
    return Columns(uri, pick(config.id_column, _ID_NAMES, "id_column"), label)


def check(shard: Shard, config: SourceConfig) -> None:
    """Look at the header of a CSV manifest.

    Raises:
        ConfigError: see `columns`.
    """
    for _ in islice(_csv_rows(shard, config), 1):
        return


def read(shard: Shard, config: SourceConfig, start: int, wanted: Wanted) -> Iterator[Item]:
    """See `Format`. The index is the row; ids that a manifest repeats get `#row` appended."""
    resolve = Resolver(shard.uri, config.options, config.allow_local_uris)
    seen: set[bytes] = set()

    def wanted_rows() -> Iterator[tuple[Sample, Place | SampleError]]:
        for index, row in enumerate(_rows(shard, config)):
            name = row.id
            while (digest := hashlib.blake2b(name.encode(), digest_size=8).digest()) in seen:
                name = f"{name}#{index}"
            seen.add(digest)
            if index >= start and wanted(index):
                yield Sample(name, index, row.label, redact(row.uri)), row.problem or resolve(row.uri)

    yield from prefetch(_fetched, wanted_rows())


def count(shard: Shard, config: SourceConfig, at_most: int) -> int:
    """See `Format`. Rows before any damage count."""
    if is_parquet(shard):
        return parquet.count(shard, config, at_most)
    return count_intact(_rows(shard, config), at_most)


def _fetched(row: tuple[Sample, Place | SampleError]) -> Item:
    sample, source = row
    return sample, source if isinstance(source, SampleError) else fetch(*source)


def is_parquet(shard: Shard) -> bool:
    """Whether a manifest is Parquet; otherwise it is CSV."""
    return has_suffix(shard.uri, ".parquet")


def _rows(shard: Shard, config: SourceConfig) -> Iterator[_Row]:
    try:
        yield from _parquet_rows(shard, config) if is_parquet(shard) else _csv_rows(shard, config)
    except ConfigError as error:
        raise ShardDamaged("MissingColumn", str(error)) from None


def _csv_rows(shard: Shard, config: SourceConfig) -> Iterator[_Row]:
    with open_binary(shard.uri, config.options, **SEQUENTIAL) as raw:
        stream = gzip.GzipFile(fileobj=raw) if has_suffix(shard.uri, ".gz") else raw
        reader = csv.reader(_lines(io.TextIOWrapper(stream, "utf-8-sig", "backslashreplace", newline="")), strict=True)
        try:
            header = next(reader, None)
            if not header:
                raise ShardDamaged("EmptyFile", "the manifest has no header line")
            picked = columns(header, config, redact(shard.uri))
            for index, fields in enumerate(filter(None, reader)):
                value = dict(zip(header, fields, strict=False))
                problem = None
                if len(fields) != len(header):
                    where = f"line {reader.line_num} has {len(fields)} fields, the header {len(header)}"
                    value, problem = {}, SampleError("BadRow", where)
                texts = [value.get(name) if name else None for name in picked]
                yield _row(f"{shard.name}#{index}", texts, problem)
        except (csv.Error, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ShardDamaged("DamagedManifest", f"line {reader.line_num}: {error}") from None


def _lines(text: IO[str]) -> Iterator[str]:
    """The lines of a CSV file; one without end, as a small .gz can hold, must not fill the memory."""
    while line := text.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise ShardDamaged("DamagedManifest", f"a line of more than {_LONGEST_LINE:,} characters")
        yield line


def _parquet_rows(shard: Shard, config: SourceConfig) -> Iterator[_Row]:
    with parquet.opened(shard, config) as file:
        picked = columns(file.schema_arrow.names, config, redact(shard.uri))
        index = 0
        for batch in file.iter_batches(1024, columns=list({*picked} - {None}), use_threads=False):
            values = [parquet.texts(batch.column(name)) if name else [None] * batch.num_rows for name in picked]
            for row in zip(*values, strict=True):
                yield _row(f"{shard.name}#{index}", list(row))
                index += 1


def _row(fallback: str, texts: list[str | None], problem: SampleError | None = None) -> _Row:
    uri, name, label = texts
    uri = (uri or "").strip()
    if not uri and not problem:
        problem = SampleError("BadUri", "the row names no image")
    return _Row(uri, name or redact(uri) or fallback, label or None, problem)

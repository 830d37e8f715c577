"""A DuckDB database for the length of a command, in a temporary folder, for joins that outgrow the memory."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from birder_ray.errors import ConfigError, RunFailed
from birder_ray.storage import has_suffix, open_binary, redact

_BLOCK = 2**20
_BATCH = 65_536

_CSV = """all_varchar=true, header=true, quote='"', escape='"', comment=''"""
"""Only the delimiter is left to be guessed, by the first 20,000 lines: where none of them has quotes or a #, those of
later ones would be taken for part of a name, and where all are within apostrophes, these for no part of it."""

_NO_HIVE = "hive_partitioning=false"
"""A TMPDIR such as /scratch/sample=3 is no column."""


@contextmanager
def database(memory: str, what: str) -> Iterator[tuple[Any, Path]]:
    """A connection, and the folder that its files are in and that is gone afterwards; TMPDIR says where it is made.

    Args:
        memory: that DuckDB may take, e.g. "1GB"; what is more goes to the folder. what: needs it, for messages.

    Raises:
        ConfigError: DuckDB is not installed, or `memory` is no size. RunFailed: it needs more memory or disk.
    """
    try:
        import duckdb
    except ImportError:
        raise ConfigError(f"{what} needs DuckDB: pip install 'birder-ray[findings]'") from None
    with TemporaryDirectory(prefix="birder-ray-") as folder:
        settings: dict[str, Any] = {"memory_limit": memory, "temp_directory": folder, "preserve_insertion_order": False}
        try:
            connection = duckdb.connect(str(Path(folder) / "joined.duckdb"), config=settings)
        except duckdb.Error as error:
            raise ConfigError(f"--memory {memory}: {error}; give a size as 1GB") from None
        try:
            yield connection, Path(folder)
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            remedy = f"give more --memory than {memory}, or a TMPDIR with more space"
            raise RunFailed(f"{folder}: {error}; {remedy}") from None
        finally:
            connection.close()


@contextmanager
def streamed(connection: Any, tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[None]:
    """Have queries of `connection` read `tables` once, as table `stream` with the columns of `schema`.

    Raises whatever `tables` raise; DuckDB would only tell the text of it, within its own.
    """
    failed: list[Exception] = []

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for table in tables:
                yield from table.select(schema.names).cast(schema).to_batches()
        except Exception as error:
            failed.append(error)
            raise

    connection.register("stream", pa.RecordBatchReader.from_batches(schema, batches()))
    try:
        yield
    except Exception:
        if failed:
            raise failed[0] from None
        raise
    finally:
        connection.unregister("stream")


@contextmanager
def opened(connection: Any, folder: Path, file: str) -> Iterator[tuple[list[str], str]]:
    """Have `connection` know a file as view `file`, for as long as this.

    Args:
        folder: of the database, which a copy goes to. file: CSV (with a header, .csv or .csv.gz) or Parquet, local or
            at any fsspec URL.

    Returns:
        Its columns, which are text where it is CSV, and its sha256.

    Raises:
        ConfigError: the file is not there or no such file; queries that fail of what it holds.
    """
    import duckdb

    parquet = has_suffix(file, ".parquet")
    copy = folder / ("file.csv.gz" if has_suffix(file, ".gz") else "file")
    sha256 = _copied(file, copy)
    path = str(copy).replace("'", "''")
    scan = f"read_parquet('{path}', {_NO_HIVE})" if parquet else f"read_csv('{path}', {_CSV}, {_NO_HIVE})"
    try:
        connection.execute(f"CREATE VIEW file AS FROM {scan}")
        yield [name for name, *_ in connection.execute("DESCRIBE file").fetchall()], sha256
        connection.execute("DROP VIEW file")
    except duckdb.Error as error:
        if isinstance(error, duckdb.OutOfMemoryException | duckdb.IOException) and "GZIP" not in str(error):
            raise
        problem = str(error).partition("\n")[0]
        raise ConfigError(f"{redact(file)}: {problem}; give CSV with a header, or .parquet") from None
    finally:
        copy.unlink()


def quoted(name: str) -> str:
    """A column's name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def asked(connection: Any, query: str, file: str) -> Iterator[pa.Table]:
    """The rows that `query` gives, in tables of at most 65,536. Raises RunFailed, naming `file`, for lack of memory."""
    try:
        for batch in connection.sql(query).to_arrow_reader(_BATCH):
            yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:  # what DuckDB fails of while it is read from
        raise RunFailed(f"{redact(file)}: {error}; give TMPDIR with more space, or more --memory") from None


def _copied(file: str, to: Path) -> str:
    """Copy a file and return its sha256: DuckDB reads local files alone without extensions, which it would download."""
    digest = hashlib.sha256()
    with open(to, "wb") as target:
        try:
            with open_binary(file) as source:
                blocks = iter(lambda: source.read(_BLOCK), b"")
                while block := next(blocks, b""):
                    digest.update(block)
                    target.write(block)
        except Exception as error:  # of any filesystem's kind, credentials that are lacking among them
            raise ConfigError(
                f"{redact(file)}: cannot be read or copied: {error}; check the path, and TMPDIR"
            ) from None
    return digest.hexdigest()

"""A DuckDB database for the length of a command, in a temporary folder, for joins that outgrow the memory."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from birder_ray.errors import ConfigError, RunFailed


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

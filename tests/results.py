"""Reading a destination back, as a user would."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds


def table(destination: Any, name: str, options: dict[str, Any] | None = None) -> pa.Table:
    """All rows of a table, sorted by shard and index; None columns where the folder is empty."""
    import fsspec

    fs, path = fsspec.core.url_to_fs(str(destination), **(options or {}))
    fs.invalidate_cache()  # others have written and deleted since
    if not fs.exists(f"{path}/{name}") or not fs.glob(f"{path}/{name}/*.parquet"):
        return pa.table({"sample": [], "shard": [], "index": []})
    return (
        ds.dataset(f"{path}/{name}", filesystem=fs, format="parquet")
        .to_table()
        .sort_by([("shard", "ascending"), ("index", "ascending")])
    )


def vectors(tab: pa.Table, column: str) -> np.ndarray:
    """A column of vectors as a matrix."""
    combined = tab[column].combine_chunks()
    return combined.flatten().to_numpy(zero_copy_only=False).reshape(len(combined), -1)


def assert_same(one: Any, other: Any, options: dict[str, Any] | None = None, tolerance: float = 1e-5) -> None:
    """The same samples in the same order with the same values, in every table of two destinations."""
    for name in ("predictions", "embeddings", "features", "errors"):
        assert_same_rows(table(one, name), table(other, name, options), tolerance)


def assert_same_rows(left: pa.Table, right: pa.Table, tolerance: float = 1e-5) -> None:
    """The same samples in the same order with the same values."""
    assert left.schema.names == right.schema.names
    assert left["sample"].to_pylist() == right["sample"].to_pylist()
    for column in left.schema.names:
        if pa.types.is_fixed_size_list(left.schema.field(column).type):
            np.testing.assert_allclose(vectors(left, column), vectors(right, column), atol=tolerance, rtol=1e-4)
        elif pa.types.is_floating(left.schema.field(column).type):
            np.testing.assert_allclose(left[column].to_numpy(), right[column].to_numpy(), atol=tolerance)
        elif column != "top_probabilities":
            assert left[column].to_pylist() == right[column].to_pylist(), column


def parts(destination: str | Path) -> list[str]:
    """Every file below a local destination, by relative name."""
    root = Path(destination)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

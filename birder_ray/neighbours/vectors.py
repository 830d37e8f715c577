"""Embeddings as directions: all that cosine looks at."""

import numpy as np
import pyarrow as pa


def directions(column: pa.ChunkedArray) -> np.ndarray:
    """A column of embeddings as vectors of length 1.

    Returns:
        N,D float32; all zero where an embedding has no direction, as it is zero or not finite.
    """
    if not len(column):
        return np.zeros((0, column.type.list_size), np.float32)
    flat = pa.concat_arrays([chunk.flatten() for chunk in column.chunks]).to_numpy(zero_copy_only=False)
    values = flat.astype(np.float64).reshape(len(column), -1)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        units = values / lengths
    units[~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0))] = 0
    return units.astype(np.float32)


def have_direction(vectors: np.ndarray) -> np.ndarray:
    """N booleans, of N,D of `directions`."""
    found: np.ndarray = np.any(vectors, axis=1)
    return found

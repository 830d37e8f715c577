"""Which perceptual hashes are alike: those of which at most a few bits differ, without comparing all with all."""

from collections.abc import Iterator

import numpy as np

from birder_ray.neighbours.library import faiss

MOST_BITS = 7
"""Further apart, too many hashes share a piece."""

_AT_ONCE = 1 << 15


class Hashes:
    """Different 64-bit hashes, to be searched.

    Of two hashes that differ in at most 5 bits, cut into three pieces, one piece differs in at most one bit; so those
    that share a piece up to a bit are compared, and no pair is missed (multi-index hashing, Norouzi et al. 2012). For 6
    and 7 bits it takes four pieces.

    Args:
        values: uint64. most: bits that may differ, up to `MOST_BITS`.
    """

    def __init__(self, values: np.ndarray, most: int):
        assert most <= MOST_BITS
        self._values, self._most = values, most
        pieces = 3 if most <= 5 else 4
        self._index = faiss().IndexBinaryMultiHash(64, pieces, 64 // pieces)
        self._index.nflip = 1
        self._index.add(_bytes(values))

    def near(self, values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places in `values`, and places of own hashes that are alike to them, block by block."""
        for start in range(0, len(values), _AT_ONCE):
            some = values[start : start + _AT_ONCE]
            limits, _, found = self._index.range_search(_bytes(some), self._most + 1)  # it wants less than that
            yield start + np.repeat(np.arange(len(some)), np.diff(limits.astype(np.int64))), found


def bits_apart(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How many bits differ, N,M of N and M hashes."""
    apart: np.ndarray = np.bitwise_count(some[:, None] ^ others[None])
    return apart


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8)

"""The hashes of all images of a destination, as they are compared."""

from collections import Counter

import numpy as np
import pyarrow as pa

from birder_ray.neighbours.rows import Rows


class Images:
    """The hashes of all images of a destination, by row.

    `bytes`: N,2 uint64, half of each sha256; `read`: where there is one. `looks`: N uint64, perceptual hashes; `seen`:
    where there is one. `unread`: images without either, by reason. `kept`: why hashes could not be saved, if so.

    Args:
        rows: that they are of.
    """

    def __init__(self, rows: Rows):
        self.rows = rows
        self.bytes, self.read = np.zeros((len(rows), 2), np.uint64), np.zeros(len(rows), bool)
        self.looks, self.seen = np.zeros(len(rows), np.uint64), np.zeros(len(rows), bool)
        self.unread: Counter[str] = Counter()
        self.kept: str | None = None

    @property
    def unseen(self) -> Counter[str]:
        """Images without a perceptual hash, by reason."""
        undecoded = int((self.read & ~self.seen).sum())
        return self.unread + Counter({"cannot be decoded, or too large": undecoded})

    def put(self, place: int, digests: pa.ChunkedArray, looks: pa.ChunkedArray) -> None:
        """Note the hashes of the unit at `place`, null where there is none."""
        rows = slice(*self.rows.starts[place : place + 2])
        self.read[rows], self.seen[rows] = digests.is_valid().to_numpy(), looks.is_valid().to_numpy()
        joined = b"".join(each or bytes(32) for each in digests.to_pylist())
        self.bytes[rows] = np.frombuffer(joined, np.uint64).reshape(-1, 4)[:, :2]
        self.looks[rows] = looks.fill_null(0).to_numpy()

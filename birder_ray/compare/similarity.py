"""How alike two sets of embeddings of the same samples are: cosine where the sizes agree, CKA whatever they are."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from birder_ray.compare.comparison import Cosine, Embeddings
from birder_ray.schema import EMBEDDINGS
from birder_ray.scores import Scores

_BLOCK = 1024
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def similarity(a: Scores, b: Scores, samples: list[str]) -> Embeddings | None:
    """Compare the embeddings of `samples`; None where none of them is in both tables.

    Memory: both embeddings of each of `samples` as float32, and one part at a time.
    """
    chosen = pa.array(samples, pa.string())
    (of_a, in_a), (of_b, in_b) = _vectors(a, chosen), _vectors(b, chosen)
    found = in_a & in_b
    if not found.any():
        return None
    if not found.all():
        of_a, of_b = of_a[found], of_b[found]
    same_size = of_a.shape[1] == of_b.shape[1]
    return Embeddings(
        of_a.shape[1], of_b.shape[1], len(of_a), cosine(of_a, of_b) if same_size else None, linear_cka(of_a, of_b)
    )


def _vectors(scores: Scores, chosen: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(n, size) float32 embeddings of `chosen`, in its order, and (n,) whether there is one."""
    vectors, found = np.zeros((len(chosen), 0), np.float32), np.zeros(len(chosen), bool)
    for rows in scores.stream(EMBEDDINGS, ["sample", "embedding"]):
        at = pc.index_in(rows["sample"], value_set=chosen)
        wanted = rows["embedding"].filter(at.is_valid())
        if not vectors.shape[1]:
            vectors = np.zeros((len(chosen), wanted.type.list_size), np.float32)
        where = at.drop_null().to_numpy()
        vectors[where] = pc.list_flatten(wanted).to_numpy().reshape(-1, vectors.shape[1])
        found[where] = True
    return vectors, found


def cosine(a: np.ndarray, b: np.ndarray) -> Cosine | None:
    """Cosine similarities of the rows of `a` and `b`, both (n, size). A row that is zero in one of both is similar by
    0: to leave it out would hide that it has lost its direction. None where all rows are zero in both."""
    values = np.concatenate(
        [_dot(x, y) / np.sqrt(np.maximum(_dot(x, x) * _dot(y, y), np.finfo(float).tiny)) for x, y in _blocks(a, b)]
    )
    values = np.clip(values[a.any(axis=1) | b.any(axis=1)], -1.0, 1.0)
    if not len(values):
        return None
    quantiles = {str(q): float(np.quantile(values, q)) for q in _QUANTILES}
    return Cosine(len(values), float(values.mean()), float(values.min()), quantiles)


def linear_cka(a: np.ndarray, b: np.ndarray) -> float | None:
    """Linear centred kernel alignment of `a` (n, p) and `b` (n, q), rows of the same samples: 1 for the same space up
    to rotation and scale, around 0 for unrelated ones.

    Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", with the unbiased estimator of HSIC
    (Song et al. 2012) as in Nguyen, Raghu and Kornblith 2021. The plain estimator tends to 1 where there
    are not many more samples than values in an embedding, even for noise; here that is the rule.

    Written in products of the centred columns, (p, q) at most, as the (n, n) Gram matrices of 10,000 samples take more.
    None for fewer than four samples, or where the rows of one do not differ.
    """
    n, p, q = len(a), a.shape[1], b.shape[1]
    if n < 4:
        return None
    middle_a, middle_b = a.mean(axis=0, dtype=np.float64), b.mean(axis=0, dtype=np.float64)
    aa, bb, ab = np.zeros((p, p)), np.zeros((q, q)), np.zeros((p, q))
    lengths_a, lengths_b = [], []
    for x, y in _blocks(a, b):
        x, y = x - middle_a, y - middle_b
        aa += x.T @ x
        bb += y.T @ y
        ab += x.T @ y
        lengths_a.append(_dot(x, x))
        lengths_b.append(_dot(y, y))
    k, l = np.concatenate(lengths_a), np.concatenate(lengths_b)  # noqa: E741
    own_a, own_b = _hsic(aa, k, k), _hsic(bb, l, l)
    if own_a <= _least(aa) or own_b <= _least(bb):
        return None
    return float(_hsic(ab, k, l) / np.sqrt(own_a * own_b))


def _hsic(product: np.ndarray, k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """n (n - 3) times the unbiased HSIC, of the product of centred columns and the diagonals of both Gram matrices."""
    n = len(k)
    # The rows of a centred Gram matrix sum to 0, so without its diagonal to minus the diagonal
    both = float(k @ l)
    return float((product * product).sum()) - both + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * both / (n - 2)


def _least(product: np.ndarray) -> float:
    """Below this, what is left of the sums is rounding."""
    return 1e-12 * float((product * product).sum())


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) products of the rows, (n, size) both."""
    products: np.ndarray = np.einsum("ij,ij->i", a, b)
    return products


def _blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(a), _BLOCK):
        yield a[start : start + _BLOCK].astype(np.float64), b[start : start + _BLOCK].astype(np.float64)

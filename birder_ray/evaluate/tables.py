"""The tables of an evaluation, from its counts."""

import numpy as np
import pyarrow as pa

from birder_ray.evaluate.accuracy import STEPS, Counts, by_class, coverage


def tables(counts: Counts, names: list[str]) -> dict[str, pa.Table]:
    """`classes`, `confusions`, `calibration` and `coverage`; their columns: docs/evaluation.md.

    Args:
        names: of the classes, by index.
    """
    cells = labels, predictions, pairs = counts.confusions.cells()
    right, labelled, predicted = by_class(cells, counts.classes)
    at = np.flatnonzero(labelled + predicted)
    name = np.array(names, object)
    wrong = np.flatnonzero(labels != predictions)
    wrong = wrong[np.lexsort((predictions[wrong], labels[wrong], -pairs[wrong]))]
    per_class = {
        "class_index": pa.array(at, pa.int32()),
        "class_name": pa.array(name[at], pa.string()),
        "support": pa.array(labelled[at], pa.int64()),
        "predicted": pa.array(predicted[at], pa.int64()),
        "precision": _share(right[at], predicted[at]),
        "recall": _share(right[at], labelled[at]),
        "f1": _share(2 * right[at], labelled[at] + predicted[at]),
    }
    if counts.k > 1:
        per_class[f"top{counts.k}_recall"] = _share(counts.hits[at], labelled[at])
    edges, filled = np.linspace(0.0, 1.0, counts.bins + 1), counts.binned.sum(axis=0)
    kept, kept_right = coverage(counts.stepped)
    some = kept > 0
    return {
        "classes": pa.table(per_class),
        "confusions": pa.table(
            {
                "label": pa.array(name[labels[wrong]], pa.string()),
                "prediction": pa.array(name[predictions[wrong]], pa.string()),
                "count": pairs[wrong],
                "share_of_label": _share(pairs[wrong], labelled[labels[wrong]]),
            }
        ),
        "calibration": pa.table(
            {
                "bin": pa.array(range(counts.bins), pa.int32()),
                "lower": edges[:-1],
                "upper": edges[1:],
                "count": filled,
                "confidence": _share(counts.summed.sum(axis=0), filled),
                "accuracy": _share(counts.binned[1], filled),
            }
        ),
        "coverage": pa.table(
            {
                "threshold": np.linspace(0.0, 1.0, STEPS + 1)[:-1][some],
                "kept": kept[some],
                "coverage": _share(kept[some], np.full(some.sum(), kept[0])),
                "accuracy": _share(kept_right[some], kept[some]),
            }
        ),
    }


def _share(part: np.ndarray, whole: np.ndarray) -> pa.Array:
    """Null where there is nothing to have a share of."""
    return pa.array(np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0), from_pandas=True)

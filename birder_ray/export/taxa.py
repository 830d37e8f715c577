"""Scientific names, as Darwin Core has them, of classes and of what predictions were rolled up to."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ABOVE = ("kingdom", "phylum", "class", "order", "family", "genus")
"""The ranks that are terms of Darwin Core."""

_MAJORITY = 0.5


def of_classes(classes: pa.Table, ranks: Sequence[str]) -> pa.Table:
    """`scientificName`, `taxonRank` and ABOVE of each class: its lowest known taxon; null where it has none."""
    columns = {rank: classes[rank].to_pylist() if rank in ranks else [None] * classes.num_rows for rank in ABOVE}
    names: list[str | None] = [None] * classes.num_rows
    lowest: list[str | None] = [None] * classes.num_rows
    for rank in ranks:
        for at, name in enumerate(classes[rank].to_pylist()):
            if name:
                names[at], lowest[at] = name, rank
    told = {"scientificName": names, "taxonRank": lowest, **columns}
    return pa.table({name: pa.array(values, pa.string()) for name, values in told.items()})


def of_rollup(rollup: pa.Table) -> pa.Table:
    """As `of_classes`, of each image of `rollup/`, and its `probability`; null where no taxon was certain.

    The likeliest taxon of a higher rank is taken for that above it only where it must be: two taxa of a rank share no
    class, so where both sums are above one half, one holds the other.
    """
    certain = rollup["rollup_probability"]
    rank = rollup["rollup_rank"]
    columns = {"scientificName": rollup["rollup_taxon"], "taxonRank": rank}
    order = [name for name in (*ABOVE, "species") if name in rollup.column_names]
    depth = pc.index_in(rank, pa.array(order, pa.string()))
    for name in ABOVE:
        if name in order:
            held = pc.and_(pc.greater_equal(depth, order.index(name)), _within(rollup, name, certain))
            own = pc.equal(rank, name)
            columns[name] = pc.if_else(pc.fill_null(pc.or_kleene(own, held), False), rollup[name], None)
        else:
            columns[name] = pa.nulls(rollup.num_rows, pa.string())
    return pa.table({**columns, "probability": certain})


def _within(rollup: pa.Table, rank: str, certain: pa.ChunkedArray) -> pa.ChunkedArray:
    """Where the likeliest taxon of `rank` holds the one that was certain."""
    return pc.and_(pc.greater(certain, _MAJORITY), pc.greater_equal(rollup[f"{rank}_probability"], certain))


def chosen(lineages: pa.Table, indices: np.ndarray) -> pa.Table:
    """The rows of `lineages` at (n,) class indices."""
    return lineages.take(pa.array(indices, pa.int64()))

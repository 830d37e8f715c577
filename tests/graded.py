"""Destinations with given predictions, for `evaluate`: the real write step, one unit in memory at a time."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from birder_ray.chunk import Chunk, ErrorRow, Sample
from birder_ray.collect import Collector
from birder_ray.commit import Ledger
from birder_ray.destination import Destination
from birder_ray.folder import Folder
from birder_ray.manifest import Recipe
from birder_ray.plan import make_plan, unit_name
from birder_ray.schema import READ, predictions_schema
from birder_ray.source.base import Shard
from birder_ray.totals import Totals
from tests.built import FACTS, InHand, config

Rows = tuple[Sequence[str | None], np.ndarray, np.ndarray]
"""Labels (n,), top indices (n, k) and their probabilities (n, k)."""


def graded(
    folder: Folder,
    names: Sequence[str],
    shards: Mapping[str, int],
    rows: Callable[[str, int, int], Rows],
    unit_rows: int = 100,
    bad: Mapping[str, int] | None = None,
) -> None:
    """A finished run.

    Args:
        names: of the classes. shards: rows by name. rows: those of a shard from an index to before another.
        bad: index of the sample that each of these shards has quarantined.
    """
    told = config(folder.url, outputs={"predictions": {}}, compute={"unit_rows": unit_rows})
    recipe, listed = Recipe.of(told, FACTS), [Shard(f"/data/{name}", name, "tar", "f") for name in shards]
    ledger, totals, units = Ledger(folder), Totals(), set()
    place = Destination(told, ledger, recipe, FACTS, names, listed)
    plan = make_plan(listed, recipe.key, place.unit_rows, ledger)

    def on_commit(record):
        place.committed()
        totals.add(record)
        units.add(record.unit)

    place.begin(plan)
    collector = Collector(ledger, recipe, place.unit_rows, InHand(), ledger.leftovers(), on_commit)
    try:
        for work in plan.work:
            size, shard = shards[work.shard.name], work.shard.name
            for number, start in enumerate(range(0, size, unit_rows)):
                stop = min(size, start + unit_rows)
                wrong = {(bad or {}).get(shard)} & set(range(start, stop))
                unit, keep = unit_name(work.prefix, number), [i for i in range(start, stop) if i not in wrong]
                samples = [Sample(f"{shard}/{i}.jpg", i, None, f"/data/{shard}#{i}") for i in keep]
                errors = [ErrorRow(f"{shard}/{i}.jpg", i, READ, "EmptyFile", "no bytes", "/data") for i in wrong]
                table = _table(names, samples, shard, rows(shard, start, stop), np.array(keep) - start)
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, table.schema) as writer:
                    writer.write_table(table)
                tables = {"predictions": sink.getvalue().to_pybytes()}
                end = stop == size
                chunk = Chunk(unit, shard, 0, True, end, samples, errors, {READ: 0.1}, tables=tables)
                collector.add(InHand.chunk(chunk))
        collector.drain()
    finally:
        collector.close()
    place.finish(plan, totals, units)


def _table(names: Sequence[str], samples: list[Sample], shard: str, rows: Rows, keep: np.ndarray) -> pa.Table:
    labels, top, probabilities = rows
    top, probabilities = top[keep], probabilities[keep].astype(np.float32)
    offsets = pa.array(np.arange(len(keep) + 1) * top.shape[1], pa.int32())
    classes = np.array(names, object)[top]
    columns = [
        pa.array([sample.sample for sample in samples]),
        pa.array([shard] * len(keep)),
        pa.array([sample.index for sample in samples]),
        pa.array([labels[at] for at in keep], pa.string()),
        pa.array(classes[:, 0], pa.string()),
        pa.array(probabilities[:, 0]),
        pa.array(np.zeros(len(keep), np.float32)),
        pa.ListArray.from_arrays(offsets, pa.array(top.ravel(), pa.int32())),
        pa.ListArray.from_arrays(offsets, pa.array(classes.ravel(), pa.string())),
        pa.ListArray.from_arrays(offsets, pa.array(probabilities.ravel())),
    ]
    return pa.Table.from_arrays(columns, schema=predictions_schema(len(names), logits=False))

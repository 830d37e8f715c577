"""Destinations built without Ray or a network: the real write step, fed with made-up tables."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq

from birder_ray.chunk import Chunk, ErrorRow, Sample
from birder_ray.collect import Collector
from birder_ray.commit import Ledger
from birder_ray.config import RunConfig
from birder_ray.destination import Destination
from birder_ray.folder import Folder
from birder_ray.manifest import ModelFacts, Recipe
from birder_ray.parts import Part, Parts, encode, part_name
from birder_ray.plan import make_plan, unit_name
from birder_ray.record import record_name
from birder_ray.schema import READ, WHOLE_SHARD, embeddings_schema, features_schema, predictions_schema
from birder_ray.scored import Scored, joined, look
from birder_ray.source.base import Shard
from birder_ray.totals import Totals

ROWS = 10
NAMES = ["heron", "stork", "ibis"]
SCHEMAS = {
    "predictions": predictions_schema(3, logits=False),
    "embeddings": embeddings_schema(4, "float32"),
    "features": features_schema({"stage1": 2}, ("mean", "max", "std")),
}
FACTS = ModelFacts("tiny", "hgnet_v2_b0", "0" * 64, (64, 64))


class InHand:
    """Writes parts whose chunks carry their blocks."""

    writers = 4

    @staticmethod
    def chunk(chunk: Chunk) -> Scored:
        block = chunk.to_table()
        return replace(look(block)[0], block=block)

    def put(self, parts: Parts, chunks: Sequence[Scored]) -> dict[str, Part] | None:
        return parts.write(joined([(chunk.block, chunk.row) for chunk in chunks]))


def tables(shard: str, samples: list[Sample]) -> dict[str, bytes]:
    """Arrow IPC bytes by table; values follow from the index."""
    import pyarrow as pa

    made = {}
    for name, schema in SCHEMAS.items():
        rows = []
        for s in samples:
            row = {"sample": s.sample, "shard": shard, "index": s.index}
            for field in schema:
                if field.name in row:
                    continue
                if pa.types.is_fixed_size_list(field.type):
                    row[field.name] = [float(s.index)] * field.type.list_size
            if name == "predictions":
                row |= _prediction(s.index)
            rows.append(row)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(pa.Table.from_pylist(rows, schema))
        made[name] = sink.getvalue().to_pybytes()
    return made


def _prediction(index: int) -> dict[str, Any]:
    first = index % len(NAMES)
    order = [first, *(n for n in range(len(NAMES)) if n != first)]
    top = [0.5 + index % 40 / 100, 0.06, 0.02]
    return {
        "label": None,
        "prediction": NAMES[first],
        "probability": top[0],
        "entropy": index % 100 / 100,
        "top_indices": order,
        "top_classes": [NAMES[n] for n in order],
        "top_probabilities": top,
    }


def chunks(prefix: str, shard: str, size: int, bad: frozenset[int] = frozenset(), damaged: bool = False) -> list[Chunk]:
    """Scored chunks of a shard of `size` samples, up to four each."""
    made = []
    units = range(max(1, -(-size // ROWS)))
    for unit in units:
        indices = list(range(unit * ROWS, min(size, (unit + 1) * ROWS)))
        groups = [indices[at : at + 4] for at in range(0, len(indices), 4)] or [[]]
        for number, group in enumerate(groups):
            last = number == len(groups) - 1
            end = last and unit == units[-1]
            samples = [Sample(f"{shard}/{i}", i, None, f"/data/{shard}#{i}") for i in group if i not in bad]
            errors = [
                ErrorRow(f"{shard}/{i}", i, READ, "EmptyFile", "no bytes", f"/data/{shard}#{i}")
                for i in group
                if i in bad
            ]
            if damaged and end:
                errors.append(ErrorRow(shard, WHOLE_SHARD, READ, "TruncatedTar", "cut", f"/data/{shard}"))
            made.append(
                Chunk(
                    unit_name(prefix, unit), shard, number, last, end and last, samples, errors, {READ: 0.1},
                    tables=tables(shard, samples),
                )
            )  # fmt: skip
    return made


def config(destination: str, **fields) -> RunConfig:
    told = {"source": "/data", "model": "tiny.pt", "compute": {"unit_rows": ROWS}}
    return RunConfig(destination=destination, **told | fields)


def build(folder: Folder, shards: dict[str, int], finish: bool = True, **fields) -> Recipe:
    """A run over tars of so many samples by name: sample 3 of each is bad, and the last shard is cut short."""
    told = config(folder.url, **fields)
    recipe = Recipe.of(told, FACTS)
    listed = [Shard(f"/data/{name}", name, "tar", "f") for name in shards]
    ledger = Ledger(folder)
    place = Destination(told, ledger, recipe, FACTS, NAMES, listed)
    plan = make_plan(listed, recipe.key, place.unit_rows, ledger)
    totals = Totals()
    for record in ledger.records(sorted(plan.done)):
        totals.add(record)

    def on_commit(record):
        place.committed()
        totals.add(record)
        units.add(record.unit)

    units = set(plan.done)
    place.begin(plan)
    collector = Collector(ledger, recipe, place.unit_rows, InHand(), ledger.leftovers(), on_commit)
    try:
        for work in plan.work:
            name = work.shard.name
            for chunk in chunks(work.prefix, name, shards[name], frozenset({3}), damaged=name == listed[-1].name):
                if work.todo(int(chunk.unit[-6:])):
                    collector.add(InHand.chunk(chunk))
        collector.drain()
    finally:
        collector.close()
    if finish:
        place.finish(plan, totals, units)
    return recipe


def rewrite(folder: Folder, table: str, unit: str, change) -> None:
    """Change a part and its commit alike, so that only its content gives it away."""
    file = pq.ParquetFile(io.BytesIO(folder.read(part_name(table, unit))))
    told = {k.decode(): v.decode() for k, v in file.metadata.metadata.items() if k.startswith(b"birder_ray")}
    data = encode(change(file.read()), told)
    folder.write(part_name(table, unit), data)
    record = folder.read_json(record_name(unit))
    rows = pq.ParquetFile(io.BytesIO(data)).metadata.num_rows
    record["parts"][table] = {"rows": rows, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    folder.write_json(record_name(unit), record)

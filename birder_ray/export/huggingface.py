"""A data set that `datasets.load_dataset` reads and the Hugging Face Hub shows: the parts as they are, and a card."""

import hashlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import yaml

from birder_ray.commit import CLASSES, Ledger
from birder_ray.errors import ConfigError
from birder_ray.export.metadata import Metadata, read_metadata
from birder_ray.export.rows import Made, Rows
from birder_ray.export.target import MARK, Filling
from birder_ray.manifest import MANIFEST
from birder_ray.parts import part_name
from birder_ray.record import Record
from birder_ray.schema import ERRORS, PREDICTIONS, ROLLUP, ROLLUP_ABOUT, predictions_schema
from birder_ray.source.fetch import prefetch

CARD = "README.md"
_MOST_NAMES = 1000
"""With more classes, the card would be too long for the Hub to read."""

_SIDE_BY_SIDE = 4


def ready(rows: Rows) -> Metadata | None:
    """What is told of the data set, if anything. Raises ConfigError where that, or nothing scored, forbids it."""
    if not rows.scores.units:
        raise ConfigError(f"{rows.scores.where}: nothing is committed yet")
    return read_metadata(rows.told.metadata) if rows.told.metadata else None


def write(rows: Rows, filling: Filling, told: Metadata | None) -> Made:
    """Copy every part, byte for byte, and make the card."""
    scores = rows.scores
    files: dict[str, int] = {}
    samples: dict[str, int] = {}
    ledger = Ledger(scores.folder)

    def copied(unit: str) -> Record | None:
        record = ledger.read(unit)
        if record.recipe != scores.recipe.key:
            return None
        for table, part in record.parts.items():
            name = part_name(table, unit)
            try:
                data = scores.folder.read(name)
            except FileNotFoundError:
                data = b""
            if hashlib.sha256(data).hexdigest() != part.sha256:
                raise ConfigError(
                    f"{scores.where}/{name}: missing, or not what was committed; birder-ray verify lists all damage"
                )
            filling.write(f"data/{name}", data)
        return record

    for record in prefetch(copied, scores.units, _SIDE_BY_SIDE):
        for table, part in record.parts.items() if record else ():
            files[table] = files.get(table, 0) + 1
            samples[table] = samples.get(table, 0) + part.rows
    if rows.rolled_up:
        for unit in rows.units(["sample"]):
            name = part_name(ROLLUP, unit.record.unit)
            filling.write(f"data/{name}", scores.folder.read(name))
            files[ROLLUP] = files.get(ROLLUP, 0) + 1
    for name in (CLASSES, MANIFEST, *([ROLLUP_ABOUT] if rows.rolled_up else [])):
        filling.write(f"data/{name}", scores.folder.read(name))
    if PREDICTIONS not in files:
        raise ConfigError(f"{scores.where}: no sample is scored")
    filling.card = _card(rows, told, list(files), samples).encode()
    counts = {"samples": samples.get(PREDICTIONS, 0), "parts": sum(files.values())}
    notes = (
        [] if told else ["the card names no licence: give --metadata FILE, or write it there, before it is published"]
    )
    return Made(counts, notes=notes)


def _card(rows: Rows, told: Metadata | None, tables: list[str], samples: dict[str, int]) -> str:
    model, first = rows.model, PREDICTIONS
    known = [table for table in (*rows.scores.tables, ROLLUP, ERRORS) if table in tables]
    title = told.title if told else f"Scores of {model['name']}"
    head: dict[str, Any] = {"pretty_name": title}
    if told:
        head |= {"license": told.licence.lower(), "language": [told.language]}
    head["tags"] = ["birder-ray", "biology", "camera-trap", "image-classification"]
    files = {table: f"data/{table}/*.parquet" for table in known} | {"classes": f"data/{CLASSES}"}
    head["configs"] = [
        {"config_name": table, "data_files": [{"split": "train", "path": path}]} for table, path in files.items()
    ]
    next(each for each in head["configs"] if each["config_name"] == first)["default"] = True
    if features := _features(rows):
        head["dataset_info"] = [{"config_name": first, "features": features}]
    about = [
        f"# {title}",
        *([told.description] if told else []),
        f"Predictions of the network `{model['name']}` ({model['network']}, weights sha256 "
        f"`{model['weights_sha256']}`), {MARK.decode()} {rows.scores.manifest['versions']['birder-ray']}; recipe "
        f"`{rows.scores.recipe.key}`. No person has verified them.",
        f"{samples.get(first, 0):,} samples scored, {samples.get(ERRORS, 0):,} rows of errors. The tables, one "
        "configuration each, have the same samples in the same order; `data/manifest.json` says how they were made.",
        f'```python\nfrom datasets import load_dataset\n\nload_dataset("PATH", "{first}", split="train")\n```',
    ]
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=1000)}---\n\n"
        + "\n\n".join(about)
        + "\n"
    )


def _features(rows: Rows) -> list[dict[str, Any]]:
    """Of predictions, with the prediction as a class; empty where the names do not do for that."""
    names = rows.classes["class_name"].to_pylist()
    if len(names) > _MOST_NAMES or rows.names() != names:
        return []
    logits = rows.scores.recipe.facts["tables"][PREDICTIONS]["logits"]
    return list(_told(predictions_schema(len(names), logits), names))


def _told(schema: pa.Schema, names: list[str]) -> Iterator[dict[str, Any]]:
    for each in schema:
        if each.name == "prediction":
            labels = {str(index): name for index, name in enumerate(names)}
            yield {"name": each.name, "dtype": {"class_label": {"names": labels}}}
        elif pa.types.is_list(each.type) or pa.types.is_fixed_size_list(each.type):
            size = {"length": each.type.list_size} if pa.types.is_fixed_size_list(each.type) else {}
            yield {"name": each.name, "sequence": _dtype(each.type.value_type), **size}
        else:
            yield {"name": each.name, "dtype": _dtype(each.type)}


def _dtype(kind: pa.DataType) -> str:
    return {"float": "float32", "halffloat": "float16"}.get(str(kind), str(kind))

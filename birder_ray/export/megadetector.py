"""MegaDetector's results format, version 1.6, which camera trap tools (Timelapse, AddaxAI) read.

It hangs classifications on detections; a classifier of whole images has one, of the whole image, as SpeciesNet's
results have where its detector found nothing.
"""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from birder_ray.export.rows import BLANK, PERSON, VEHICLE, Made, Rows
from birder_ray.export.target import opened

VERSION = "1.6"
CATEGORIES = {"1": "animal", "2": "person", "3": "vehicle"}
_CATEGORY = {"": "1", PERSON: "2", VEHICLE: "3"}
_DECIMALS = 6


def write(rows: Rows, path: Path, name: str) -> Made:
    """Write all samples, the quarantined ones as failures, to `path`."""
    counts = {"images": 0, "failures": 0}
    with opened(path, name) as file:
        head = json.dumps(_head(rows), ensure_ascii=False, indent=1)
        file.write(f'{head[:-2]},\n "images": ['.encode())
        between = "\n  "
        for lines, kind in _images(rows):
            counts["images"] += len(lines)
            counts["failures"] += len(lines) if kind else 0
            if lines:
                file.write((between + ",\n  ".join(lines)).encode())
                between = ",\n  "
        file.write(b"\n ]\n}\n")
    return Made(counts)


def _head(rows: Rows) -> dict[str, Any]:
    told: dict[str, Any] = {
        "info": {
            "format_version": VERSION,
            # Without it, tools take the results for those of MegaDetector 4, and choose its thresholds
            "detector": "none: whole images",
            "classifier": rows.model["name"],
            "classification_completion_time": datetime.fromisoformat(rows.finished).strftime("%Y-%m-%d %H:%M:%S"),
            "classifier_metadata": {
                "network": rows.model["network"],
                "weights_sha256": rows.model["weights_sha256"],
                "recipe": rows.scores.recipe.key,
                "birder_ray": rows.scores.manifest["versions"]["birder-ray"],
            },
        },
        "detection_categories": CATEGORIES,
        "classification_categories": {str(index): name for index, name in enumerate(rows.names())},
    }
    if rows.ranks:
        told["classification_category_descriptions"] = dict(_descriptions(rows))
    return told


def _descriptions(rows: Rows) -> Iterator[tuple[str, str]]:
    """As Wildlife Insights writes a taxon: id, class, order, family, genus, species without its genus, and a name."""
    for index, (name, taxon) in enumerate(zip(rows.names(), rows.classes.to_pylist(), strict=True)):
        ranks = [taxon.get(rank) or "" for rank in ("class", "order", "family", "genus", "species")]
        ranks[-1] = ranks[-1].removeprefix(f"{ranks[-2]} ")
        tokens = [str(index), *ranks, taxon.get("species") or name]
        yield str(index), ";".join(token.replace(";", ",").lower() for token in tokens)


def _images(rows: Rows) -> Iterator[tuple[list[str], bool]]:
    """Images as JSON, some at a time, and whether they are failures."""
    kinds = rows.kinds
    for unit in rows.units(["sample", "top_indices", "top_probabilities"]):
        columns = (unit.predictions[name].to_pylist() for name in ("sample", "top_indices", "top_probabilities"))
        yield [_image(name, top, told, kinds[top[0]]) for name, top, told in zip(*columns, strict=True)], False
    for table in rows.quarantined():
        told = (table[name].to_pylist() for name in ("sample", "error_type", "message"))
        yield [_text({"file": sample, "failure": f"{kind}: {text}", "detections": None})
               for sample, kind, text in zip(*told, strict=True)], True  # fmt: skip


def _image(sample: str, classes: list[int], probabilities: list[float], kind: str) -> str:
    """An image of a blank has no detection, and loses its classes with it."""
    if kind == BLANK:
        return _text({"file": sample, "detections": []})
    told = [round(probability, _DECIMALS) for probability in probabilities]
    pairs = [[str(index), probability] for index, probability in zip(classes, told, strict=True)]
    whole = {"category": _CATEGORY[kind], "conf": told[0], "bbox": [0.0, 0.0, 1.0, 1.0], "classifications": pairs}
    return _text({"file": sample, "detections": [whole]})


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)

"""COCO Camera Traps: COCO's JSON with one annotation per image, and no boxes."""

import json
import shutil
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from birder_ray.export.rows import BLANK, Made, Rows, Unit
from birder_ray.export.target import opened

EMPTY = {"id": 0, "name": "empty"}
_DECIMALS = 6


def write(rows: Rows, path: Path, name: str) -> Made:
    """Write all samples to `path`. Annotations wait in a temporary file until the last image is written."""
    images, kinds = 0, rows.kinds
    with opened(path, name) as file, TemporaryFile(prefix="birder-ray-") as later:
        told = {"info": _info(rows), "categories": _categories(rows)}
        file.write(f'{json.dumps(told, ensure_ascii=False, indent=1)[:-2]},\n "images": ['.encode())
        for unit in rows.units(["sample", "probability", "top_indices"]):
            samples = unit.predictions["sample"].to_pylist()
            _put(file, not images, _images(samples, unit))
            _put(later, not images, _annotations(samples, unit, kinds))
            images += len(samples)
        file.write(b'\n ],\n "annotations": [')
        later.seek(0)
        shutil.copyfileobj(later, file, 2**20)
        file.write(b"\n ]\n}\n")
    quarantined = sum(table.num_rows for table in rows.quarantined())
    return Made({"images": images, "annotations": images}, {"quarantined": quarantined} if quarantined else {})


def _info(rows: Rows) -> dict[str, Any]:
    model, finished = rows.model, datetime.fromisoformat(rows.finished)
    return {
        "version": rows.scores.recipe.key,
        "description": f"Predictions of {model['name']}, weights sha256 {model['weights_sha256']}; not verified",
        "year": finished.year,
        "contributor": f"birder-ray {rows.scores.manifest['versions']['birder-ray']}",
        "date_created": finished.date().isoformat(),
    }


def _categories(rows: Rows) -> list[dict[str, Any]]:
    """Classes from id 1 on: 0 is that of empty images in COCO Camera Traps, and the background in COCO."""
    found: list[dict[str, Any]] = [EMPTY]
    for index, (name, taxon) in enumerate(zip(rows.names(), rows.classes.to_pylist(), strict=True)):
        name = f"{name} ({index})" if name == EMPTY["name"] else name
        ranks = {rank: taxon[rank] for rank in rows.ranks if taxon[rank]}
        above = {"supercategory": ranks["class"]} if "class" in ranks else {}
        found.append({"id": index + 1, "name": name, **above, **ranks})
    return found


def _images(samples: list[str], unit: Unit) -> Iterable[dict[str, Any]]:
    if unit.photos is None:
        yield from ({"id": sample, "file_name": sample} for sample in samples)
        return
    told = zip(samples, *(column.to_pylist() for column in unit.photos.columns), strict=True)
    for sample, date, latitude, longitude in told:
        known = {"date_captured": date and str(date), "latitude": latitude, "longitude": longitude}
        known = {key: value for key, value in known.items() if value is not None}
        yield {"id": sample, "file_name": sample, **known}


def _annotations(samples: list[str], unit: Unit, kinds: Any) -> Iterable[dict[str, Any]]:
    probabilities = unit.predictions["probability"].to_pylist()
    for sample, classes, score in zip(samples, unit.predictions["top_indices"].to_pylist(), probabilities, strict=True):
        category = 0 if kinds[classes[0]] == BLANK else classes[0] + 1
        yield {"id": sample, "image_id": sample, "category_id": category, "score": round(score, _DECIMALS)}


def _put(file: IO[bytes], first: bool, values: Iterable[dict[str, Any]]) -> None:
    text = ",\n  ".join(json.dumps(value, ensure_ascii=False) for value in values)
    file.write(("\n  " if first else ",\n  ").encode() + text.encode())

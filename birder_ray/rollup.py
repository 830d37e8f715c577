"""`rollup`: how far up the taxonomy each prediction is certain, beside what a regional checklist leaves of it.

Written to `rollup/`, one part per unit of `predictions`, in its order. A part has the name of its unit and replaces any
that stood there; `rollup/_about.json` goes first and comes last, so where it stands, the parts are all of its making.
"""

from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from birder_ray.bounds import BOUNDS
from birder_ray.checklist import Checklist, read_checklist
from birder_ray.classes import RANKS
from birder_ray.commit import Ledger
from birder_ray.errors import ConfigError
from birder_ray.folder import to_json
from birder_ray.lineages import common_names, lineages
from birder_ray.parts import encode
from birder_ray.photos import Photos
from birder_ray.photos import photos as opened
from birder_ray.record import Record
from birder_ray.rolling import KEYS, Rows
from birder_ray.schema import PREDICTIONS, ROLLUP, ROLLUP_ABOUT
from birder_ray.scores import Scores
from birder_ray.storage import redact
from birder_ray.taxonomy import Taxonomy


@dataclass(frozen=True)
class OfPhotos:
    """sha256: of the file. images: that it has. dates, places: images with a date, and with a place."""

    sha256: str
    images: int
    dates: int
    places: int


@dataclass(frozen=True)
class RolledUp:
    """What was made.

    Args:
        finished: whether the run had come to its end. confidence: that a taxon had to reach.
        exact: from all classes' probabilities; else from the stored top ones, and every probability is a lower bound.
        rows: images. ranks: images by the lowest rank that was certain enough, "none" where none was.
        without_taxon: classes of which no taxon is known. checklist: classes on it. not_classes: its names that are no
            taxon of the model. photos: what the file of dates and places had of the images.
    """

    recipe: str
    finished: bool
    confidence: float
    exact: bool
    rows: int
    ranks: Mapping[str, int]
    without_taxon: int
    checklist: int | None = None
    not_classes: tuple[str, ...] = ()
    photos: OfPhotos | None = None


def rollup(
    url: str,
    options: Mapping[str, Any] | None = None,
    *,
    confidence: float = 0.65,
    taxonomy: str | None = None,
    names: str | None = None,
    checklist: str | None = None,
    photos: str | None = None,
    sample_column: str = "sample",
    memory: str = "1GB",
) -> RolledUp:
    """Add `rollup/` to a destination: for each image, the likeliest taxon of every rank, and the lowest certain one.

    A taxon is as likely as its classes together. As SpeciesNet does it: where no species reaches `confidence`, the
    likeliest genus may, and so on up.

    Args:
        url: of the destination. options: fsspec options for it. confidence: from 0 to 1.
        taxonomy: CSV or Parquet file with `class_name` and a column per rank, where the names of the classes carry
            none. names: JSON file of common names by class index, as birder's inat21-mapping.json.
        checklist: file of the taxa that occur where the photos are from, one a line, or a CSV or Parquet file's first
            column, with bounds besides, as `read_checklist` has them.
        photos, sample_column, memory: file of dates and places, as `birder_ray.photos` has it, if there are bounds.

    Raises:
        ConfigError: there is no taxonomy, a file is missing or is not what it should be, or the destination is damaged.
        RunFailed: the join needs more memory, or a run at work changed what is read.
    """
    if not 0 < confidence <= 1:
        raise ConfigError(f"--confidence {confidence:g}: give a probability above 0, up to 1")
    scores = Scores(url, options)
    scores.needs(PREDICTIONS)
    classes = lineages(scores.classes, taxonomy)
    common = common_names(names, classes.num_rows) if names else None
    listed = read_checklist(checklist, classes) if checklist else None
    _check(checklist, listed, photos)
    table = Rows(Taxonomy(classes), classes["class_name"].to_pylist(), confidence, common, listed)
    with opened(scores, photos, sample_column, memory) if photos else nullcontext() as known:
        exact, ranks = _write(scores, table, known)
    done = RolledUp(
        scores.recipe.key,
        scores.finished,
        confidence,
        exact,
        ranks.total(),
        dict(ranks.most_common()),
        _without(classes),
        int(listed.classes.sum()) if listed else None,
        listed.unknown if listed else (),
        OfPhotos(known.sha256, known.found, known.dates, known.places) if known else None,
    )
    scores.write(ROLLUP_ABOUT, to_json(asdict(done)))
    return done


def _check(checklist: str | None, listed: Checklist | None, photos: str | None) -> None:
    """Raises ConfigError for a checklist with bounds and no photos to hold against them, or the other way round."""
    bounds = f"{', '.join(BOUNDS[:-1])} or {BOUNDS[-1]}"
    if photos and not (listed and listed.bounded):
        of = f"{redact(checklist)} has" if checklist else "without --checklist there are"
        raise ConfigError(f"--photos {redact(photos)}: {of} no bounds; give a checklist with columns {bounds}")
    if checklist and listed and listed.bounded and not photos:
        raise ConfigError(
            f"{redact(checklist)}: has bounds ({bounds}): give --photos FILE, which says where and when the images "
            "were taken, or a checklist without these columns"
        )


def _write(scores: Scores, table: Rows, known: Photos | None) -> tuple[bool, Counter[str]]:
    """Write the parts. Returns whether they are exact, and images by the lowest rank that was certain enough."""
    stored = scores.recipe.facts["tables"][PREDICTIONS]
    # With test-time augmentation the probabilities are a mean over views, which no mean of logits gives back
    exact = bool(stored["logits"] and not stored.get("tta"))
    columns = {PREDICTIONS: [*KEYS, "top_indices", "top_probabilities", *(["logits"] if exact else [])]}
    ledger, ranks, written = Ledger(scores.folder), Counter[str](), set[str]()
    scores.delete(ROLLUP_ABOUT)
    units = known.recorded(columns) if known else ((*unit, None) for unit in scores.recorded(columns))
    for record, (predictions,), where in units:
        made = table.of(predictions, where)
        ranks.update(name or "none" for name in made["rollup_rank"].to_pylist())
        scores.write(f"{ROLLUP}/{record.unit}.parquet", encode(made, _metadata(record)))
        written.add(record.unit)
    for unit in ledger.parts(ROLLUP) - written:
        scores.delete(f"{ROLLUP}/{unit}.parquet")
    return exact, ranks


def _without(classes: pa.Table) -> int:
    known = [classes[rank].is_valid().to_numpy() for rank in RANKS if rank in classes.column_names]
    return int((~np.any(known, axis=0)).sum())


def _metadata(record: Record) -> dict[str, str]:
    return {"birder_ray.unit": record.unit, "birder_ray.predictions": record.parts[PREDICTIONS].sha256}

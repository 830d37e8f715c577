"""An export: which format takes which options, and where the result goes."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from typing import Any

from birder_ray.errors import ConfigError
from birder_ray.export import coco, csv, dwca, huggingface, megadetector
from birder_ray.export.rows import Made, Options, Rows
from birder_ray.export.target import whole_file, whole_folder
from birder_ray.folder import Folder
from birder_ray.photos import photos
from birder_ray.scores import Scores
from birder_ray.storage import redact

_OF_PHOTOS = ("sample_column", "memory")
_PHOTOS = ("photos", *_OF_PHOTOS)
_TAKES: Mapping[str, tuple[str, ...]] = {
    "csv": ("taxonomy", "rollup", *_PHOTOS, "escape_formulas"),
    "dwca": (
        "taxonomy", "rollup", *_PHOTOS, "blank", "person", "vehicle", "min_probability", "metadata", "media_url",
    ),
    "megadetector": ("taxonomy", "blank", "person", "vehicle"),
    "coco": ("taxonomy", *_PHOTOS, "blank"),
    "huggingface": ("rollup", "metadata"),
}  # fmt: skip
FORMATS = tuple(_TAKES)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        where: URL, fit to be shown. finished: whether the run had come to its end. made: what the format says.
    """

    to: str
    where: str
    finished: bool
    made: Made


def export(
    url: str,
    to: str,
    output: str,
    told: Options | None = None,
    options: Mapping[str, Any] | None = None,
    output_options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a destination in another format.

    The same destination and options give the same bytes. What is at `output` is whole, or it is not there.

    Args:
        url: of the destination. to: one of FORMATS. output: file to make, for huggingface a folder; local or any fsspec
            URL. told: options of the format. options, output_options: fsspec's, for `url` and `output`.
        overwrite: what is at `output`.

    Raises:
        ConfigError: an option is not one of the format, a file is missing or not what it should be, the destination is
            damaged, or `output` is there already or cannot be written. RunFailed: storage does not give a part now.
    """
    told = told or Options()
    _check(to, told)
    scores = Scores(url, options)
    _apart(scores.folder, Folder(output, output_options))
    with ExitStack() as stack:
        dated = None
        if told.photos:
            dated = stack.enter_context(photos(scores, told.photos, told.sample_column, told.memory))
        rows = Rows(scores, told, dated)
        place = (output, dict(output_options or {}), overwrite)
        if to == "huggingface":
            about = huggingface.ready(rows)
            with whole_folder(*place, huggingface.CARD) as filled:
                made = huggingface.write(rows, filled, about)
        else:
            with whole_file(*place) as path:
                if to == "dwca":
                    made = dwca.write(rows, path)
                else:
                    made = {"csv": csv, "megadetector": megadetector, "coco": coco}[to].write(
                        rows, path, output.rstrip("/")
                    )
    return Exported(to, redact(output), scores.finished, made)


def lines(done: Exported) -> Iterator[str]:
    """What to say of it."""
    what = ", ".join(f"{count:,} {name}" for name, count in done.made.counts.items())
    yield f"export   {done.where}: {what}"
    if done.made.left_out:
        yield "left out " + ", ".join(f"{count:,} {reason}" for reason, count in done.made.left_out.items())
    if not done.finished:
        yield "note     the run is unfinished: exported is what is committed by now"
    for note in done.made.notes:
        yield f"note     {note}"


def _apart(scores: Folder, output: Folder) -> None:
    """Raises ConfigError where an export would be written among the tables, or in place of the folder they are in."""
    place, tables = (f"{os.path.realpath(each.path) if each.local else each.path}/" for each in (output, scores))
    if scores.fs.protocol == output.fs.protocol and (place.startswith(tables) or tables.startswith(place)):
        which = "inside" if place.startswith(tables) else "a folder above"
        raise ConfigError(f"--output {redact(output.url)}: is {which} the destination; choose a place outside")


def _check(to: str, told: Options) -> None:
    """Raises ConfigError for an option that the format would not heed."""
    if to not in _TAKES:
        raise ConfigError(f"--to {to}: give one of {', '.join(FORMATS)}")
    given = asdict(told)
    for field in fields(Options):
        if given[field.name] != field.default and field.name not in _TAKES[to]:
            flag = "no-rollup" if field.name == "rollup" else field.name.replace("_", "-")
            formats = ", ".join(name for name, takes in _TAKES.items() if field.name in takes)
            raise ConfigError(f"--{flag} says nothing to --to {to}, but to {formats}; leave it out")
    if told.photos is None and (alone := [name for name in _OF_PHOTOS if given[name] != getattr(Options, name)]):
        raise ConfigError(f"--{alone[0].replace('_', '-')} says nothing without --photos FILE; leave it out")
    if not 0 <= told.min_probability <= 1:
        raise ConfigError(f"--min-probability {told.min_probability:g}: give a probability, 0 to 1")

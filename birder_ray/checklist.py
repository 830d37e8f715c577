"""Checklists: which of a network's classes occur where and when a photo was taken.

A row of a list may be bounded by a box and a season. Images are put together by the bounds that they are within, so
that the classes of each such group are found once.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from birder_ray.bounds import ALWAYS, ANYWHERE, BOUNDS, box, in_boxes, in_seasons, season
from birder_ray.classes import RANKS
from birder_ray.errors import ConfigError
from birder_ray.lineages import plain, text_table, whole_file
from birder_ray.storage import has_suffix, redact

_HEADERS = {"class name", "common name", "name", "scientific name", "scientificname", "species", "taxon", *RANKS}
"""What the first line of a checklist in CSV may say without being one of its names; `scientificName` is GBIF's."""

_EMPTY = ("", "nan")
_PRODUCTS = 8_000_000


@dataclass(frozen=True)
class Checklist:
    """The classes that a list has, and the bounds within which it has them.

    Args:
        bounded: whether any row has bounds. classes: (n,) booleans, those on the list within any bounds. unknown: names
            that are no class or taxon.
    """

    bounded: bool
    classes: np.ndarray
    unknown: tuple[str, ...]
    _boxes: np.ndarray
    _seasons: np.ndarray
    _rows: np.ndarray
    """(r, 3): class, box and season, by class."""

    @property
    def at_once(self) -> int:
        """So many images at once take no more than some 100 MB."""
        return max(1, _PRODUCTS // max(len(self._rows), len(self.classes), len(self._boxes) + len(self._seasons)))

    def of(self, where: pa.Table | None, images: int) -> tuple[np.ndarray, np.ndarray]:
        """The classes that each image is held against.

        What is not known of an image excludes nothing.

        Args:
            where: a row per image, of `date`, `latitude` and `longitude`; None: nothing is known of any.

        Returns:
            (g, classes) booleans, a set of classes for each group of images; (images,) the group of each.
        """
        within = np.ones((len(self._boxes) + len(self._seasons), images), bool)  # by rows, which are fast to pick
        if where is not None:
            within = np.vstack([in_boxes(self._boxes, where), in_seasons(self._seasons, where)])
        packed = np.ascontiguousarray(np.packbits(within, axis=0).T)
        _, first, group = np.unique(packed, axis=0, return_index=True, return_inverse=True)
        within = np.ascontiguousarray(within[:, first])
        classes, boxes, seasons = self._rows.T
        fits = within[boxes] & within[len(self._boxes) + seasons]
        starts = np.flatnonzero(np.diff(classes, prepend=-1))
        allowed = np.zeros((len(self.classes), len(first)), bool)
        allowed[classes[starts]] = np.logical_or.reduceat(fits, starts)
        return np.ascontiguousarray(allowed.T), group.reshape(-1)


def read_checklist(file: str, classes: pa.Table) -> Checklist:
    """Read a checklist.

    A name is that of a class or of a taxon of any rank, which stands for all of its classes; upper and lower case and
    underscores for spaces are all the same. Rows of one class are alternatives.

    Args:
        file: names, one a line, or a CSV or Parquet file whose first column has them, with any of `BOUNDS` besides.
        classes: with their ranks.

    Raises:
        ConfigError: no name is a class or taxon, or a bound is none.
    """
    names, cells = _told(file)
    columns = [classes[name].to_pylist() for name in ("class_name", *RANKS) if name in classes.column_names]
    own = [{plain(name) for name in row if name} for row in zip(*columns, strict=True)]
    numbers: dict[str, list[int]] = {}
    for number, each in enumerate(own):
        for name in each:
            numbers.setdefault(name, []).append(number)
    boxes, seasons, rows = dict[Any, int](), dict[Any, int](), set[tuple[int, int, int]]()
    for at, name in enumerate(names):
        try:
            where = box(*(cells[bound][at] for bound in BOUNDS[:4]))
            when = season(*(cells[bound][at] for bound in BOUNDS[4:]))
        except ValueError as error:
            raise ConfigError(f"{redact(file)}: {name}: {error}") from None
        key = boxes.setdefault(where, len(boxes)), seasons.setdefault(when, len(seasons))
        rows.update((number, *key) for number in numbers.get(name, ()))
    wanted = set(names) - {""}
    if not rows:
        raise ConfigError(f"{redact(file)}: none of its {len(wanted)} names is a class or taxon of the model")
    found = np.array(sorted(rows), np.int64)
    allowed = np.zeros(len(own), bool)
    allowed[found[:, 0]] = True
    return Checklist(
        bool({*boxes, *seasons} - {ANYWHERE, ALWAYS}),
        allowed,
        tuple(sorted(wanted.difference(numbers, _HEADERS))),
        np.array(list(boxes)),
        np.array(list(seasons)),
        found,
    )


def _told(file: str) -> tuple[list[str], dict[str, list[str]]]:
    """The names, and beside them the cells of each of `BOUNDS`."""
    if not has_suffix(file, ".csv", ".parquet"):
        names = [plain(name) for name in whole_file(file).decode("utf-8-sig", errors="replace").splitlines()]
        return names, {bound: [""] * len(names) for bound in BOUNDS}
    table = text_table(file)
    spelled = {name.strip().casefold(): name for name in table.column_names[1:]}
    names = [plain(name or "") for name in table.column(0).to_pylist()]
    cells = {
        bound: [
            "" if (cell or "").strip().lower() in _EMPTY else cell.strip() for cell in table[spelled[bound]].to_pylist()
        ]
        if bound in spelled
        else [""] * len(names)
        for bound in BOUNDS
    }
    if not spelled.keys() & set(BOUNDS):
        # The first line may be a header or a name: a header is no taxon, and does no harm
        return [plain(table.column_names[0]), *names], {bound: ["", *column] for bound, column in cells.items()}
    return names, cells

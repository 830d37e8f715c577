"""What files say of a network's classes: their taxonomy, their common names, and which of them occur somewhere."""

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from birder_ray.classes import RANKS
from birder_ray.errors import ConfigError
from birder_ray.storage import filesystem, read_whole, redact


def lineages(classes: pa.Table, file: str | None) -> pa.Table:
    """`classes` with the ranks that `file` knows of them, null where it does not; its own ones where there is no file.

    Args:
        classes: of classes.parquet. file: CSV or Parquet with `class_name` and columns named by ranks.

    Raises:
        ConfigError: no rank is known, or the file is not what it should be.
    """
    if file is None:
        if not set(RANKS).intersection(classes.column_names):
            raise ConfigError(
                "the names of these classes carry no taxonomy: give --taxonomy FILE, CSV or Parquet, with class_name "
                f"and any of {', '.join(RANKS)}"
            )
        return classes
    told = _table(file)
    ranks = [rank for rank in RANKS if rank in told.column_names]
    if "class_name" not in told.column_names or not ranks:
        raise ConfigError(f"{redact(file)}: needs a column class_name and any of {', '.join(RANKS)}")
    names = told["class_name"].to_pylist()
    rows = {name: at for at, name in enumerate(names)}
    if len(rows) < len(names):
        twice = next(name for at, name in enumerate(names) if rows[name] != at)
        raise ConfigError(f"{redact(file)}: has {twice} more than once")
    own = classes["class_name"].to_pylist()
    order = pa.array([rows.get(name) for name in own], pa.int64())
    if order.null_count == len(own):
        raise ConfigError(f"{redact(file)}: has none of the classes, which are called as {own[0]}")
    columns = {name: classes[name] for name in ("class_index", "class_name")}
    return pa.table(columns | {rank: told[rank].take(order) for rank in ranks})


def common_names(file: str, classes: int) -> np.ndarray:
    """(classes,) names of the classes, None where `file` has none: JSON, names by class index, as birder's
    inat21-mapping.json.

    Raises ConfigError where it is not that.
    """
    try:
        told: Any = json.loads(_bytes(file))
        found = np.full(classes, None, object)
        for index, name in told.items():
            if not (isinstance(name, str) and 0 <= int(index) < classes):
                raise ValueError(index)
            found[int(index)] = name
    except (ValueError, AttributeError) as error:
        raise ConfigError(
            f"{redact(file)}: is no JSON object of names by class index, from 0 to {classes - 1} ({error})"
        ) from None
    return found


def allowed_classes(file: str, classes: pa.Table) -> tuple[np.ndarray, tuple[str, ...]]:
    """Which classes a checklist has, and which of its names are none.

    A name is that of a class or of a taxon of any rank, which stands for all of its classes; upper and lower case and
    underscores for spaces are all the same.

    Args:
        file: names, one a line, or a CSV or Parquet file whose first column has them. classes: with their ranks.

    Returns:
        (classes,) booleans, and the names that are no class or taxon of these.

    Raises:
        ConfigError: none is.
    """
    names = list(dict.fromkeys(filter(None, map(_plain, _lines(file)))))
    columns = [classes[name].to_pylist() for name in ("class_name", *RANKS) if name in classes.column_names]
    own = [{_plain(name) for name in row if name} for row in zip(*columns, strict=True)]
    wanted = set(names)
    allowed = np.array([bool(each & wanted) for each in own])
    if not allowed.any():
        raise ConfigError(f"{redact(file)}: none of its {len(names)} names is a class or taxon of the model")
    return allowed, tuple(sorted(wanted.difference(*own, _HEADERS)))


_HEADERS = {"class name", "common name", "name", "scientific name", "species", "taxon", *RANKS}
"""What the first line of a checklist in CSV may say without being one of its names."""


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def _lines(file: str) -> list[str]:
    if file.lower().endswith((".csv", ".parquet")):
        table = _table(file)
        # The first line of a CSV file may be a header or a name: a header is no taxon, and does no harm
        return [table.column_names[0], *(name or "" for name in table.column(0).to_pylist())]
    return _bytes(file).decode("utf-8-sig", errors="replace").splitlines()


def _table(file: str) -> pa.Table:
    """Every column as text, null where a cell is empty."""
    data = io.BytesIO(_bytes(file))
    try:
        if file.lower().endswith(".parquet"):
            found = pq.read_table(data)
        else:
            names = pa.csv.open_csv(data).schema.names
            data.seek(0)
            kinds = dict.fromkeys(names, pa.string())
            found = pa.csv.read_csv(
                data,
                convert_options=pa.csv.ConvertOptions(
                    column_types=kinds, strings_can_be_null=True, null_values=[""], quoted_strings_can_be_null=True
                ),
            )
        if len(set(found.column_names)) < len(found.column_names):
            raise ValueError("two columns have one name")
        return found.cast(pa.schema([(name, pa.string()) for name in found.column_names]))
    except (pa.ArrowException, ValueError) as error:
        raise ConfigError(
            f"{redact(file)}: cannot be read as a table: {error}; give CSV in UTF-8, or Parquet"
        ) from None


def _bytes(file: str) -> bytes:
    fs, path = filesystem(file)
    try:
        return read_whole(fs, path)
    except ConfigError:
        raise
    except Exception as error:  # of any filesystem's kind, credentials that are lacking among them
        raise ConfigError(f"{redact(file)}: cannot be read: {error}") from None

"""What files say of a network's classes: their taxonomy and their common names."""

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from birder_ray.classes import RANKS
from birder_ray.errors import ConfigError
from birder_ray.storage import filesystem, has_suffix, read_whole, redact


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
    told = text_table(file)
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
    taxa = {rank: _bare(told[rank]).take(order) for rank in ranks}
    if "genus" in taxa and "species" in taxa:
        taxa["species"] = _whole(taxa["genus"], taxa["species"])
    if all(cells.null_count == len(own) for cells in taxa.values()):
        raise ConfigError(f"{redact(file)}: has no taxon of any class: fill in {', '.join(ranks)}")
    return pa.table(columns | taxa)


def _bare(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """What is only spaces is empty, and spaces around a name make it no other taxon."""
    bare = pc.utf8_trim_whitespace(cells)
    return pc.if_else(pc.equal(bare, ""), pa.scalar(None, pa.string()), bare)


def _whole(genus: pa.ChunkedArray, species: pa.ChunkedArray) -> pa.ChunkedArray:
    """Species with their genus: some taxonomies have the second half of the name alone."""
    half = pc.and_(pc.match_substring_regex(species, r"^[a-z-]+$"), pc.is_valid(genus))
    return pc.if_else(pc.fill_null(half, False), pc.binary_join_element_wise(genus, species, " "), species)


def common_names(file: str, classes: int) -> np.ndarray:
    """(classes,) names of the classes, None where `file` has none: JSON, names by class index, as birder's
    inat21-mapping.json.

    Raises ConfigError where it is not that.
    """
    try:
        told: Any = json.loads(whole_file(file))
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


def plain(name: str) -> str:
    """A name without what makes no difference: case, and underscores for spaces."""
    return " ".join(name.replace("_", " ").split()).casefold()


def text_table(file: str) -> pa.Table:
    """A CSV or Parquet file, every column as text, null where a cell is empty. Raises ConfigError where it is none."""
    data = io.BytesIO(whole_file(file))
    try:
        if has_suffix(file, ".parquet"):
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


def whole_file(file: str) -> bytes:
    """What a file holds, at any fsspec URL. Raises ConfigError where it cannot be read."""
    fs, path = filesystem(file)
    try:
        return read_whole(fs, path)
    except ConfigError:
        raise
    except Exception as error:  # of any filesystem's kind, credentials that are lacking among them
        raise ConfigError(f"{redact(file)}: cannot be read: {error}") from None

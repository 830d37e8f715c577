"""The content of parts: every column decoded, and what must hold of its values whatever the network."""

import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from birder_ray.commit import CLASSES
from birder_ray.folder import Folder
from birder_ray.schema import (
    CLASSES_KEY_FIELDS,
    DECODE,
    EMBEDDINGS,
    ERRORS,
    ERRORS_SCHEMA,
    INFER,
    PREDICTIONS,
    READ,
    embeddings_schema,
    features_schema,
    predictions_schema,
)

_ROWS = 1024
"""Rows decoded at once."""

_ROUNDING = 1e-5
"""Of probabilities (design: within 1e-5)."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with a part. `about_classes`: it does not go with classes.parquet, and either may be wrong."""

    text: str
    about_classes: bool = False


def class_names(folder: Folder) -> tuple[list[str] | None, str]:
    """The names in classes.parquet by index, and what is wrong with that file; None where it tells nothing."""
    try:
        table = pq.read_table(io.BytesIO(folder.read(CLASSES)))
        if list(table.schema)[: len(CLASSES_KEY_FIELDS)] != list(CLASSES_KEY_FIELDS):
            return None, f"{CLASSES}: its columns are not those of a table of classes"
        if table["class_index"].to_pylist() != list(range(table.num_rows)):
            return None, f"{CLASSES}: its classes are not numbered 0, 1, 2, ..."
        return table["class_name"].to_pylist(), ""
    except FileNotFoundError:
        return None, ""  # which has a finding of its own
    except (pa.ArrowException, OSError):
        return None, f"{CLASSES}: cannot be read"


def shape(file: pq.ParquetFile) -> str:
    """Columns and types of a part, to compare parts by."""
    text: str = file.schema_arrow.remove_metadata().to_string(show_field_metadata=False)
    return text


class Oddities:
    """Parts whose columns are not those of most parts of their table: the recipe alone does not give the widths."""

    def __init__(self) -> None:
        self.units: dict[tuple[str, str], list[str]] = defaultdict(list)

    def add(self, unit: str, shapes: Mapping[str, str]) -> None:
        for table, columns in shapes.items():
            self.units[table, columns].append(unit)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Units and what is wrong with them."""
        usual: dict[str, list[str]] = defaultdict(list)
        for (table, _), units in self.units.items():
            usual[table] = max(usual[table], units, key=len)
        for (table, _), units in self.units.items():
            for unit in units if units is not usual[table] else ():
                yield unit, f"{table}/{unit}.parquet: its columns are not those of the other parts of {table}"


class Content:
    """What the parts of one destination must hold.

    Args:
        options: of each table, as the recipe has them. names: of the classes by index, None where not known.
    """

    def __init__(self, options: Mapping[str, Mapping[str, Any]], names: Sequence[str] | None):
        self.options = options
        self.names = names
        self.name_array = None if names is None else pa.array(names, pa.string())

    def problems(self, table: str, file: pq.ParquetFile) -> list[Problem]:
        """What is wrong with the content of a part of `table`, each kind once. Raises ArrowException where a page
        cannot be decoded."""
        found = file.schema_arrow.remove_metadata()
        expected = self._schema(table, found)
        if expected is None or not found.equals(expected):
            return [Problem(f"its columns are not those of the recipe: {_difference(found, expected)}")]
        check = {PREDICTIONS: self._predictions, ERRORS: _errors}.get(table, _vectors)
        problems: dict[Problem, None] = {}
        for batch in file.iter_batches(_ROWS):
            nulls = [f.name for f in expected if f.name != "label" and batch.column(f.name).null_count]
            if nulls:
                problems[Problem(f"nulls in {', '.join(nulls)}")] = None
            else:
                problems |= dict.fromkeys(check(batch))
        return list(problems)

    def _schema(self, table: str, found: pa.Schema) -> pa.Schema | None:
        """The recipe's schema, with the widths of `found` where it does not give them; None: there is no such one."""
        if table == ERRORS:
            return ERRORS_SCHEMA
        widths = {f.name: f.type.list_size for f in found if pa.types.is_fixed_size_list(f.type)}
        options = self.options.get(table)
        if options is None:
            return None
        if table == PREDICTIONS:
            classes = widths.get("logits", 1) if self.names is None else len(self.names)
            return predictions_schema(classes, options["logits"])
        if table == EMBEDDINGS:
            return embeddings_schema(widths.get("embedding", 1), options["dtype"])
        ending = f"_{options['pooling'][0]}"
        levels = {name.removesuffix(ending): width for name, width in widths.items() if name.endswith(ending)}
        if options["levels"] != "all":
            levels = {level: levels.get(level, 1) for level in levels if level in options["levels"]}
            if set(levels) != set(options["levels"]):
                return None
        return features_schema(levels, tuple(options["pooling"]))

    def _predictions(self, batch: pa.RecordBatch) -> Iterator[Problem]:
        lists = ("top_indices", "top_classes", "top_probabilities")
        lengths = [pc.list_value_length(batch.column(name)).to_numpy(zero_copy_only=False) for name in lists]
        wanted = self.options[PREDICTIONS]["top_k"]
        if self.names is not None:
            wanted = min(wanted, len(self.names))
        short = self.names is None and (lengths[0] <= wanted).all()  # how many classes there are is not known
        if any((length != (lengths[0] if short else wanted)).any() for length in lengths):
            yield Problem(f"top lists that do not hold {wanted} classes")
            return
        rows, width = batch.num_rows, int(lengths[0][0])
        indices, classes, top = (batch.column(name).flatten() for name in lists)
        if indices.null_count or classes.null_count or top.null_count or not width:
            yield Problem("nulls in the top lists")
            return
        index = indices.to_numpy().reshape(rows, width)
        probability = top.to_numpy().astype(np.float64).reshape(rows, width)
        yield from _probabilities(batch, probability)
        if (np.diff(np.sort(index, axis=1), axis=1) == 0).any():
            yield Problem("a class twice in a top list")
        if batch.column("prediction").to_pylist() != classes.take(pa.array(np.arange(rows) * width)).to_pylist():
            yield Problem("prediction is not the first of top_classes")
        if self.name_array is not None:
            if (index < 0).any() or (index >= len(self.name_array)).any():
                yield Problem("top_indices beyond the classes")
            elif not self.name_array.take(indices.cast(pa.int64())).equals(classes):
                yield Problem(f"top_classes are not the names that {CLASSES} gives them", about_classes=True)
            if (batch.column("entropy").to_numpy() > np.log(len(self.name_array)) + 1e-3).any():
                yield Problem("entropy above that of guessing")
        yield from self._logits(batch, index, probability)

    def _logits(self, batch: pa.RecordBatch, index: np.ndarray, probability: np.ndarray) -> Iterator[Problem]:
        options = self.options[PREDICTIONS]
        if not options["logits"]:
            return
        flat = batch.column("logits").flatten()
        logits = flat.to_numpy(zero_copy_only=False).astype(np.float64).reshape(batch.num_rows, -1)
        if flat.null_count or not np.isfinite(logits).all():
            yield Problem("logits that are not finite")
        elif not options.get("tta") and not ((index < 0) | (index >= logits.shape[1])).any():
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            own = np.take_along_axis(odds / odds.sum(axis=1, keepdims=True), index, axis=1)
            if (np.abs(own - probability) > _ROUNDING).any():
                yield Problem("top_probabilities are not those of the logits")


def _probabilities(batch: pa.RecordBatch, top: np.ndarray) -> Iterator[Problem]:
    first, entropy = batch.column("probability").to_numpy(), batch.column("entropy").to_numpy()
    if not (np.isfinite(top).all() and np.isfinite(first).all() and np.isfinite(entropy).all()):
        yield Problem("probabilities or entropies that are not finite")
        return
    if (top < 0).any() or (top.sum(axis=1) > 1 + 10 * _ROUNDING).any():
        yield Problem("probabilities outside 0..1")
    if (np.diff(top, axis=1) > 0).any():
        yield Problem("top_probabilities that are not sorted")
    if (first != top[:, 0].astype(np.float32)).any():
        yield Problem("probability is not the first of top_probabilities")
    if (entropy < -_ROUNDING).any():
        yield Problem("entropy below 0")


def _vectors(batch: pa.RecordBatch) -> Iterator[Problem]:
    for name in batch.schema.names[3:]:
        flat = batch.column(name).flatten()
        values = flat.to_numpy(zero_copy_only=False)
        if flat.null_count or not np.isfinite(values).all():
            yield Problem(f"{name}: values that are not finite")
        elif name.endswith("_std") and (values < 0).any():
            yield Problem(f"{name}: below 0")


def _errors(batch: pa.RecordBatch) -> Iterator[Problem]:
    if not set(pc.unique(batch.column("step")).to_pylist()) <= {READ, DECODE, INFER}:
        yield Problem("a step that there is not")
    if "" in pc.unique(batch.column("error_type")).to_pylist():
        yield Problem("errors without a type")


def _difference(found: pa.Schema, expected: pa.Schema | None) -> str:
    names = () if expected is None else expected.names
    off = [f for f in found if f.name not in names or (expected is not None and expected.field(f.name) != f)]
    missing = [name for name in names if name not in found.names]
    told = [*(f"{f.name} is {f.type}" for f in off), *(f"{name} is missing" for name in missing)]
    return ", ".join(told[:5]) or "in another order"

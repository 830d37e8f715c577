"""CSV: one row per sample, as RFC 4180 has it."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from birder_ray.export.rows import Made, Rows, Unit
from birder_ray.export.target import opened
from birder_ray.export.text import commas, escaped, formulas, header, is_text
from birder_ray.photos import ROW

_OF_ROLLUP = (
    "rollup_rank", "rollup_taxon", "rollup_probability", "common_name",
    "checklist_prediction", "checklist_probability", "checklist_mass",
)  # fmt: skip
"""Columns of `rollup/` that are copied. Its likeliest taxon of each rank is not: the names of ranks are the class's."""

_COPIED = ("sample", "shard", "index", "label", "prediction", "probability", "entropy")


def write(rows: Rows, path: Path, name: str) -> Made:
    """Write all samples to `path`, compressed if `name` ends in .gz."""
    samples = risky = 0
    columns: list[str] | None = None
    found: set[str] = set()
    with opened(path, name) as file:
        for unit in rows.units([*_COPIED, "top_indices", "top_probabilities"]):
            table = _flat(rows, unit)
            if columns is None:
                columns = table.column_names
                file.write(header(columns, ",", "\r\n"))
            for at, (column, values) in enumerate(zip(table.column_names, table.columns, strict=True)):
                cells = pc.sum(formulas(values)).as_py() if is_text(values) else 0
                if cells:
                    risky += cells
                    found.add(column)
                    table = table.set_column(at, column, escaped(values)) if rows.told.escape_formulas else table
            file.write(commas(table))
            samples += table.num_rows
        if columns is None:
            file.write(header(["sample"], ",", "\r\n"))
    notes = []
    if risky:
        what = f"{risky:,} cells ({', '.join(sorted(found))}) begin as formulas do"
        notes.append(
            f"{what}, and have an apostrophe before them now"
            if rows.told.escape_formulas
            else f"{what}: import these columns as text, or give --escape-formulas, if this goes to a spreadsheet"
        )
    quarantined = sum(table.num_rows for table in rows.quarantined())
    return Made({"samples": samples}, {"quarantined": quarantined} if quarantined else {}, notes)


def _flat(rows: Rows, unit: Unit) -> pa.Table:
    predictions = unit.predictions
    columns = {name: predictions[name] for name in _COPIED}
    names = rows.classes["class_name"].combine_chunks()
    for place in range(rows.top):
        indices = pc.list_element(predictions["top_indices"], place)
        columns[f"top_{place + 1}_class"] = names.take(indices)
        columns[f"top_{place + 1}_probability"] = pc.list_element(predictions["top_probabilities"], place)
    first = pc.list_element(predictions["top_indices"], 0)
    columns |= {rank: rows.classes[rank].combine_chunks().take(first) for rank in rows.ranks}
    if unit.rollup is not None:
        columns |= {name: unit.rollup[name] for name in _OF_ROLLUP if name in unit.rollup.column_names}
    if unit.photos is not None:
        columns |= {name: unit.photos[name] for name in ROW.names}
    return pa.table(columns)

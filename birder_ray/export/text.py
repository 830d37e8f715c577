"""Rows of Arrow tables as lines of text, made column by column."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

FORMULA = r"^[=+\-@\t\r]"
"""How a cell begins that a spreadsheet would execute."""


def commas(table: pa.Table) -> bytes:
    """RFC 4180: CRLF at the ends of lines, quotes only where they are needed, a null as nothing."""
    return _lines([_quoted(column) for column in table.columns], ",", "\r\n")


def tabs(table: pa.Table) -> bytes:
    """No quotes; what would end a cell or a line, or is no text at all, becomes a space."""
    plain = [pc.replace_substring_regex(column, r"[\x00-\x1f\x7f]+", " ") for column in map(_text, table.columns)]
    return _lines(plain, "\t", "\n")


def header(names: Sequence[str], separator: str, end: str) -> bytes:
    return (separator.join(names) + end).encode()


def formulas(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which cells of a column of text a spreadsheet would execute; no null is."""
    return pc.fill_null(pc.match_substring_regex(column, FORMULA), False)


def escaped(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of text with an apostrophe before each of `formulas`, which a spreadsheet takes for text then."""
    return pc.if_else(formulas(column), pc.binary_join_element_wise("'", column, ""), column)


def is_text(column: pa.ChunkedArray) -> bool:
    return pa.types.is_string(column.type) or pa.types.is_large_string(column.type)


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string())


def _quoted(column: pa.ChunkedArray) -> pa.ChunkedArray:
    text = _text(column)
    if not is_text(column):  # no number or date needs quotes
        return text
    doubled = pc.replace_substring(text, '"', '""')
    return pc.if_else(
        pc.match_substring_regex(text, '[",\r\n]'), pc.binary_join_element_wise('"', doubled, '"', ""), text
    )


def _lines(columns: Sequence[pa.ChunkedArray], separator: str, end: str) -> bytes:
    told = {"null_handling": "replace", "null_replacement": ""}
    rows = pc.binary_join_element_wise(*columns, separator, **told)
    return "".join(f"{row}{end}" for row in rows.to_pylist()).encode()

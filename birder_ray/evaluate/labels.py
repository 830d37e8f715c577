"""Labels: where they are from, row by row, and which class of the model each of them means."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from birder_ray.database import asked, database, opened, quoted, streamed
from birder_ray.errors import ConfigError
from birder_ray.schema import ERRORS, PREDICTIONS, WHOLE_SHARD
from birder_ray.scores import Scores
from birder_ray.storage import redact

ROW = pa.schema([("label", pa.string()), ("probability", pa.float32()), ("top_indices", pa.list_(pa.int32()))])
_WHOLE = re.compile(r"([0-9]{1,9})(?:\.0*)?")
"""A whole number; of a column with gaps, pandas makes 3.0 of 3."""

_SPACES = "".join(filter(str.isspace, map(chr, range(0x3001))))
"""What `str.strip` takes away, the last of which is U+3000; of itself, DuckDB would trim spaces only."""


def class_by_label(labels: Sequence[str], classes: pa.Table) -> tuple[str, Mapping[str, int]]:
    """How labels name classes, `name`, `index` or `scientific name`, and the class of each label that does so.

    The way by which most labels are found is taken, for all of them; the first of the three where several find as
    many. By index only if all labels are whole numbers. A name that two classes share is nobody's.

    Args:
        labels: all that occur, each once. classes: of classes.parquet.

    Raises:
        ConfigError: no label is found in any way.
    """
    names = classes["class_name"].to_pylist()
    species = classes["species"].to_pylist() if "species" in classes.column_names else names
    ways = {"name": {label: label for label in labels}, "scientific name": {each: _plain(each) for each in labels}}
    known = {"name": _unshared(names), "scientific name": _unshared([_plain(name or "") for name in species])}
    found = {way: {label: known[way][key] for label, key in ways[way].items() if key in known[way]} for way in ways}
    whole = {label: match[1] for label in labels if (match := _WHOLE.fullmatch(label))}
    if len(whole) == len(labels):
        found["index"] = {label: int(number) for label, number in whole.items() if int(number) < len(names)}
    order = [way for way in ("name", "index", "scientific name") if way in found]
    best = max(order, key=lambda way: len(found[way]))
    if not found[best]:
        raise ConfigError(
            f"no label is a class of the model, by name, index or scientific name: labels are as {_some(labels)}, "
            f"classes as {_some(names)}; give --labels FILE or --label-column NAME with labels of these classes"
        )
    return best, found[best]


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).lower()


def _unshared(names: Sequence[str]) -> dict[str, int]:
    often = Counter(names)
    return {name: at for at, name in enumerate(names) if name and often[name] == 1}


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) or "(none)"


class OfRun:
    """The labels that the run found at its source, in column `label` of predictions."""

    sha256: str | None = None

    def __init__(self, scores: Scores):
        self._scores = scores

    def distinct(self) -> list[str]:
        """All labels, each once, sorted."""
        found: set[str] = set()
        for rows in self._scores.stream(PREDICTIONS, ["label"]):
            found.update(label.strip() for label in rows["label"].unique().to_pylist() if label)
        return sorted(found - {""})

    def rows(self) -> Iterator[pa.Table]:
        """Every scored sample, as `ROW`."""
        return self._scores.stream(PREDICTIONS, ROW.names)

    def unscored(self, matched: int) -> tuple[int, int]:
        """Samples with a label that were not scored, and those of them that were quarantined: the run keeps no labels
        of such."""
        return 0, 0


@dataclass
class OfFile:
    """The labels of a file, joined to the samples by DuckDB. Other arguments as for `from_file`."""

    connection: Any
    scores: Scores
    sha256: str | None
    file: str

    def distinct(self) -> list[str]:
        rows = self.connection.execute("SELECT DISTINCT label FROM labels WHERE label IS NOT NULL ORDER BY label")
        return [label for (label,) in rows.fetchall()]

    def rows(self) -> Iterator[pa.Table]:
        query = "SELECT label, probability, top_indices FROM stream LEFT JOIN labels USING (sample)"
        yield from self._joined(PREDICTIONS, pa.schema([("sample", pa.string()), *list(ROW)[1:]]), query)

    def unscored(self, matched: int) -> tuple[int, int]:
        ((labels,),) = self.connection.execute("SELECT count(label) FROM labels").fetchall()
        query = (
            f'SELECT count(DISTINCT sample) AS n FROM stream JOIN labels USING (sample) WHERE "index" <> {WHOLE_SHARD} '
            "AND label IS NOT NULL"
        )
        schema = pa.schema([("sample", pa.string()), ("index", pa.int64())])
        (table,) = self._joined(ERRORS, schema, query)
        return labels - matched, table["n"][0].as_py()

    def example(self) -> str:
        ((sample,),) = self.connection.execute("SELECT min(sample) FROM labels").fetchall()
        return str(sample)

    def _joined(self, table: str, schema: pa.Schema, query: str) -> Iterator[pa.Table]:
        tables = self.scores.stream(table, [name for name in schema.names if name != "label"])
        with streamed(self.connection, tables, schema):
            yield from asked(self.connection, query, self.file)


@contextmanager
def from_file(scores: Scores, file: str, sample_column: str, label_column: str, memory: str) -> Iterator[OfFile]:
    """Open a labels file, CSV (with a header, .csv or .csv.gz) or Parquet, local or at any fsspec URL.

    Args:
        sample_column: with ids as in the tables. label_column: empty and null cells are no labels. memory: that DuckDB
            may take; what is more goes to a temporary folder, which TMPDIR says the place of.

    Raises:
        ConfigError: DuckDB is missing, the file is not there or no such file, lacks a column, or has two labels for
            one sample. RunFailed: it needs more memory.
    """
    where = redact(file)
    with database(memory, "a labels file") as (connection, folder):
        with opened(connection, folder, file) as (names, sha256):
            for column, option in ((sample_column, "--sample-column"), (label_column, "--label-column")):
                if column not in names:
                    raise ConfigError(f"{where}: has no column {column}, but {', '.join(names)}; give {option}")
            connection.execute(
                f"CREATE TABLE labels AS SELECT sample, min(label) AS label, max(label) AS other FROM (SELECT "
                f"{quoted(sample_column)}::VARCHAR AS sample, "
                f"nullif(trim({quoted(label_column)}::VARCHAR, '{_SPACES}'), '') AS label FROM file) "
                "WHERE sample IS NOT NULL GROUP BY sample"
            )
        query = "SELECT sample, label, other FROM labels WHERE label <> other ORDER BY sample LIMIT 1"
        if twice := connection.execute(query).fetchall():
            raise ConfigError("{}: sample {} has the labels {} and {}; keep one".format(where, *twice[0]))
        yield OfFile(connection, scores, sha256, file)

"""Where and when photos were taken: a file's dates and places, joined to the scored samples in the order of the parts.

The join is DuckDB's, on disk where it outgrows the memory; here there is never more than a unit of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from birder_ray.database import asked, database, opened, quoted, streamed
from birder_ray.errors import ConfigError, RunFailed
from birder_ray.record import Record
from birder_ray.schema import PREDICTIONS
from birder_ray.scores import Scores
from birder_ray.storage import redact

ROW = pa.schema([("date", pa.date32()), ("latitude", pa.float64()), ("longitude", pa.float64())])

_NAMES = {
    "date": ("date", "eventdate"),
    "latitude": ("latitude", "decimallatitude"),
    "longitude": ("longitude", "decimallongitude"),
}
_KEYS = pa.schema([("sample", pa.string()), ("unit", pa.int32()), ("row", pa.int32())])

_DAY = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME = "[T ][0-9]{2}(:?[0-9]{2}){0,2}([.,][0-9]+)? ?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?"
_COARSE = "[0-9]{4}(-[0-9]{2})?|[0-9]{4}(-[0-9]{2}){0,2}([T ][^/]*)?/[0-9T:.,+Z -]+"
"""A year, a month or a span, as Darwin Core has them too: valid, but no day."""


@dataclass(frozen=True)
class Photos:
    """The scored samples with their dates and places, as `photos` opens them.

    Args:
        sha256: of the file. rows: scored samples. found: those of them that the file has. dates, places: those of which
            it has a date, and both a latitude and a longitude.
    """

    scores: Scores
    file: str
    sha256: str
    rows: int
    found: int
    dates: int
    places: int
    _connection: Any
    _units: Sequence[tuple[str, str]]

    def aligned(self) -> Iterator[tuple[str, pa.Table]]:
        """Name and `ROW`s of each unit that has any in `predictions`, both in the order of the parts; null where the
        file has nothing of a sample."""
        for at, table in self._by_unit():
            yield self._units[at][0], table

    def recorded(
        self, columns: Mapping[str, Sequence[str] | None]
    ) -> Iterator[tuple[Record, tuple[pa.Table, ...], pa.Table]]:
        """As `Scores.recorded` of tables with `predictions` among them, each unit with its `ROW`s besides.

        Raises:
            RunFailed: a run at work has changed the destination since this was opened.
        """
        told = self._by_unit()
        at, rows = next(told, (-1, ROW.empty_table()))
        for record, tables in self.scores.recorded(columns):
            known = (record.unit, record.parts[PREDICTIONS].sha256)
            while at >= 0 and self._units[at] != known:  # what is passed over was taken back by now
                at, rows = next(told, (-1, rows))
            if at < 0:
                raise RunFailed(
                    f"{self.scores.where}: unit {record.unit} has changed since the photos were looked up: a run is at "
                    "work there; do this again when it has ended"
                )
            yield record, tables, rows

    def _by_unit(self) -> Iterator[tuple[int, pa.Table]]:
        pending: list[pa.Table] = []
        current = -1
        for table in asked(self._connection, "SELECT * EXCLUDE row FROM aligned ORDER BY unit, row", self.file):
            units = table["unit"].to_numpy()
            starts = [0, *(np.flatnonzero(np.diff(units)) + 1).tolist(), len(units)]
            for start, stop in pairwise(starts):
                if units[start] != current and pending:
                    yield current, pa.concat_tables(pending)
                    pending = []
                current = int(units[start])
                pending.append(table.slice(start, stop - start).select(ROW.names).cast(ROW))
        if pending:
            yield current, pa.concat_tables(pending)


@contextmanager
def photos(scores: Scores, file: str, sample_column: str = "sample", memory: str = "1GB") -> Iterator[Photos]:
    """Open a file of dates and places, CSV (with a header, .csv or .csv.gz) or Parquet, local or at any fsspec URL.

    Its columns are `date` or `eventDate`, `latitude` or `decimalLatitude` and `longitude` or `decimalLongitude`, in any
    case. A date is ISO 8601, with or without a time, whose zone does not change it. A year, a month or a span of days
    is no date, and a latitude or longitude alone no place.

    Args:
        sample_column: with ids as in the tables. memory: that DuckDB may take; what is more goes to a temporary folder,
            which TMPDIR says the place of.

    Raises:
        ConfigError: DuckDB is missing; the file is not there or no such file, lacks columns, has none of the samples, a
            value that is none, or two for one sample. RunFailed: it needs more memory.
    """
    where = redact(file)
    with database(memory, "a file of dates and places") as (connection, folder):
        with opened(connection, folder, file) as (names, sha256):
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute(_told(_columns(names, sample_column, where), sample_column))
        _refuse(connection, where)
        units: list[tuple[str, str]] = []
        with streamed(connection, _keys(scores, units), _KEYS):
            connection.execute(
                "CREATE TABLE aligned AS SELECT unit, row, date, latitude, longitude, photos.sample IS NOT NULL AS "
                "found FROM stream LEFT JOIN photos USING (sample)"
            )
        ((rows, found, dates, places),) = connection.execute(
            "SELECT count(*), count_if(found), count(date), count(latitude) FROM aligned"
        ).fetchall()
        if rows and not found:
            ((example,),) = connection.execute("SELECT min(sample) FROM photos").fetchall()
            own = next(scores.stream(PREDICTIONS, ["sample"]))["sample"][0].as_py()
            its = "it is empty" if example is None else f"its own are called as {example}"
            raise ConfigError(
                f"{where}: has none of the samples, which are called as {own}; {its}; give --sample-column, or the "
                "ids as they stand in the tables"
            )
        connection.execute("DROP TABLE photos")
        yield Photos(scores, file, sha256, rows, found, dates, places, connection, units)


def _columns(names: Sequence[str], sample_column: str, where: str) -> dict[str, str]:
    """The file's columns by what they hold."""
    if sample_column not in names:
        raise ConfigError(f"{where}: has no column {sample_column}, but {', '.join(names)}; give --sample-column")
    spelled = {name.strip().lower(): name for name in reversed(names)}
    found = {kind: next((spelled[name] for name in known if name in spelled), None) for kind, known in _NAMES.items()}
    if not any(found.values()):
        raise ConfigError(
            f"{where}: has neither dates nor places, but {', '.join(names)}; name its columns date, latitude and "
            "longitude"
        )
    if (found["latitude"] is None) is not (found["longitude"] is None):
        lacking = "latitude" if found["latitude"] is None else "longitude"
        raise ConfigError(f"{where}: has no column {lacking}, but {', '.join(names)}; a place needs both")
    return {kind: name for kind, name in found.items() if name}


def _told(columns: Mapping[str, str], sample_column: str) -> str:
    """The query that makes table `photos`: of each sample its values, and others or a wrong one if it has such."""
    texts = ", ".join(
        f"nullif(nullif(trim({quoted(columns[kind])}::VARCHAR, E' \\t\\r\\n'), ''), 'nan') AS {kind}_text"
        if kind in columns
        else f"NULL::VARCHAR AS {kind}_text"
        for kind in _NAMES
    )
    day = f"try_cast(regexp_extract(date_text, '^({_DAY})({_TIME})?$', 1) AS DATE)"
    place = "latitude_told IS NOT NULL AND longitude_told IS NOT NULL"
    return (
        "CREATE TABLE photos AS SELECT sample, min(date) AS date, min(latitude) AS latitude, "
        "min(longitude) AS longitude, max(date) AS other_date, max(latitude) AS other_latitude, "
        "max(longitude) AS other_longitude, min(wrong) AS wrong FROM (SELECT sample, date, "
        f"CASE WHEN {place} THEN latitude_told END AS latitude, "
        f"CASE WHEN {place} THEN longitude_told END AS longitude, "
        f"CASE WHEN date_text IS NOT NULL AND date IS NULL AND NOT regexp_full_match(date_text, '{_COARSE}') "
        "THEN 'date ' || date_text "
        "WHEN latitude_text IS NOT NULL AND (latitude_told BETWEEN -90 AND 90) IS NOT TRUE "
        "THEN 'latitude ' || latitude_text "
        "WHEN longitude_text IS NOT NULL AND (longitude_told BETWEEN -180 AND 180) IS NOT TRUE "
        "THEN 'longitude ' || longitude_text END AS wrong "
        f"FROM (SELECT *, {day} AS date, try_cast(latitude_text AS DOUBLE) AS latitude_told, "
        "try_cast(longitude_text AS DOUBLE) AS longitude_told FROM "
        f"(SELECT {quoted(sample_column)}::VARCHAR AS sample, {texts} FROM file) WHERE sample IS NOT NULL)) "
        "GROUP BY sample"
    )


def _refuse(connection: Any, where: str) -> None:
    """Raises ConfigError for a value that is none, and for a sample with two."""
    query = "SELECT sample, wrong FROM photos WHERE wrong IS NOT NULL ORDER BY sample LIMIT 1"
    for sample, wrong in connection.execute(query).fetchall():
        raise ConfigError(
            f"{where}: sample {sample} has {wrong}; give dates as 2024-05-31, latitudes from -90 to 90 and longitudes "
            "from -180 to 180, in degrees, and leave a cell empty where there is none"
        )
    for kind in _NAMES:
        query = f"SELECT sample, {kind}, other_{kind} FROM photos WHERE {kind} <> other_{kind} ORDER BY sample LIMIT 1"
        for sample, one, other in connection.execute(query).fetchall():
            raise ConfigError(f"{where}: sample {sample} has the {kind}s {one} and {other}; keep one")


def _keys(scores: Scores, units: list[tuple[str, str]]) -> Iterator[pa.Table]:
    """Every scored sample with its unit's place in `units`, which this fills with names and hashes, and its row."""
    for record, (rows,) in scores.recorded({PREDICTIONS: ["sample"]}):
        at = np.full(rows.num_rows, len(units), np.int32)
        units.append((record.unit, record.parts[PREDICTIONS].sha256))
        yield rows.append_column("unit", pa.array(at)).append_column(
            "row", pa.array(np.arange(len(at), dtype=np.int32))
        )

"""Two destinations joined by sample in DuckDB, on disk, and the questions that are asked of the join.

Every answer is the same whatever the number of threads: lists have an order, and sums are of decimals.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from birder_ray.database import database, streamed
from birder_ray.errors import ConfigError
from birder_ray.schema import ERRORS, PREDICTIONS, WHOLE_SHARD
from birder_ray.scores import Scores

STEPS = 1000
"""Steps of a probability that `shifts` counts by."""

_SCORED = pa.schema([("sample", pa.string()), ("prediction", pa.string()), ("probability", pa.float32())])
_ERRORS = pa.schema(
    [(name, pa.string()) for name in ("sample", "step", "error_type", "message")] + [("index", pa.int64())]
)


class Joined:
    """Tables `a`, `b` (scored), `a_errors`, `b_errors` (quarantined), `a_shards`, `b_shards` (damaged) and `shared`."""

    def __init__(self, connection: Any, a: Scores, b: Scores):
        self._connection = connection
        for name, scores in (("a", a), ("b", b)):
            self._load(name, _SCORED, _scored(scores))
            self._load("found", _ERRORS, scores.stream(ERRORS, _ERRORS.names))
            # A sample is quarantined once, whatever the number of rows about it
            self._connection.execute(
                f"CREATE TABLE {name}_errors AS SELECT sample, min(step) AS step, min(error_type) AS error_type, "
                f'min(message) AS message FROM found WHERE "index" <> {WHOLE_SHARD} GROUP BY sample'
            )
            self._connection.execute(
                f'CREATE TABLE {name}_shards AS SELECT DISTINCT sample FROM found WHERE "index" = {WHOLE_SHARD}'
            )
            self._connection.execute("DROP TABLE found")
        for name, scores in (("a", a), ("b", b)):
            twice = self.ask(f"SELECT sample FROM {name} GROUP BY sample HAVING count(*) > 1 ORDER BY sample LIMIT 1")
            if twice:
                raise ConfigError(f"{scores.where}: {twice[0][0]} stands more than once; birder-ray verify tells where")
        self._connection.execute(
            "CREATE TABLE shared AS SELECT sample, a.prediction AS pa, b.prediction AS pb, a.probability AS qa, "
            "b.probability AS qb FROM a JOIN b USING (sample)"
        )

    def _load(self, name: str, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
        with streamed(self._connection, tables, schema):
            self._connection.execute(f"CREATE TABLE {name} AS FROM stream")

    def ask(self, query: str, **values: object) -> list[tuple[Any, ...]]:
        """The rows that `query` gives."""
        rows: list[tuple[Any, ...]] = self._connection.execute(query, values or None).fetchall()
        return rows

    def count(self, table: str) -> int:
        """Rows of a table, or of a join written as one."""
        return int(self.ask(f"SELECT count(*) FROM {table}")[0][0])

    def classes(self) -> list[tuple[str, int, int, int]]:
        """Of every class predicted: name, samples in A, in B, and in both A and B."""
        return self.ask(
            "SELECT name, sum(a)::BIGINT, sum(b)::BIGINT, sum(same)::BIGINT FROM ("
            "SELECT pa AS name, count(*) AS a, 0 AS b, count_if(pa = pb) AS same FROM shared GROUP BY pa UNION ALL "
            "SELECT pb, 0, count(*), 0 FROM shared GROUP BY pb) GROUP BY name ORDER BY name"
        )

    def pairs(self, limit: int) -> tuple[list[tuple[str, str, int]], int]:
        """The most frequent flips: from, to, samples; and how many kinds there are."""
        flips = "SELECT pa, pb, count(*) AS n FROM shared WHERE pa <> pb GROUP BY pa, pb"
        return self.ask(f"{flips} ORDER BY n DESC, pa, pb LIMIT {limit}"), self.count(f"({flips})")

    def shifts(self) -> list[tuple[bool, int, int, float, float, float, float]]:
        """Changes of the top probability, by whether the class is the same and by `STEPS`: same, step, samples, sum,
        sum of absolutes, least, greatest."""
        return self.ask(
            f"SELECT same, round({STEPS} * shift)::INTEGER AS step, count(*), sum(shift::DECIMAL(18, 9))::DOUBLE, "
            "sum(abs(shift)::DECIMAL(18, 9))::DOUBLE, min(shift), max(shift) FROM "
            "(SELECT pa = pb AS same, qb::DOUBLE - qa::DOUBLE AS shift FROM shared) GROUP BY ALL ORDER BY same, step"
        )

    def confident(self, threshold: float) -> tuple[int, int, int, int]:
        """Flips and samples where either top probability reaches `threshold`, and where both do."""
        either, both = "greatest(qa, qb) >= $least::FLOAT", "least(qa, qb) >= $least::FLOAT"
        ((one, of_one, two, of_two),) = self.ask(
            f"SELECT count_if({either} AND pa <> pb), count_if({either}), count_if({both} AND pa <> pb), "
            f"count_if({both}) FROM shared",
            least=threshold,
        )
        return one, of_one, two, of_two

    def changes(self, limit: int) -> list[tuple[str, str, float, str, float, float]]:
        """The samples that changed most: sample, class and probability in A, in B, and the change.

        Only the top class is known in both. Where it is another, the old one has at most the new one's probability in
        B, and at most what that leaves; and so the other way round. The change is the least difference that follows.
        """
        return self.ask(
            "SELECT sample, pa, qa, pb, qb, change FROM (SELECT sample, pa, qa::DOUBLE AS qa, pb, qb::DOUBLE AS qb, "
            "CASE WHEN pa = pb THEN abs(qb::DOUBLE - qa) ELSE "
            "greatest(qa::DOUBLE - least(qb::DOUBLE, 1 - qb::DOUBLE), qb::DOUBLE - least(qa::DOUBLE, 1 - qa::DOUBLE)) "
            f"END AS change FROM shared) WHERE change > 0 ORDER BY change DESC, sample LIMIT {limit}"
        )

    def chosen(self, limit: int, seed: int) -> list[str]:
        """Samples that are in both, at random but always the same ones, in a fixed order."""
        query = f"SELECT sample FROM shared ORDER BY md5(concat($seed, ':', sample)), sample LIMIT {limit}"
        return [sample for (sample,) in self.ask(query, seed=str(seed))]

    def error_types(self) -> Mapping[str, int]:
        """Of what A scored and B quarantined, samples by type."""
        query = "SELECT b_errors.error_type AS name, count(*) AS n FROM a JOIN b_errors USING (sample)"
        return dict(self.ask(f"{query} GROUP BY name ORDER BY n DESC, name"))


@contextmanager
def joined(a: Scores, b: Scores, memory: str) -> Iterator[Joined]:
    """Load and join both, in a temporary folder (TMPDIR says where) that is gone afterwards.

    Args:
        memory: that DuckDB may take, e.g. "1GB"; what is more goes to the folder.

    Raises:
        ConfigError: DuckDB is not installed, or `memory` is no size. RunFailed: it needs more memory or disk.
    """
    with database(memory, "compare") as (connection, _):
        yield Joined(connection, a, b)


def _scored(scores: Scores) -> Iterator[pa.Table]:
    """The scored samples, from the predictions; where there are none, from any other table, all else null."""
    known = PREDICTIONS in scores.tables
    for rows in scores.stream(PREDICTIONS if known else scores.tables[0], _SCORED.names if known else ["sample"]):
        for field in list(_SCORED)[len(rows.column_names) :]:
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
        yield rows

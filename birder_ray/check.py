"""One unit of a destination by itself: whether its record and its parts are whole and go together."""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pandas.util import hash_array

from birder_ray.commit import Ledger
from birder_ray.deep import Content, shape
from birder_ray.errors import ConfigError, VerifyFailed
from birder_ray.manifest import Recipe
from birder_ray.parts import part_name
from birder_ray.plan import split_name
from birder_ray.record import Record
from birder_ray.schema import ERRORS, KEY_FIELDS, WHOLE_SHARD, part_metadata
from birder_ray.totals import Totals

_KEYS = pa.schema(KEY_FIELDS)
_NONE = np.empty(0, np.uint64)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Args:
        problem: one line that names it. unit: to be done again, which mends it; None where that would not help.
        name: the file it is about, where it is about one. stray: a part that no commit knows; deleting it mends it.
    """

    problem: str
    unit: str | None = None
    name: str = ""
    stray: bool = False

    def __str__(self) -> str:
        return self.problem


@dataclass(frozen=True)
class Checked:
    """What was seen of a unit. `schemas` by table, where its content was looked at."""

    name: str
    record: Record | None
    hashes: np.ndarray
    findings: list[Finding]
    schemas: dict[str, str]


class Check:
    """Checks one unit by itself."""

    def __init__(self, ledger: Ledger, manifest: Mapping[str, Any], content: Content | None):
        self.ledger = ledger
        self.recipe = Recipe(**manifest["recipe"])
        self.unit_rows: int = manifest["unit_rows"]
        self.adding = frozenset(manifest.get("adding", ()))
        self.content = content

    def __call__(self, unit: str) -> Checked:
        try:
            record = self.ledger.read(unit)
            Totals().add(record)  # which takes numbers, and nothing else
        except ConfigError as error:
            return Checked(unit, None, _NONE, [Finding(str(error), unit)], {})
        except (TypeError, AttributeError):
            return Checked(
                unit, None, _NONE, [Finding(f"damaged commit record of {unit}: counts that are no numbers", unit)], {}
            )
        if record.recipe != self.recipe.key:
            return Checked(unit, record, _NONE, [Finding(f"{unit}: committed by another recipe")], {})
        keys: dict[str, pa.Table] = {}
        schemas: dict[str, str] = {}
        findings: list[Finding] = []
        for table in record.parts:
            try:
                keys[table] = self._read(record, table, findings, schemas)
            except VerifyFailed as error:
                findings.append(Finding(str(error), unit, part_name(table, unit)))
        if findings:
            return Checked(unit, record, _NONE, findings, schemas)
        outputs = [keys[table] for table in self.recipe.tables if table in keys]
        held = pa.concat_tables([_KEYS.empty_table(), *outputs[:1], *(keys[t] for t in (ERRORS,) if t in keys)])
        findings = [Finding(problem, unit) for problem in self._misfits(record, outputs, held)]
        names = held.filter(pc.not_equal(held["index"], WHOLE_SHARD))["sample"].to_numpy()
        return Checked(unit, record, hashes_of(names), findings, schemas)

    def _misfits(self, record: Record, outputs: Sequence[pa.Table], held: pa.Table) -> Iterator[str]:
        """How the parts of a unit, each as committed, do not go together."""
        unit, rows = record.unit, self.unit_rows
        due = self.recipe.tables.keys() if record.rows else set()
        has = record.parts.keys() - {ERRORS}
        if has - due or due - has - self.adding:
            yield f"{unit}: a table is missing from its commit"
        if any(not table.equals(outputs[0]) for table in outputs):
            yield f"{unit}: its tables hold different samples"
        if not record.samples == held.num_rows == record.rows + record.errors:
            yield (
                f"{unit}: {record.samples} samples read, but {record.rows} rows and {record.errors} errors committed "
                f"and {held.num_rows} held"
            )
        if not all(shard == record.shard for shard in pc.unique(held["shard"]).to_pylist()):
            yield f"{unit}: holds samples of another shard than {record.shard}"
        indices = np.sort(held["index"].to_numpy())
        own = indices[indices != WHOLE_SHARD]
        first = split_name(unit)[1] * rows
        full = record.end or record.limited or record.damaged or len(own) == rows
        if not full or len(own) > rows or (own != np.arange(first, first + len(own))).any():
            yield f"{unit}: samples are missing between index {first} and {first + rows}"
        if (len(indices) - len(own)) != record.damaged:
            yield f"{unit}: its commit and its errors disagree on whether the shard is damaged"

    def _read(self, record: Record, table: str, findings: list[Finding], schemas: dict[str, str]) -> pa.Table:
        """The key columns of a part, which is what was committed; else raises VerifyFailed. Adds what its content
        gives away to `findings`."""
        name, part = part_name(table, record.unit), record.parts[table]
        try:
            data = self.ledger.folder.read(name)
        except FileNotFoundError:
            raise VerifyFailed(f"{name}: missing") from None
        if len(data) != part.bytes or hashlib.sha256(data).hexdigest() != part.sha256:
            raise VerifyFailed(f"{name}: its content is not what was committed")
        try:
            file = pq.ParquetFile(io.BytesIO(data))
            told = {key.decode(): value.decode() for key, value in (file.metadata.metadata or {}).items()}
            wanted = part_metadata(self.recipe.part(table), record.unit)
            if wanted.items() - told.items() or file.metadata.num_rows != part.rows:
                raise VerifyFailed(f"{name}: its rows or metadata are not what was committed")
            if self.content is not None:
                schemas[table] = shape(file)
                for problem in self.content.problems(table, file):
                    mends = None if problem.about_classes else record.unit
                    findings.append(Finding(f"{name}: {problem.text}", mends, name))
            return file.read(columns=_KEYS.names).cast(_KEYS)
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            raise VerifyFailed(f"{name}: cannot be read: {' '.join(str(error).split())[:200]}") from None


def hashes_of(names: np.ndarray) -> np.ndarray:
    """64 bits of each of an array of strings."""
    hashed: np.ndarray = hash_array(names, categorize=False)
    return hashed

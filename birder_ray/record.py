"""The commit record: what `_commits/<unit>.json` says of a unit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from birder_ray.parts import Part

COMMITS = "_commits"


@dataclass(frozen=True)
class Record:
    """What `_commits/<unit>.json` says.

    Args:
        samples: read from the shard, equals rows + errors. rows: in each output table. errors: in the errors table.
        end: the shard ends with this unit. limited: cut short by --limit, to be done again without it.
        damaged: the shard could not be read further, and the errors hold a row for it.
        seconds: spent by step (read, decode, infer, write), between the steps (wait) and on moving the data from one to
            the other (transfer), summed over the unit's chunks. bytes_read: encoded images.
        engines: rows by the engine that scored them, eager or compiled.
        run: name of the run that committed it. added: those of the runs that added tables to it, by table.
    """

    unit: str
    shard: str
    recipe: str
    samples: int
    rows: int
    errors: int
    end: bool
    limited: bool
    damaged: bool
    parts: dict[str, Part]
    seconds: dict[str, float] = field(default_factory=dict)
    bytes_read: int = 0
    engines: dict[str, int] = field(default_factory=dict)
    finished: str = ""
    run: str = ""
    added: dict[str, str] = field(default_factory=dict)

    def lacks(self, tables: Iterable[str]) -> bool:
        """Whether it has rows, and no part of one of `tables`."""
        return bool(self.rows) and not self.parts.keys() >= set(tables)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Record":
        """Raises TypeError, KeyError or AttributeError where `value` is no record."""
        known = {each.name for each in fields(cls)}  # a later version may say more
        told = {name: item for name, item in value.items() if name in known}
        return cls(**{**told, "parts": {table: Part(**part) for table, part in value["parts"].items()}})


def record_name(unit: str) -> str:
    """Path of a commit record in the destination."""
    return f"{COMMITS}/{unit}.json"

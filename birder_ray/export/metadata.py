"""What its owner says of a data set, in a YAML (or JSON) file: title, creators, licence."""

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from birder_ray.errors import ConfigError
from birder_ray.fields import Texts, read_mapping
from birder_ray.storage import redact

LICENCES = {
    "CC0-1.0": ("Creative Commons Zero v1.0 Universal", "http://creativecommons.org/publicdomain/zero/1.0/legalcode"),
    "CC-BY-4.0": (
        "Creative Commons Attribution 4.0 International",
        "http://creativecommons.org/licenses/by/4.0/legalcode",
    ),
    "CC-BY-NC-4.0": (
        "Creative Commons Attribution Non Commercial 4.0 International",
        "http://creativecommons.org/licenses/by-nc/4.0/legalcode",
    ),
}
"""Name and URL by SPDX identifier: those that GBIF takes, and no others."""

_REQUIRED = ("title", "description", "creators", "licence")
_KEYS = {*_REQUIRED, "contacts", "publisher", "language", "published", "id", "occurrence", "media"}
_PERSON = ("given_name", "surname", "organization", "position", "email", "url", "orcid")


@dataclass(frozen=True)
class Metadata:
    """About a data set.

    Args:
        licence: SPDX identifier, one of LICENCES. creators, contacts: of each some of `given_name`, `surname`,
            `organization`, `position`, `email`, `url`, `orcid`. language: ISO 639. published: ISO 8601 date; None: as
            the run ended. occurrence, media: values of Darwin Core terms that are the same for all.
    """

    title: str
    description: str
    creators: Sequence[Mapping[str, str]]
    licence: str
    contacts: Sequence[Mapping[str, str]]
    publisher: str | None = None
    language: str = "en"
    published: str | None = None
    id: str | None = None
    occurrence: Mapping[str, str] | None = None
    media: Mapping[str, str] | None = None


def read_metadata(file: str) -> Metadata:
    """The metadata in `file`. Raises ConfigError, which names what is wrong, where it is not what GBIF demands."""
    where = redact(file)
    told = read_mapping(file, "metadata file", ", ".join(_REQUIRED), Texts)
    if lacking := [name for name in _REQUIRED if not told.get(name) or not str(told[name]).strip()]:
        raise ConfigError(f"{where}: GBIF demands {', '.join(lacking)} too; docs/export.md has an example")
    if unknown := sorted(set(told) - _KEYS):
        raise ConfigError(f"{where}: {', '.join(unknown)}: not known; it may have {', '.join(sorted(_KEYS))}")
    for name in ("title", "description", "licence", "publisher", "language", "id", "published"):
        if not isinstance(told.get(name) or "", str):
            raise ConfigError(f"{where}: {name} is to be a text")
    if told["licence"] not in LICENCES:
        raise ConfigError(f"{where}: licence {told['licence']}: GBIF takes {', '.join(LICENCES)}")
    creators = _people(told["creators"], "creators", where)
    contacts = _people(told.get("contacts") or told["creators"], "contacts", where)
    day = told.get("published") or None
    if day is not None and not _is_date(day):
        raise ConfigError(f"{where}: published {day}: write it as 2026-11-23")
    texts: dict[str, Any] = {
        name: _texts(told[name], name, where) for name in ("occurrence", "media") if told.get(name)
    }
    given = {name: told[name] for name in ("publisher", "language", "id") if told.get(name)}
    return Metadata(
        told["title"], told["description"], creators, told["licence"], contacts, published=day, **given, **texts
    )


def _people(told: Any, what: str, where: str) -> list[Mapping[str, str]]:
    people = told if isinstance(told, list) else [told]
    for each in people:
        known = isinstance(each, dict) and all(key in _PERSON and _is_text(each[key]) for key in each)
        if not known or not {"surname", "organization", "position"} & each.keys():
            raise ConfigError(
                f"{where}: {what}: each has texts for some of {', '.join(_PERSON)}, and surname, organization or "
                "position"
            )
        if "orcid" in each and not re.fullmatch(r"(\d{4}-){3}\d{3}[\dX]", each["orcid"]):
            raise ConfigError(f"{where}: {what}: orcid {each['orcid']}: write it as 0000-0002-1825-0097")
    return people


def _texts(told: Any, what: str, where: str) -> dict[str, str]:
    if not isinstance(told, dict) or not all(map(_is_text, (*told, *told.values()))):
        raise ConfigError(f"{where}: {what} is a mapping of terms to texts")
    return told


def _is_text(told: Any) -> bool:
    return isinstance(told, str) and bool(told.strip())


def _is_date(text: str) -> bool:
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return bool(re.fullmatch(r"\d{4}-\d{2}-\d{2}", text))

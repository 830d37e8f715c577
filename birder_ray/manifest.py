"""Run identity: the recipe (what determines values) and `manifest.json` (what was read, with what, how much)."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from birder_ray.config import RunConfig
from birder_ray.errors import ConfigError
from birder_ray.folder import Folder
from birder_ray.schema import ERRORS, SCHEMA_VERSION
from birder_ray.storage import redact

MANIFEST = "manifest.json"
_KEYS = {"schema_version", "recipe", "model", "unit_rows", "config", "inputs", "totals"}
_VERSIONED = ("birder-ray", "birder", "torch", "torchvision", "ray", "pyarrow", "pillow", "numpy")


@dataclass(frozen=True)
class ModelFacts:
    """The part of a loaded model that determines values.

    Args:
        weights_sha256: of the checkpoint file. network: birder's name. size: input (height, width) in pixels.
    """

    name: str
    network: str
    weights_sha256: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Recipe:
    """What determines values: `core` for all tables, and one hash per table for that table's own options.

    `key` stands for the whole, as it was before tables were added to it; units are named by it.
    """

    key: str
    core: str
    tables: dict[str, str]
    facts: dict[str, Any]

    @classmethod
    def of(cls, config: RunConfig, model: ModelFacts) -> "Recipe":
        """The recipe of a run. Actor counts, batch size, engine and code version are no part of it."""
        facts = {
            "schema_version": SCHEMA_VERSION,
            "weights_sha256": model.weights_sha256,
            "network": model.network,
            "size": list(model.size),
            **option_facts(config),
        }
        own = facts.pop("tables")
        core = _digest(facts)
        tables = {name: _digest([core, options]) for name, options in own.items()}
        return cls(_digest([core, tables]), core, tables, {**facts, "tables": own})

    def within(self, stored: Mapping[str, Any]) -> "Recipe | None":
        """This recipe under the key of that of a destination, which it may add tables to; None where they differ in
        anything else."""
        if self.core != stored["core"] or stored["tables"].items() - self.tables.items():
            return None
        return replace(self, key=stored["key"])

    def apart(self, mark: str) -> "Recipe":
        """This recipe under a key that no other has: units of the old tables may bear its own."""
        return replace(self, key=_digest([self.key, mark]))

    def part(self, table: str) -> str:
        """Recipe id as a part of `table` carries it."""
        return f"{self.core}-{self.tables[table]}" if table != ERRORS else self.core


def option_facts(config: RunConfig) -> dict[str, Any]:
    """The part of a recipe's facts that follows from the options alone."""
    own: dict[str, dict[str, Any]] = {
        name: getattr(config.outputs, name).model_dump(mode="json") for name in config.outputs.tables
    }
    if "predictions" in own:
        own["predictions"] |= {"tta": config.model.tta, "label_column": config.source.label_column}
    return {
        **config.model.model_dump(include={"center_crop", "simple_crop", "decoder"}),
        **config.compute.model_dump(include={"dtype", "amp"}),
        **({"decode_on": "gpu"} if config.compute.decode_on == "gpu" else {}),
        **config.source.model_dump(include={"image_column", "id_column"}),
        "tables": own,
    }


def difference(facts: Mapping[str, Any], stored: Mapping[str, Any]) -> str:
    """What of `facts` differs from the stored ones, for a message: `size 256 → 384, ...`; empty where nothing does."""
    names = [name for name in dict.fromkeys((*facts, "decode_on")) if facts.get(name) != stored.get(name)]
    return ", ".join(f"{name} {_brief(stored.get(name))} → {_brief(facts.get(name))}" for name in names)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def now() -> str:
    """UTC time, ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Installed versions of what takes part in a run."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def told(config: RunConfig) -> dict[str, Any]:
    """`config` as JSON without secrets: of storage options the names only, of URLs no credentials."""
    fields = config.model_dump(mode="json")
    fields["source"]["uri"] = [_lasting(uri) for uri in config.source.uri]
    fields["source"]["options"] = sorted(config.source.options)
    fields["outputs"] = {table: fields["outputs"][table] for table in config.outputs.tables}
    fields["destination_options"] = sorted(config.destination_options)
    fields["destination"] = redact(config.destination)
    name = config.model.name  # of a published model, a path or a URL
    fields["model"]["name"] = _lasting(name) if os.path.exists(name) else redact(name)
    if config.model.weights_mirror is not None:
        fields["model"]["weights_mirror"] = redact(config.model.weights_mirror)
    return fields


def _lasting(uri: str) -> str:
    """`uri` as it will be understood from another working directory, too; without credentials."""
    return redact(uri) if "://" in uri or uri.startswith("file:") else os.path.abspath(uri)


def new_manifest(config: RunConfig, recipe: Recipe, model: ModelFacts, shards: Sequence[Any]) -> dict[str, Any]:
    """`manifest.json` of a run that begins.

    Args:
        shards: the source's shards, each with `name`, `uri`, `size` and `fingerprint`.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": asdict(recipe),
        "model": asdict(model) | {"name": redact(model.name)},
        "unit_rows": config.compute.unit_rows,
        "config": told(config),
        "versions": versions(),
        "created": now(),
        "finished": None,
        "inputs": [
            {"name": s.name, "uri": redact(s.uri), "size": s.size, "fingerprint": s.fingerprint} for s in shards
        ],
        "totals": None,
        "adding": [],
    }


def reopened(manifest: Mapping[str, Any], source_options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Fields of the RunConfig of the run, as far as its manifest tells: storage options it does not."""
    fields = deepcopy(dict(manifest["config"]))
    fields["source"]["options"], fields["destination_options"] = dict(source_options or {}), {}
    return fields


def lacking_options(manifest: Mapping[str, Any], source_options: Mapping[str, Any] | None) -> str:
    """For a message: the source options that the run had and `source_options` has not; empty where there is none."""
    names = sorted(set(manifest["config"]["source"]["options"]) - set(source_options or {}))
    return f" (the run was given the source options {', '.join(names)}: give them as --source-option)" if names else ""


def load(folder: Folder) -> dict[str, Any] | None:
    """The manifest of `folder`, or None where no run has committed anything yet.

    Raises:
        ConfigError: the file is damaged, or of a later schema than this program knows.
    """
    try:
        manifest = folder.read_json(MANIFEST)
    except FileNotFoundError:
        return None
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or not manifest.keys() >= _KEYS:
        raise ConfigError(
            f"{redact(folder.url)}/{MANIFEST} is damaged, or not of birder-ray: restore it, remove it, or choose "
            f"another --output"
        )
    if manifest["schema_version"] > SCHEMA_VERSION:
        raise ConfigError(
            f"{redact(folder.url)} was written by a later birder-ray; upgrade with: pip install -U birder-ray"
        )
    return manifest


def begun(folder: Folder) -> dict[str, Any]:
    """The manifest of `folder`. Raises ConfigError where no run has begun there, or the folder cannot be reached."""
    folder.check()
    found = load(folder)
    if found is None:
        where = redact(folder.url)
        raise ConfigError(f"{where}: no {MANIFEST}; not a destination of birder-ray, or not begun")
    return found

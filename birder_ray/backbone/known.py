"""What birder's registry says of its classification models, kept in a file: to ask birder takes seconds of imports."""

import hashlib
import json
import logging
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from birder_ray.weights import cache_dir


@dataclass(frozen=True)
class Known:
    """birder's classification models.

    Args:
        version: birder's. networks: architectures by lower-case name, aliases among them.
        pretrained: birder's entry by the name of a published model, in birder's order; those of other tasks too.
    """

    version: str
    networks: tuple[str, ...]
    pretrained: dict[str, Any]

    def names(self, task: str) -> list[str]:
        """Published models for a task."""
        return [name for name, entry in self.pretrained.items() if entry["task"] == task]


@lru_cache(maxsize=1)
def known() -> Known:
    """From birder the first time on this machine, and when birder's files have changed; else from the file."""
    path = cache_dir() / f"birder-{_fingerprint()}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):
        fields = json.loads(path.read_bytes())
        return Known(**fields | {"networks": tuple(fields["networks"])})
    asked = _ask()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with suppress(OSError):  # a home that cannot be written costs the seconds each time
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(asdict(asked)))
        temporary.replace(path)
    return asked


def _fingerprint() -> str:
    """Of birder's source files, by name, size and time."""
    spec = find_spec("birder")
    assert spec is not None and spec.submodule_search_locations, "birder is a dependency"
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(spec.submodule_search_locations[0]):
        folders.sort()
        for name in sorted(file for file in files if file.endswith(".py")):
            status = os.stat(Path(folder, name))
            digest.update(f"{folder}/{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _ask() -> Known:
    import birder
    from birder.model_registry import Task, registry

    logging.getLogger("birder").setLevel(logging.WARNING)
    task = Task.IMAGE_CLASSIFICATION
    aliases = [alias for alias in registry.name_aliases if registry.exists(alias, task=task)]
    pretrained = {name: dict(registry.get_pretrained_metadata(name)) for name in registry.list_pretrained_models()}
    return Known(birder.__version__, (*registry.list_models(task=task), *aliases), pretrained)

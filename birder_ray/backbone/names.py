"""From what the user calls a model to its weights on this machine."""

import difflib
import fnmatch
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from birder_ray import weights as files
from birder_ray.backbone.known import known
from birder_ray.chunk import InputSpec
from birder_ray.config import ModelConfig
from birder_ray.errors import ConfigError

_TASK = "image_classification"

_RENAMED = {"hieradet_small_dino-v2": "hieradet_d_small_dino-v2"}
"""Prefixes of names that birder changed, in the version below."""

_RENAMED_IN = (0, 3, 2)
"""Today's `hieradet_small` is another network of the same shapes: a file from before would load and give wrong numbers.
A file that a later birder wrote means what it says."""


@dataclass(frozen=True)
class Weights:
    """A checkpoint on this machine.

    Args:
        path: local file. sha256: of its bytes. name: as the user gave it, without folder and suffix.
        network: birder's name of the architecture. reparameterized: None if not known.
        size: height and width in pixels that it was saved for. channels: of the input.
        class_names: by class index; none without a classifier.
    """

    path: str
    sha256: str
    name: str
    network: str
    reparameterized: bool | None
    size: tuple[int, int]
    channels: int
    class_names: tuple[str, ...]

    def input_spec(self, model: ModelConfig) -> InputSpec:
        """What an image must look like for this network, used as `model` says."""
        size = model.size or self.size
        return InputSpec(size, model.center_crop, model.simple_crop, model.decoder, channels=self.channels)


def resolve(model: ModelConfig) -> Weights:
    """Find the weights of `model` on this machine, downloading them if need be.

    Raises:
        ConfigError: unknown name, no file, damaged file, or a kind of model that is not supported.
    """
    if files.is_reference(model.name):
        path = files.from_reference(model.name)
        name, published = path.stem, None
    else:
        path, name, published = _by_name(model)
    header = files.read_header(path)
    net: dict[str, Any] = published["net"] if published else {}
    network = model.network or net.get("network") or _network_of(name, header.birder_version)
    if network is None:
        raise ConfigError(f"{path}: the file name does not begin with a birder network; pass --network")
    if network.lower() not in known().networks:
        raise ConfigError(f"{network}: no such birder network{_suggest(network, known().networks)}")
    if header.task not in (None, _TASK):
        raise ConfigError(f"{path}: a model for {header.task}; only image classification is supported")
    return Weights(
        path=str(path),
        sha256=files.sha256_file(path),
        name=name,
        network=network,
        reparameterized=net.get("reparameterized", False) if published else None,
        size=header.size,
        channels=header.channels,
        class_names=header.class_names,
    )


@dataclass(frozen=True)
class Entry:
    """A pretrained model that birder publishes.

    Args:
        size: height and width in pixels. file_mb: size of its file; a quarter of it are millions of parameters.
        classes: None unless the file is here. path: where it is on this machine, None if it is not.
    """

    name: str
    network: str
    size: tuple[int, int]
    file_mb: float
    classes: int | None
    path: str | None


def catalogue(pattern: str) -> list[Entry]:
    """birder's pretrained classification models whose names match the glob `pattern`; a plain word matches anywhere."""
    pattern = pattern if any(character in pattern for character in "*?[") else f"*{pattern}*"
    entries = []
    for name in fnmatch.filter(known().names(_TASK), pattern):
        published = known().pretrained[name]
        here = files.local_file(name, _models_dir())
        classes = len(files.read_header(here).class_names) if here else None
        megabytes = next(iter(published["formats"].values()))["file_size"]
        network, size = published["net"]["network"], tuple(published["resolution"])
        entries.append(Entry(name, network, size, megabytes, classes, str(here) if here else None))
    return entries


def _models_dir() -> Path:
    told = os.environ.get("MODELS_DIR")
    if told or not Path("birder.toml").exists():
        return Path(told or "models")
    from birder.conf import settings  # which read that file

    return Path(settings.MODELS_DIR)


def _published(name: str) -> Any:
    """birder's entry for a pretrained model; None if it has none of this name."""
    entry = known().pretrained.get(name)
    if entry is None:
        return None
    if entry["task"] != _TASK:
        raise ConfigError(f"{name}: a model for {entry['task']}; only image classification is supported")
    if not any(f".{kind}" in files.SUFFIXES for kind in entry["formats"]):
        raise ConfigError(f"{name}: published only as {', '.join(entry['formats'])}, which is not supported")
    return entry


def _by_name(model: ModelConfig) -> tuple[Path, str, Any]:
    """File, name and birder's entry of a model; a file of one's own goes before a name that birder gave up."""
    for name in dict.fromkeys((model.name, _current_name(model.name))):
        published = _published(name)
        path = _find(name, model.weights_mirror, published)
        if path is not None:
            return path, name, published
    names = known().names(_TASK)
    raise ConfigError(
        f"{model.name}: birder {known().version} has no pretrained model of this name"
        f"{_suggest(model.name, names)}; a file of one's own goes to {_models_dir() / model.name}.pt"
    )


def _find(name: str, mirror: str | None, published: Any) -> Path | None:
    formats = published["formats"] if published else {}

    def download(file: str, path: Path) -> None:
        from birder.common import cli, lib

        _, url = lib.get_pretrained_model_url(name, Path(file).suffix[1:])
        cli.download_file(url, path, progress_bar=False)

    hashes = {f".{kind}": entry["sha256"] for kind, entry in formats.items()}
    return files.from_name(name, _models_dir(), mirror, hashes, download if published else None)


def _current_name(name: str) -> str:
    for old, new in _RENAMED.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _network_of(name: str, birder_version: tuple[int, ...]) -> str | None:
    """The longest network name that begins `name`; birder's files are called `<network>_<tag>`."""
    name = (_current_name(name) if () < birder_version < _RENAMED_IN else name).lower()
    candidates = [network for network in known().networks if name == network or name.startswith(f"{network}_")]
    return max(candidates, key=len, default=None)


def _suggest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    return f"; did you mean {', '.join(close)}?" if close else ""

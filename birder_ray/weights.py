"""Weight files: from a reference or a name to a file of this machine, and what its header says. Needs no birder."""

import hashlib
import io
import json
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pickletools import genops
from typing import Any

from filelock import FileLock

from birder_ray.errors import ConfigError
from birder_ray.retries import retry
from birder_ray.storage import filesystem, is_local, join, redact

SUFFIXES = (".pt", ".safetensors")

_MOST = 1_000_000
"""Classes, or pixels of a side: a file that speaks of more is damaged, or made to fill the memory."""

Download = Callable[[str, Path], None]
"""Writes the file of a name and suffix, e.g. `("hgnet_v2_b2_danube-delta.pt", path)`, from birder's own site."""


@dataclass(frozen=True)
class Header:
    """What a birder checkpoint says of itself.

    Args:
        size: input height and width in pixels. channels: of the input. class_names: by class index.
        task: birder's name of it, if any. birder_version: that wrote the file, `()` if unknown.
    """

    size: tuple[int, int]
    channels: int
    class_names: tuple[str, ...]
    task: str | None
    birder_version: tuple[int, ...]


def sha256_file(path: str | Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_dir() -> Path:
    """Where downloaded weights are kept: `BIRDER_RAY_CACHE`, else `~/.cache/birder-ray`."""
    return Path(os.environ.get("BIRDER_RAY_CACHE") or Path.home() / ".cache" / "birder-ray").expanduser()


def is_reference(name: str) -> bool:
    """Whether a MODEL names a file or URL, not one of birder's models."""
    return "://" in name or "/" in name or Path(name).suffix in (*SUFFIXES, ".pts", ".pt2", ".ptl", ".onnx", ".pth")


def from_reference(reference: str) -> Path:
    """The local file of a path or URL; a URL is downloaded once per machine and kept by its URL.

    Raises:
        ConfigError: no such file, a format that is not supported, or the URL cannot be read.
    """
    suffix = Path(reference.partition("?")[0]).suffix
    if suffix not in SUFFIXES:
        raise ConfigError(
            f"{redact(reference)}: {suffix or 'a file without suffix'} is not supported; "
            "give a birder checkpoint (.pt or .safetensors)"
        )
    if not is_local(reference):
        return _fetch(reference, None)
    path = Path(filesystem(reference)[1])
    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint")
    return path


def local_file(name: str, models_dir: Path) -> Path | None:
    """The file of a model name that is on this machine already, in `models_dir` or downloaded before."""
    paths = [folder / (name + suffix) for folder in (models_dir, cache_dir() / "birder") for suffix in SUFFIXES]
    return next((path for path in paths if path.is_file()), None)


def from_name(
    name: str, models_dir: Path, mirror: str | None, known: Mapping[str, str], download: Download | None
) -> Path | None:
    """The local file of a model name: from `models_dir`, the mirror, or birder's site, in this order.

    Args:
        models_dir: birder's folder of weights. mirror: URL of a folder with the same file names.
        known: published sha256 by suffix. download: birder's downloader; None if birder does not publish the model.

    Returns:
        None if there is no such file and nothing to download.

    Raises:
        ConfigError: a file is not the published one, or nothing can be reached; the message names the remedy.
    """
    files = [name + suffix for suffix in SUFFIXES]
    for file in files:
        path = models_dir / file
        if path.is_file():
            _check(path, known.get(path.suffix))
            return path
    if mirror is not None:
        for file in files:
            url = join(mirror, file)
            if _exists(url):
                return _fetch(url, known.get(Path(file).suffix))
    suffix = next((suffix for suffix in SUFFIXES if suffix in known), None)
    if download is None or suffix is None:
        return None
    file = name + suffix
    try:
        return _fetch(file, known[suffix], download)
    except OSError as error:
        raise ConfigError(
            f"{models_dir / file}: not there, and birder's site cannot be reached ({_brief(error)}); put the file "
            "there (MODELS_DIR), or pass --weights-mirror URL, or give the path of the file as MODEL"
        ) from None


def read_header(path: Path) -> Header:
    """Read the header of a checkpoint, its tensors left on the disk.

    Raises:
        ConfigError: not a birder checkpoint, damaged, not safe to open, or its reader is not installed.
    """
    try:
        content = _safetensors_metadata(path) if path.suffix == ".safetensors" else _torch_content(path)
        _, channels, height, width = content["signature"]["inputs"][0]["data_shape"]
        classes = content["signature"]["outputs"][0]["data_shape"][1]
        if not all(type(n) is int and 0 < n <= _MOST for n in (channels, height, width)):
            raise ValueError(f"an input of {channels} x {height} x {width}")
        if type(classes) is not int or not 0 <= classes <= _MOST:
            raise ValueError(f"{classes} classes")
        names = [f"class_{index}" for index in range(classes)]
        for name, index in content["class_to_idx"].items():
            if type(index) is not int or not 0 <= index < classes:
                raise ValueError(f"class {name} has the index {index}, of {classes}")
            names[index] = str(name)
        version = tuple(int(part) for part in re.findall(r"\d+", str(content.get("birder_version", "")))[:3])
        return Header((height, width), channels, tuple(names), content.get("task"), version)
    except pickle.UnpicklingError:
        raise ConfigError(f"{path}: damaged, or holds more than tensors and is not opened for safety") from None
    except ConfigError:
        raise
    except Exception as error:  # a hostile pickle or JSON makes its readers raise what it likes
        raise ConfigError(f"{path}: not a birder checkpoint, or damaged: {_brief(error)}") from None


class _WithoutTensors(pickle.Unpickler):
    """Reads a checkpoint of tensors and plain values, None for each tensor; refuses every other name, and so all code.
    To import torch for this takes seconds."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return _no_tensor
        if module == "torch" and name.endswith("Storage"):
            return None
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> None:
        return None


def _no_tensor(*_: Any) -> None:
    return None


def _allocates(opcode: str, argument: Any, pickled: bytes) -> bool:
    """Whether a few bytes of a pickle would make its reader fill the memory."""
    return opcode == "BYTEARRAY8" or (opcode in ("PUT", "LONG_BINPUT") and argument > len(pickled))


def _torch_content(path: Path) -> dict[str, Any]:
    content: dict[str, Any]
    with suppress(Exception), zipfile.ZipFile(path) as archive:  # whatever is unusual is torch's to judge
        (entry,) = [each for each in archive.infolist() if each.filename.split("/")[1:] == ["data.pkl"]]
        if entry.compress_type == zipfile.ZIP_STORED:
            pickled = archive.read(entry)
            if not any(_allocates(opcode.name, argument, pickled) for opcode, argument, _ in genops(pickled)):
                content = _WithoutTensors(io.BytesIO(pickled)).load()
                return content
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return content


def _safetensors_metadata(path: Path) -> dict[str, Any]:
    if find_spec("safetensors") is None:
        raise ConfigError(f"{path}: safetensors files need one more package: pip install safetensors")
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        metadata = json.loads(file.read(min(length, path.stat().st_size)))["__metadata__"]
    return metadata | {key: json.loads(metadata[key]) for key in ("signature", "class_to_idx")}


def _fetch(source: str, sha256: str | None, download: Download | None = None) -> Path:
    """Download once per machine: others wait for the lock, then find the file."""
    folder = cache_dir() / (hashlib.sha256(source.encode()).hexdigest()[:16] if download is None else "birder")
    path = folder / Path(source.partition("?")[0]).name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.is_file() and sha256 in (None, sha256_file(path)):
            return path
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            if download is None:
                _copy(source, temporary)
            else:
                download(source, temporary)
            _check(temporary, sha256, source)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def _copy(url: str, target: Path) -> None:
    fs, path = filesystem(url)
    try:
        retry(lambda: fs.get_file(path, str(target)))
    except Exception as error:  # every filesystem has exceptions of its own
        raise ConfigError(f"{redact(url)}: cannot be read: {_brief(error)}") from None


def _exists(url: str) -> bool:
    fs, path = filesystem(url)
    try:
        retry(lambda: fs.info(path))  # fsspec's own `exists` takes any failure for a no
    except FileNotFoundError:
        return False
    except Exception as error:
        raise ConfigError(f"{redact(url)}: the mirror cannot be read: {_brief(error)}") from None
    return True


def _check(path: Path, sha256: str | None, source: str | None = None) -> None:
    actual = sha256_file(path)
    if sha256 not in (None, actual):
        raise ConfigError(
            f"{redact(source) if source else path}: sha256 {actual[:12]}… is not the published {sha256[:12]}…: "
            "damaged, or another version; delete it, or pass it as MODEL by its path to use it as it is"
        )


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

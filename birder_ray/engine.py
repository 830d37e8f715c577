"""The engine: a scorer run eagerly until it is compiled, to a package of native code that is kept for later runs.

Nobody waits for the compiler. It takes 20 to 40 s of a core, in a process of its own, while the actor scores eagerly;
the actor goes over to the package once that is there and gives the same numbers for a batch.
"""

import hashlib
import json
import logging
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from math import inf
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from filelock import FileLock

from birder_ray.device import hardware, settle
from birder_ray.errors import RunFailed
from birder_ray.scoring import FINITE, Results, Scorer
from birder_ray.taps import close
from birder_ray.weights import cache_dir

logger = logging.getLogger(__name__)

_WORTH_S = 120.0
"""Seconds of eager work, ahead or behind, from which on `auto` compiles: a third of what is ahead is saved."""

_KEPT_DAYS = 60
_EXACT, _ROUGH = 1e-4, 3e-2
"""Differences, relative to the largest value of a column, that are no longer rounding: in float32, and below."""

_PROMISED = {"top_probabilities": 1e-5, "embedding": 1e-4}
_PROMISED_MEAN = 1e-4
"""The absolute bounds of float32 numbers that users rely on."""


def package_path(recipe: Any, batch_size: int, device: torch.device) -> Path:
    """Where the package for `recipe` (JSON values) is kept: its name depends on everything that goes into it."""
    parts = {
        "recipe": recipe,
        "batch_size": batch_size,
        "device": hardware(device),
        "threads": None if device.type == "cuda" else torch.get_num_threads(),  # their number becomes part of the code
        "versions": [torch.__version__, *map(version, ("torchvision", "birder", "birder-ray"))],
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "engines" / f"{digest[:24]}.pt2"


def compile_package(scorer: Scorer, pixels: torch.Tensor, path: Path) -> None:
    """Write the package of `scorer`, for batches like `pixels`, to `path`, whole or not at all; forget old ones.

    Raises whatever torch's exporter and compiler raise.
    """
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.pt2")
    # Freezing folds batch norms into the convolutions and lays the weights out as the CPU wants them
    options = {"freezing": pixels.device.type == "cpu"}
    try:
        with torch.no_grad():
            program = torch.export.export(scorer, (pixels,))
            torch._inductor.aoti_compile_and_package(program, package_path=str(temporary), inductor_configs=options)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    for other in path.parent.glob("*.pt2"):
        with suppress(FileNotFoundError):  # another process clears up, too
            if time.time() - other.stat().st_mtime > _KEPT_DAYS * 86_400:
                other.unlink()


def agree(ours: Results, eager: Results, exact: bool, promised: bool) -> bool:
    """Whether a package gives what the network gives, for the images that are finite.

    Args:
        exact: the network computes in float32. promised: keep the absolute bounds of the contract too, which numbers of
            great size cannot.
    """
    if ours.keys() != eager.keys() or not torch.equal(ours[FINITE], eager[FINITE]):
        return False
    for name in eager.keys() - {FINITE, "top_indices"}:  # near ties may change places
        a, b = (results[name][eager[FINITE]].float() for results in (ours, eager))
        if not b.numel():
            continue
        bound = _PROMISED.get(name, _PROMISED_MEAN if name.endswith("_mean") else inf) if exact and promised else inf
        if not close(a, b, _EXACT if exact else _ROUGH) or float((a - b).abs().max()) > bound:
            return False
    return True


class Engine:
    """Scores batches, as fast as it can by now.

    Args:
        scorer: on its device. exact: it computes in float32. wanted: auto, eager or compiled.
        options: keyword arguments with which `Infer` builds the same scorer in another process, but for `batch_size`
            and `threads`.
        recipe: what determines the code, as JSON values. batch_size: images of the batches that it is made for.
        images: that are ahead of this actor, None where unknown.
    """

    def __init__(
        self,
        scorer: Scorer,
        exact: bool,
        wanted: str,
        options: Mapping[str, Any],
        recipe: Any,
        batch_size: int,
        images: float | None = None,
    ):
        self.scorer = scorer
        self.exact = exact
        self.wanted = wanted
        self.batch_size = batch_size
        self._options = {**options, "batch_size": batch_size, "threads": torch.get_num_threads()}
        self._path = package_path(recipe, batch_size, scorer.mean.device)
        self._images = images or 0.0
        self._spent: list[float] = []
        self._compiling: Thread | None = None
        self._problem = ""
        self._package: Callable[[torch.Tensor], Results] | None = None
        self._settled = wanted == "eager"

    @property
    def compiled(self) -> bool:
        """Whether the package is in use."""
        return self._package is not None

    @property
    def name(self) -> str:
        """Of the engine in use: eager or compiled."""
        return "compiled" if self.compiled else "eager"

    def __call__(self, pixels: torch.Tensor) -> Results:
        """Score (B, H, W, C) pixels on the device.

        Raises:
            RunFailed: a compiled engine is wanted, and cannot be had.
        """
        fits = len(pixels) == self.batch_size and pixels.dtype == torch.uint8
        if fits and self._package is not None:
            return self._package(pixels)
        started = time.perf_counter()
        results: Results = self.scorer(pixels)
        if fits and not self._settled:
            settle(pixels.device)
            self._spent.append(time.perf_counter() - started)
            self._advance(pixels, results)
        return results

    def _advance(self, pixels: torch.Tensor, eager: Results) -> None:
        """The next step on the way from eager to compiled, if it is time for it."""
        if self._path.exists():
            self._settled = True
            self._load(pixels, eager)
        elif self._compiling is None:
            if self.wanted == "compiled" or self._worth():
                self._compiling = Thread(target=self._compile, daemon=True)
                self._compiling.start()
        elif not self._compiling.is_alive():
            self._settled = True
            self._give_up(self._problem or f"{self._path} has gone")

    def _worth(self) -> bool:
        """Decided from the second batch on: the first one warms up."""
        ahead = min(self._spent) / self.batch_size * (self._images - len(self._spent) * self.batch_size)
        return len(self._spent) > 1 and max(ahead, sum(self._spent)) > _WORTH_S

    def _compile(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self._path}.lock"):  # one actor of a machine compiles, the others wait
                if not self._path.exists():
                    self._problem = _compile_elsewhere(self._options, self._path)
        except OSError as error:
            self._problem = str(error)

    def _load(self, pixels: torch.Tensor, eager: Results) -> None:
        try:
            os.utime(self._path)  # it is in use
            package = torch._inductor.aoti_load_package(str(self._path))
            same = agree(package(pixels), eager, self.exact, promised=self.wanted == "auto")
        except (OSError, RuntimeError) as error:
            self._path.unlink(missing_ok=True)  # the next run makes it anew
            self._give_up(str(error))
            return
        if same:
            self._package = package
            self._compiling = None
        else:
            self._give_up("its numbers are not those of the network")

    def _give_up(self, problem: str) -> None:
        if self.wanted == "compiled":
            raise RunFailed(f"the network cannot be compiled on this machine: {problem}; use --engine eager")
        logger.warning("going on without a compiled network: %s", problem)


def _compile_elsewhere(options: Mapping[str, Any], path: Path) -> str:
    """Compile in a process that ends with this one. Returns what went wrong, if anything."""
    command = [sys.executable, "-m", "birder_ray.compiling"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stderr is not None
        child.stdin.write(pickle.dumps((dict(options), path)))
        child.stdin.flush()  # and left open: the child ends where it is closed
        said = child.stderr.read().decode(errors="replace").strip().splitlines()
        code = child.wait()
    return "" if code == 0 else (said[-1] if said else f"the compiler ended with exit code {code}")

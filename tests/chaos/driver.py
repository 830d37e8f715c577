"""`birder-ray run PIPELINE.yaml` in a process that can be told to fail: `python -m tests.chaos.driver FOLDER`.

What is to go wrong stands as files in FOLDER, each taken by the one process that removes it: so it goes wrong once,
wherever Ray puts the actor. The classes below are this module's own, `__main__`, and so travel by value.
"""

import datetime
import os
import sys
import time as real_time
from pathlib import Path
from typing import Any

from birder_ray import cli, lock, runtime

FOLDER = sys.argv[1] if __name__ == "__main__" else ""
BEAT_S, STALE_S = 0.5, 4.0


def taken(folder: str, name: str) -> bool:
    """Whether a file `name-*` stood there, and was ours to remove."""
    for path in Path(folder).glob(f"{name}-*"):
        try:
            path.unlink()
            return True
        except FileNotFoundError:
            continue
    return False


def _fail_to_start(folder: str, step: str) -> None:
    if taken(folder, f"{step}-raises"):
        raise OSError(5, "Input/output error")
    if taken(folder, f"{step}-dies"):
        os._exit(1)


class _PreprocessActor(runtime._PreprocessActor):
    def __init__(self, *told: Any, **named: Any):
        _fail_to_start(FOLDER, "preprocess")
        super().__init__(*told, **named)


class _InferActor(runtime._InferActor):
    def __init__(self, *told: Any, **named: Any):
        _fail_to_start(FOLDER, "infer")
        super().__init__(*told, **named)
        import torch  # not earlier: its libraries mark a process that is inside its start

        batch = self.infer._batch

        def scarce(engine: Any, pixels: Any) -> Any:
            if (len(pixels) > 1 and taken(FOLDER, "memory")) or Path(FOLDER, "no-memory").exists():
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            return batch(engine, pixels)

        self.infer._batch = scarce


def _offset_s() -> float:
    """How wrong this machine's clock is now."""
    try:
        return float(Path(FOLDER, "clock").read_text())
    except (FileNotFoundError, ValueError):
        return 0.0


class _Clock(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime.datetime:  # type: ignore[override]
        return datetime.datetime.now(tz) + datetime.timedelta(seconds=_offset_s())


class _Time:
    def __getattr__(self, name: str) -> Any:
        return getattr(real_time, name)

    def time(self) -> float:
        return real_time.time() + _offset_s()


if __name__ == "__main__":
    runtime._PreprocessActor = _PreprocessActor  # type: ignore[misc]
    runtime._InferActor = _InferActor  # type: ignore[misc]
    lock.BEAT_S, lock.STALE_S = BEAT_S, STALE_S  # type: ignore[misc]
    lock.datetime, lock.time = _Clock, _Time()  # type: ignore[misc,assignment]
    Path(FOLDER, "started").touch()  # from here on, a signal is for birder-ray
    sys.argv = ["birder-ray", "run", str(Path(FOLDER, "pipeline.yaml"))]
    cli.main()

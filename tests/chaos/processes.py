"""Real processes of a run: starting them, finding them, and sending them signals. Only those of ours, by pid."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_NUMBERS = itertools.count()


def send(pid: int, number: int) -> bool:
    """Whether there was such a process."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def family(temporary: Path) -> dict[int, str]:
    """Pids and command lines of everything that runs with this RAY_TMPDIR, but not this process."""
    found = {}
    wanted = f"RAY_TMPDIR={temporary}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    found.pop(os.getpid(), None)
    return found


def short(name: str) -> Path:
    """A new folder under a short path, for Ray's sockets."""
    folder = Path(f"/tmp/brc-{os.getpid()}-{name}-{next(_NUMBERS)}")
    folder.mkdir(parents=True)
    return folder


class Driver:
    """A `birder-ray run` with faults to come, in a process group of its own.

    Args:
        config: the pipeline file. temporary: RAY_TMPDIR, which marks what it starts. faults: names of files that tell
            `tests.chaos.driver` what is to go wrong.
    """

    def __init__(self, config: dict[str, Any], temporary: Path, faults: tuple[str, ...] = ()):
        self.temporary = temporary
        self.folder = temporary / f"driver-{next(_NUMBERS)}"
        self.folder.mkdir()
        (self.folder / "pipeline.yaml").write_text(json.dumps(config))  # JSON is YAML
        for name in faults:
            (self.folder / name).touch()
        environment = {
            **os.environ,
            "RAY_TMPDIR": str(temporary),
            "PYTHONPATH": str(ROOT),
            "BIRDER_RAY_DEBUG": "1",
            "COLUMNS": "400",
        }
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.driver", str(self.folder)],
                env=environment, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def await_start(self) -> None:
        """Until its imports are done, in which nobody minds signals."""
        while not (self.folder / "started").exists() and not self.ended:
            time.sleep(0.05)

    def signal(self, number: int) -> bool:
        return not self.ended and send(self.process.pid, number)

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None while it still runs."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def said(self) -> str:
        """The last line it printed."""
        lines = (self.folder / "log").read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-6000:]

    def end(self, private: bool) -> None:
        """SIGKILL to the driver and, where the Ray is its own, to all that it started."""
        send(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
        deadline = time.monotonic() + 30
        while private and (left := family(self.temporary)) and time.monotonic() < deadline:
            for pid in left:
                send(pid, signal.SIGKILL)
            time.sleep(0.1)

"""One run at a time per destination: a lock file with its owner and a heartbeat."""

import json
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from birder_ray.errors import LockHeld
from birder_ray.folder import Folder
from birder_ray.storage import redact

LOCK = "_lock.json"
BEAT_S = 10.0
STALE_S = 60.0
_NOBODY = {
    "token": "",
    "host": "nobody: the lock was damaged",
    "pid": "0",
    "boot": "",
    "time": "1970-01-01T00:00:00+00:00",
}


@dataclass(frozen=True)
class Fence:
    """Raises LockHeld, when called, where the lock of `folder` does not bear `token` any more."""

    folder: Folder
    token: str

    def __call__(self) -> None:
        if _owner(self.folder).get("token") != self.token:
            raise LockHeld(f"{redact(self.folder.url)}: another run took over while this one was silent; it stops here")


class Lock:
    """Context manager that owns `_lock.json` of a destination while it is entered.

    A lock whose process is gone from this very machine, or whose heartbeat is older than a minute, is taken over;
    `taken_from` then says whose it was.

    Raises:
        LockHeld: another run is alive.
    """

    def __init__(self, folder: Folder):
        self.folder = folder
        self.token = uuid.uuid4().hex
        self.fence = Fence(folder, self.token)
        self.taken_from: str | None = None
        self.lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="birder-ray-lock", daemon=True)

    def __enter__(self) -> "Lock":
        for _ in range(3):
            if self.folder.create(LOCK, self._content()) or self._take_over():
                break
        else:
            raise LockHeld(f"{redact(self.folder.url)}: another run took the lock at the same moment; try again")
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        if not self.lost and _owner(self.folder).get("token") == self.token:
            self.folder.delete(LOCK)

    def _content(self) -> bytes:
        owner = {
            "token": self.token,
            "host": socket.gethostname(),
            "pid": str(os.getpid()),
            "boot": _boot(),
            "time": _now(),
        }
        return json.dumps(owner).encode()

    def _take_over(self) -> bool:
        """Whether the lock is ours now. Raises LockHeld where its owner is alive."""
        version, owner = self.folder.version(LOCK), _owner(self.folder)
        if version is None or not owner:
            return False  # let go of meanwhile
        who = f"{owner['host']} (pid {owner['pid']})"
        age = time.time() - datetime.fromisoformat(owner["time"]).timestamp()
        here = owner["host"] == socket.gethostname() and owner["boot"] == _boot()
        gone = owner is _NOBODY or (here and not _alive(int(owner["pid"])))
        # By a clock that is ahead of ours it was seen in the future: only its heart tells
        if not gone and (0 <= age < STALE_S or self._beats(owner)):
            raise LockHeld(
                f"{redact(self.folder.url)} is being written by another run on {who}, last seen {age:.0f} s ago; "
                f"wait for it, stop it, or choose another --output (a dead run's lock lapses after {STALE_S:.0f} s)"
            )
        if not self.folder.replace(LOCK, self._content(), version):
            return False
        self.taken_from = who
        return True

    def _beats(self, owner: dict[str, str]) -> bool:
        """Whether a lock that looks old is alive all the same: its owner's clock may be slow."""
        time.sleep(2 * BEAT_S)
        return _owner(self.folder) not in ({}, owner)

    def check(self) -> None:
        """Raises LockHeld where the lock is not ours any more."""
        self.fence()

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                version = self.folder.version(LOCK)
                if version is None or _owner(self.folder).get("token") != self.token:
                    self.lost = True
                    return
                self.folder.replace(LOCK, self._content(), version)
            except Exception:
                continue  # storage is away for a moment, with an exception of its own kind; the next beat tells


def _owner(folder: Folder) -> dict[str, str]:
    try:
        owner = folder.read_json(LOCK)
    except FileNotFoundError:
        return {}
    except ValueError:
        return _NOBODY
    try:
        datetime.fromisoformat(owner["time"]).timestamp(), int(owner["pid"])
        return {name: str(owner[name]) for name in _NOBODY}
    except (TypeError, KeyError, ValueError):
        return _NOBODY


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _boot() -> str:
    """What must be equal for a pid to mean the same process: this start of this machine, and the pid namespace."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""A cluster of `ray start` on one machine that is as good as several: every node has its own network, shared memory and
temporary folder. Needs root and iproute2."""

import contextlib
import os
import secrets
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from socket import create_connection, socket

from tests.chaos.processes import short

RAY = str(Path(sys.executable).with_name("ray"))
STORE = 128 * 1024**2


def possible() -> bool:
    """Whether this machine lets us."""
    if os.geteuid() or not (shutil.which("ip") and shutil.which("unshare")):
        return False
    probe = f"br-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
        return False
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return True


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Machines:
    """A head without CPUs at `address`, where this process is, and machines that are added.

    Args:
        environment: of all nodes, besides a token that only they and `environment` of this object know.
    """

    def __init__(self, environment: Mapping[str, str], port: int):
        mark = os.getpid() % 250
        self.bridge, self.subnet = f"brr{mark}", f"10.231.{mark}"
        self.host = f"{self.subnet}.1"
        self.address = f"{self.host}:{port}"
        self.temporary = short("nodes")
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment = {**os.environ, **environment, **token}
        self.names: list[str] = []
        self.started: list[subprocess.Popen] = []

    def __enter__(self) -> "Machines":
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "add", f"{self.host}/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")
        host, port = self.address.split(":")
        self._start(
            ["start", "--head", f"--node-ip-address={host}", f"--port={port}", "--num-cpus=0",
             "--include-dashboard=false", f"--temp-dir={self.temporary}"],
            "head",
        )  # fmt: skip
        return self

    def add(self) -> str:
        """Another machine of two CPUs, with folders of its own; returns its name."""
        number = len(self.names) + 1
        name, link, address = f"{self.bridge}-{number}", f"{self.bridge}v{number}", f"{self.subnet}.{10 + number}"
        _ip("netns", "add", name)
        self.names.append(name)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", link, "master", self.bridge, "up")
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", name, "link", "set", device, "up")
        own = f"mount -t tmpfs tmpfs /dev/shm && mount -t tmpfs tmpfs {self.temporary}"
        self._start(
            ["start", f"--address={self.address}", f"--node-ip-address={address}", "--num-cpus=2",
             f"--object-store-memory={STORE}"],
            name,
            ["ip", "netns", "exec", name, "unshare", "--mount", "sh", "-c", f'{own} && exec "$0" "$@"'],
        )  # fmt: skip
        return name

    def cache(self, name: str) -> Path:
        """Where a machine keeps its weights."""
        return self.temporary.with_name(f"{self.temporary.name}-cache-{name}")

    def address_of(self, name: str) -> str:
        return f"{self.subnet}.{10 + self.names.index(name) + 1}"

    def lose(self, name: str) -> None:
        """The power of a machine goes."""
        pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True).stdout
        for pid in map(int, pids.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _start(self, arguments: list[str], name: str, inside: list[str] | None = None) -> None:
        with (self.temporary.with_name(f"{self.temporary.name}-{name}.log")).open("wb") as log:
            process = subprocess.Popen(
                [*(inside or []), RAY, *arguments, "--block", "--disable-usage-stats"],
                env={**self.environment, "BIRDER_RAY_CACHE": str(self.cache(name))},
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        time.sleep(1)
        assert process.poll() is None, Path(log.name).read_text()[-2000:]

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            self.lose(name)
            subprocess.run(["ip", "netns", "del", name], check=False)
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pid in _holding(self.temporary):
            os.kill(pid, signal.SIGKILL)
        subprocess.run(["ip", "link", "del", self.bridge], check=False)
        for left in self.temporary.parent.glob(f"{self.temporary.name}*"):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()


def _holding(folder: Path) -> list[int]:
    """Processes whose command line speaks of `folder`: those of the head's Ray that are in sessions of their own."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


class Forwarder(socketserver.ThreadingTCPServer):
    """Hands connections on to a server that listens on loopback alone; counts the GETs of each client by path."""

    allow_reuse_address, daemon_threads = True, True

    def __init__(self, address: tuple[str, int], to: tuple[str, int]):
        self.gets: Counter[tuple[str, str]] = Counter()
        self.to = to
        super().__init__(address, _Connection)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Connection(socketserver.BaseRequestHandler):
    server: Forwarder

    def handle(self) -> None:
        with create_connection(self.server.to) as there:
            threading.Thread(target=_pump, args=(there, self.request, None), daemon=True).start()

            def look(data: bytes) -> None:
                if data.startswith(b"GET "):
                    path = data.split(b" ", 2)[1].decode().partition("?")[0]
                    self.server.gets[self.client_address[0], path] += 1

            _pump(self.request, there, look)


def _pump(one: socket, other: socket, look) -> None:
    try:
        while data := one.recv(1 << 16):
            if look:
                look(data)
            other.sendall(data)
    except OSError:
        pass
    finally:
        with contextlib.suppress(OSError):
            other.shutdown(2)

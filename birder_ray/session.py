"""Ray itself: a private local one or a cluster's, for the length of a run, and what hardware it has."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

from birder_ray.errors import LOG_FORMAT, ConfigError, RunFailed
from birder_ray.sizes import Hardware

_GIB = 1024**3
_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray warns on every machine without GPUs
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its C++ side writes to our standard error
}
_REACH_S = 10
_ENDED = (
    "the run ended while Ray was starting, most likely because this machine is too busy to answer Ray in time; nothing "
    "is lost, run the same command again"
)
_ENDED_JSON = {
    "time": "%s",
    "level": "error",
    "event": "failed",
    "error": "RunFailed",
    "message": _ENDED,
    "exit_code": 1,
}


@contextmanager
def session(address: str | None) -> Iterator[Hardware]:
    """Ray for the length of a run: a private local one, or a cluster's.

    Args:
        address: None for a private Ray, shut down afterwards; `auto` or `host:port` to attach to a cluster.

    Yields:
        What the cluster has.

    Raises:
        ConfigError: no cluster answers at `address`, or it is of another version. RunFailed: Ray does not start.
    """
    for setting, value in _QUIET.items():
        os.environ.setdefault(setting, value)
    for name in ("ray", "ray.data"):  # what goes wrong in there is told once, by us, in one line
        logging.getLogger(name).setLevel(logging.ERROR if os.environ.get("BIRDER_RAY_DEBUG") else logging.CRITICAL)
    attached = ray.is_initialized()
    if not attached:
        _start(address)
    try:
        shared = attached or address is not None
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield Hardware.of(nodes, shared)
    finally:
        if not attached:
            ray.shutdown()


def _start(address: str | None) -> None:
    local: dict[str, Any] = (
        {"object_store_memory": _object_store(), "include_dashboard": False} if address is None else {}
    )
    if os.environ.get(LOG_FORMAT) == "json":
        local["logging_config"] = ray.LoggingConfig(encoding="JSON", log_level="WARNING")
    # Deaths of workers are dealt with (guard.py); Ray would print them on the driver's standard output, whatever
    # log_to_driver says, and has no setting against it
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    try:
        _reach(address)
        # Standard error is where Ray says which log level it was told to use
        with _told_if_ended(), _silent_stderr(), _own_sigterm():
            handlers = list(logging.getLogger().handlers)
            ray.init(address=address or "local", logging_level="error", log_to_driver=False, **local)
            logging.getLogger().handlers[:] = handlers  # Ray would write what this process logs once more
    except ConnectionError as error:
        if "AuthenticationError" in f"{error} {error.__cause__}":
            raise ConfigError(
                f"the Ray cluster at {address} asks for another token: set RAY_AUTH_MODE=token and "
                f"RAY_AUTH_TOKEN_PATH, or RAY_AUTH_TOKEN, as on its head"
            ) from None
        raise ConfigError(f"no Ray cluster answers at {address}; leave out --ray-address to run locally") from None
    except Exception as error:
        if address is not None:
            raise ConfigError(f"the Ray cluster at {address} cannot be joined: {error}") from error
        raise RunFailed(f"Ray did not start: {error} Nothing is lost, run the same command again") from error


def job() -> str:
    """Name of this run among the jobs of its Ray, in whose logs the workers' lines have it; empty without Ray."""
    return str(ray.get_runtime_context().get_job_id()) if ray.is_initialized() else ""


def _object_store() -> int:
    """Bytes for what is on its way between the steps: 2 GiB, and more on machines that have several GPUs to feed."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        shared = os.statvfs("/dev/shm")
    except OSError:
        return 2 * _GIB
    return max(2 * _GIB, min(memory // 12, shared.f_bavail * shared.f_frsize * 3 // 4))


def _reach(address: str | None) -> None:
    """Raises ConnectionError where nobody listens at `host:port`, which Ray itself would try for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except OSError as error:
        raise ConnectionError(str(error)) from error


@contextmanager
def _told_if_ended() -> Iterator[None]:
    """Ray's core ends this process, with exit code 1 and not a word, where its raylet does not answer within 30 s: a
    shell that waits beside it says so."""
    script = 'read -r started || printf "$1\\n" "$(date -u +%FT%T.000+00:00)" >&2'
    said = json.dumps(_ENDED_JSON) if os.environ.get(LOG_FORMAT) == "json" else f"error: {_ENDED}"
    watcher = subprocess.Popen(["/bin/sh", "-c", script, "sh", said], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        with suppress(BrokenPipeError):  # a Ctrl-C has ended it already
            watcher.communicate(b"\n")


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """What SIGTERM does afterwards is what it did before: Ray makes it end the process there and then."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Standard error of this process and its children to nowhere; exceptions still tell what goes wrong."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)

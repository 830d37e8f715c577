"""Ray that does not start: one plain line and the right exit code, whatever Ray's own way of failing."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from birder_ray import session
from tests.chaos.processes import short

pytestmark = [pytest.mark.ray, pytest.mark.slow]

START = """
import sys
address = sys.argv[1] or None
from birder_ray import cli, session
def start(config):
    with session.session(address):
        print("up")
cli._run = start
sys.argv = ["birder-ray", "score", "photos", "--model", "m.pt", "--output", "out"]
cli.main()
"""

FREEZE = """
import os, signal, subprocess
import ray
connect = ray._private.worker.connect
def frozen(*args, **kwargs):
    children = subprocess.run(["pgrep", "-P", str(os.getpid()), "raylet"], capture_output=True, text=True)
    (raylet,) = map(int, children.stdout.split())
    os.kill(raylet, signal.SIGSTOP)
    wake = f"sleep 60; kill -CONT {raylet}"  # so that it sees that its driver has gone
    subprocess.Popen(["sh", "-c", wake], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return connect(*args, **kwargs)
ray._private.worker.connect = frozen
"""


def _start(code: str, address: str = "", **environment: str) -> subprocess.CompletedProcess:
    told = {**os.environ, "RAY_TMPDIR": str(short("session")), **environment}
    return subprocess.run(
        [sys.executable, "-c", code, address], env=told, check=False, capture_output=True, text=True, timeout=200
    )


def test_a_start_that_succeeds_says_nothing():
    done = _start(START)
    assert (done.returncode, done.stdout, done.stderr) == (0, "up\n", "")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_raylet_too_slow_to_answer_is_told(form):
    done = _start(FREEZE + START, BIRDER_RAY_LOG=form)
    assert (done.returncode, done.stdout) == (1, "")
    if form == "text":
        assert done.stderr == f"error: {session._ENDED}\n"
    else:
        said = json.loads(done.stderr)
        assert (said["message"], said["exit_code"]) == (session._ENDED, 1)
        assert abs(datetime.now(UTC) - datetime.fromisoformat(said["time"])) < timedelta(minutes=5)


def test_a_ray_that_cannot_start_is_told():
    done = _start(START, RAY_TMPDIR="/tmp/" + "long/" * 30)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "Ray did not start" in done.stderr and "AF_UNIX path length" in done.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:9", "no-such-host.invalid:6379"])
def test_a_cluster_that_is_not_there_is_told(address):
    done = _start(START, address)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert f"no Ray cluster answers at {address}" in done.stderr and "--ray-address" in done.stderr


def test_an_actors_process_does_not_wait_for_the_destructors_of_others():
    code = """
import ctypes
from birder_ray.runtime import _end_at_once
_end_at_once()
libc = ctypes.CDLL(None)
libc.__cxa_atexit(ctypes.cast(libc.pause, ctypes.c_void_p), None, None)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
    hanging = subprocess.Popen([sys.executable, "-c", code.replace("_end_at_once()\n", "")])
    with pytest.raises(subprocess.TimeoutExpired):
        hanging.wait(timeout=15)
    hanging.kill()
    hanging.wait()

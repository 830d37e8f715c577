"""SIGKILL of the real process tree at random instants, resumed to the same tables; on a disk and on real S3."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from birder_ray.commit import SUCCESS
from birder_ray.folder import Folder
from birder_ray.record import COMMITS
from birder_ray.testing import make_shards, tiny_checkpoint
from birder_ray.verify import verify
from tests.chaos.processes import family, send
from tests.results import assert_same, table

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]

IMAGES, SHARDS, UNIT = 80, 4, 4
SEED = int(os.environ.get("BIRDER_RAY_SEED", "7"))
KILLS = int(os.environ.get("BIRDER_RAY_KILLS", "2"))
"""Each costs a start of Ray, 30 to 45 s; ten were shown on both stores (docs/reliability.md)."""

DRIVER = """
import json, sys
from birder_ray import RunConfig, run
run(RunConfig(**json.loads(sys.argv[1])))
"""


class Run:
    """A driver with its own Ray, in a process group of its own, so that what it leaves can be found and ended."""

    def __init__(self, config: dict, temporary: Path):
        environment = {**os.environ, "RAY_TMPDIR": str(temporary), "BIRDER_RAY_TEST": str(os.getpid())}
        command = [sys.executable, "-c", DRIVER, json.dumps(config)]
        self.log = (temporary / "driver.log").open("ab")
        self.process = subprocess.Popen(
            command, env=environment, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL, start_new_session=True
        )
        self.temporary = temporary

    def kill(self, *titles: str) -> list[str]:
        """SIGKILL to the workers whose title holds one of `titles`."""
        hit = [(pid, title) for pid, title in family(self.temporary).items() if any(name in title for name in titles)]
        for pid, _ in hit:
            send(pid, signal.SIGKILL)
        return [title for _, title in hit]

    def end(self) -> int:
        """SIGKILL to the driver and, as its machine would, to all that it started."""
        send(self.process.pid, signal.SIGKILL)
        code = self.process.wait(30)
        deadline = time.monotonic() + 30
        while (left := family(self.temporary)) and time.monotonic() < deadline:
            for pid in left:
                send(pid, signal.SIGKILL)
            time.sleep(0.1)
        self.log.close()
        return code


def _wait(run: Run, folder: Folder, commits: int, deadline_s: float = 240) -> bool:
    """Until so many commits stand; False if the run ended first."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if len(folder.names(COMMITS)) >= commits:
            return True
        if run.process.poll() is not None:
            return False
        time.sleep(0.05)
    raise AssertionError(f"no {commits} commits in {deadline_s} s")


def _finish(config: dict, temporary: Path) -> None:
    run = Run(config, temporary)
    try:
        assert run.process.wait(300) == 0, (temporary / "driver.log").read_text()[-3000:]
    finally:
        run.end()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("data")
    make_shards(str(folder / "tars"), IMAGES, SHARDS)
    tiny_checkpoint(str(folder / "hgnet_v2_b0_tiny.pt"))
    config = {
        "source": str(folder / "tars"),
        "model": str(folder / "hgnet_v2_b0_tiny.pt"),
        "compute": {"unit_rows": UNIT, "batch_size": 2},
    }
    temporary = _temporary("whole")
    _finish({**config, "destination": str(folder / "whole")}, temporary)
    return {**config, "whole": str(folder / "whole")}


def _temporary(name: str) -> Path:
    """Short, for Ray's sockets."""
    folder = Path(f"/tmp/brk-{os.getpid()}-{name}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _config(data: dict, destination: str, options: dict | None = None) -> dict:
    told = {key: value for key, value in data.items() if key != "whole"}
    return {**told, "destination": destination, "destination_options": options or {}}


def _check(data: dict, folder: Folder) -> None:
    assert folder.exists(SUCCESS)
    totals = verify(folder.url, folder.options)
    assert (totals.samples, totals.errors) == (IMAGES * SHARDS, 0)
    assert_same(data["whole"], folder.url, folder.options, tolerance=1e-4)


def _kill_drivers(data: dict, folder: Folder, times: int, name: str) -> None:
    """Kill the driver at `times` random instants: three in ten while it starts, the others soon after a commit."""
    chance = random.Random(SEED)
    config, temporary = _config(data, folder.url, folder.options), _temporary(name)
    killed = 0
    for _ in range(times):
        before = len(folder.names(COMMITS))
        run = Run(config, temporary)
        try:
            if chance.random() < 0.7:
                _wait(run, folder, before + 1)
                time.sleep(chance.uniform(0, 0.15))
            else:
                time.sleep(chance.uniform(0, 6))
            killed += run.process.poll() is None
        finally:
            run.end()
    assert killed == times, "the runs must not be over before they are killed"
    assert 0 < len(folder.names(COMMITS)) < SHARDS * IMAGES // UNIT
    _finish(config, temporary)
    _check(data, folder)


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def folder(request, tmp_path) -> Folder:
    """An empty destination on a local disk, and on a real S3 server."""
    if request.param == "disk":
        return Folder(str(tmp_path / "out"))
    s3 = request.getfixturevalue("seaweed")
    return Folder(f"{s3.url}/out", s3.options)


def test_driver_killed_at_random_instants(data, folder):
    _kill_drivers(data, folder, KILLS, "driver-s3" if "://" in folder.url else "driver")


def test_actors_killed_in_the_middle_of_the_chain(data, folder):
    chance = random.Random(SEED)
    temporary = _temporary("actors-s3" if "://" in folder.url else "actors")
    run = Run(_config(data, folder.url, folder.options), temporary)
    hit: list[str] = []
    try:
        for title, commits in [
            ("_PreprocessActor", 0),
            ("_PreprocessActor", 0),
            ("_InferActor", 2),
            ("_InferActor", 8),
        ]:
            _wait(run, folder, commits)
            deadline = time.monotonic() + 120
            while not (killed := run.kill(title)) and run.process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            hit += killed
            time.sleep(chance.uniform(0.2, 1))
        assert run.process.wait(300) == 0, (temporary / "driver.log").read_text()[-3000:]
    finally:
        run.end()
    assert any("_PreprocessActor" in title for title in hit)
    assert any("_InferActor" in title for title in hit)
    _check(data, folder)
    assert "raylet" not in (temporary / "driver.log").read_text(), "deaths that are dealt with are no news"
    assert table(folder.url, "errors", folder.options).num_rows == 0, (
        "a killed process is no reason to quarantine a sample"
    )

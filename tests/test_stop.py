"""A run that is asked to stop, and runs whose processes hang or never start: real processes, real signals."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from birder_ray.commit import SUCCESS, Ledger
from birder_ray.folder import Folder
from birder_ray.lock import LOCK
from birder_ray.record import COMMITS
from birder_ray.stop import STOPPED
from birder_ray.testing import make_shards, tiny_checkpoint
from birder_ray.verify import verify
from tests.chaos.processes import Driver, family, send, short
from tests.results import table

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

IMAGES, SHARDS, UNIT = 150, 4, 8


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("data")
    make_shards(str(folder / "tars"), IMAGES, SHARDS)
    tiny_checkpoint(str(folder / "hgnet_v2_b0_tiny.pt"))
    return {
        "source": str(folder / "tars"),
        "model": str(folder / "hgnet_v2_b0_tiny.pt"),
        "compute": {"unit_rows": UNIT, "batch_size": 4},
    }


def _commits(run: Driver, folder: Folder, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(folder.names(COMMITS)) < count:
        assert not run.ended and time.monotonic() < deadline, run.log()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("signals", "within_s", "says"),
    [
        ([signal.SIGTERM], 60, "units committed; run the same command again to go on"),
        ([signal.SIGINT], 60, "units committed; run the same command again to go on"),
        ([signal.SIGINT, signal.SIGINT], 60, "stopped; what is committed stands"),
        ([signal.SIGTERM], 0.01, "stopped; what is committed stands"),
    ],
    ids=["term", "ctrl-c", "twice", "bound"],
)
def test_stopped_and_resumed(config, tmp_path, signals, within_s, says):
    folder = Folder(str(tmp_path / "out"))
    told = {**config, "destination": folder.url, "run": {"stop_within_s": within_s}}
    run = Driver(told, short("stop"))
    try:
        _commits(run, folder, 3)
        asked = time.monotonic()
        for number in signals:
            assert run.signal(number)
            while "stopping: units in flight have" not in run.log() and not run.ended:
                time.sleep(0.01)  # two signals before the first is looked at are one
        assert run.wait(90) == 1, run.log()
        took = time.monotonic() - asked
    finally:
        run.end(private=True)
    assert within_s < 1 or "stopping: units in flight have" in run.log(), (
        "a limit of 10 ms may be faster than the notice"
    )
    assert says in run.said()
    assert took < 45
    assert not folder.exists(LOCK)
    done = Ledger(folder).units()
    assert 3 <= len(done) < SHARDS * -(-IMAGES // UNIT)
    if "units committed" in says:
        assert Ledger(folder).parts("predictions") == done, "what was begun was finished"
    again = Driver(told, short("again"))
    try:
        assert again.wait(180) == 0, again.log()
    finally:
        again.end(private=True)
    assert folder.exists(SUCCESS)
    assert verify(folder.url).samples == IMAGES * SHARDS


def test_a_sample_that_takes_too_long_is_quarantined_alone(config, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(20):
        Image.effect_noise((64, 64), number + 1).convert("RGB").save(photos / f"{number:02d}.jpg")
    Image.new("RGB", (13_000, 13_000), (9, 99, 9)).save(photos / "07-slow.png")
    # Decoding it takes 1.2 s of a core that has nothing else to do; a unit of two may take 0.6
    compute = {**config["compute"], "unit_rows": 2}
    told = {**config, "source": str(photos), "destination": str(tmp_path / "out"), "compute": compute}
    told["run"] = {"sample_timeout_s": 0.5}
    run = Driver(told, short("slow"))
    try:
        assert run.wait(300) == 0, run.log()
    finally:
        run.end(private=True)
    errors = table(str(tmp_path / "out"), "errors").to_pylist()
    assert [(e["sample"], e["step"], e["error_type"]) for e in errors] == [("07-slow.png", "decode", "ProcessKilled")]
    assert verify(str(tmp_path / "out")).rows == 20


def test_actors_that_never_start_end_the_run(config, tmp_path):
    run = Driver({**config, "destination": str(tmp_path / "out")}, short("start"))
    killed: set[int] = set()
    try:
        deadline = time.monotonic() + 420
        while run.wait(0.05) is None and time.monotonic() < deadline:
            for pid, title in family(run.temporary).items():
                if "_InferActor" in title and pid not in killed and _loads_torch(pid):
                    killed.add(pid)
                    send(pid, signal.SIGKILL)
        assert run.wait(1) == 1, run.log()
    finally:
        run.end(private=True)
    assert "died 4 times while it started" in run.said()
    assert len(killed) >= 4
    assert not Folder(str(tmp_path / "out")).exists(LOCK)


def _loads_torch(pid: int) -> bool:
    """Whether the process is inside its actor's start: before that, nobody knows what it is to become."""
    try:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def test_errors_of_the_users_are_not_mistaken_for_deaths(config, tmp_path):
    run = Driver({**config, "model": str(Path(config["source"]) / "none.pt"), "destination": str(tmp_path)}, short("e"))
    try:
        assert run.wait(60) == 2, run.log()
    finally:
        run.end(private=True)
    assert "none.pt" in run.said()


_STUBBORN = """
import os, signal, sys, threading, time
from birder_ray import stop
from birder_ray.jsonlog import JsonLog
stop.UNWIND_S = float(sys.argv[1])
words = {"json": {"last_words": JsonLog().last_words}}.get(sys.argv[2], {})
with stop.Stop(**words).on_signals():
    try:
        print("ready", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print("swallowed", flush=True)
    threading.Event().wait()
"""


@pytest.mark.parametrize(("unwind_s", "again", "form"), [(0.5, False, "text"), (60, True, "text"), (60, True, "json")])
def test_an_interrupt_that_is_swallowed_ends_the_process_all_the_same(unwind_s, again, form):
    command = [sys.executable, "-c", _STUBBORN, str(unwind_s), form]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "swallowed\n"
        if again:
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 1
        said = process.stderr.read()
        if form == "json":
            told = json.loads(said)
            assert (told["event"], told["error"], told["message"]) == ("failed", "Stopped", STOPPED)
        else:
            assert said == f"{STOPPED}\n"

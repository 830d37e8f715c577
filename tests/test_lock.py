"""One run at a time; the lock of a run that is gone is taken over."""

import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest

from birder_ray import lock as locks
from birder_ray.errors import LockHeld
from birder_ray.folder import Folder
from birder_ray.lock import LOCK, Lock


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path) -> Folder:
    return Folder(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


def test_held_while_entered_and_free_afterwards(folder):
    with Lock(folder):
        with pytest.raises(LockHeld, match=rf"another run on .* \(pid {os.getpid()}\)"), Lock(folder):
            pass
        assert folder.exists(LOCK)
    assert not folder.exists(LOCK)
    with Lock(folder) as again:
        assert again.taken_from is None


def test_one_of_many_wins(folder):
    barrier, entered, refused, leave = threading.Barrier(8), [], [], threading.Event()

    def compete():
        barrier.wait()
        try:
            with Lock(folder) as lock:
                entered.append(lock)
                leave.wait(10)
        except LockHeld:
            refused.append(1)
            if len(refused) == 7:
                leave.set()

    threads = [threading.Thread(target=compete) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(entered), len(refused)) == (1, 7)


def test_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path):
    script = (
        f"import os; from birder_ray.lock import Lock; from birder_ray.folder import Folder\n"
        f"Lock(Folder({str(tmp_path)!r})).__enter__(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    folder = Folder(str(tmp_path))
    assert folder.exists(LOCK)
    with Lock(folder) as lock:
        assert lock.taken_from is not None


@pytest.mark.parametrize(("age_s", "held"), [(5, True), (locks.STALE_S + 1, False)])
def test_another_machine_is_believed_while_its_heart_beats(folder, age_s, held, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_S", 0.05)
    seen = datetime.now(UTC) - timedelta(seconds=age_s)
    owner = {"token": "t", "host": "elsewhere", "pid": 1, "boot": "b", "time": seen.isoformat()}
    folder.write(LOCK, json.dumps(owner).encode())
    if held:
        with pytest.raises(LockHeld, match="elsewhere"), Lock(folder):
            pass
    else:
        with Lock(folder) as lock:
            assert lock.taken_from == "elsewhere (pid 1)"


@pytest.mark.parametrize("where", ["local", pytest.param("s3", marks=pytest.mark.s3)])
def test_of_many_that_take_over_the_same_lock_one_wins(where, tmp_path, request, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_S", 0.05)
    s3 = request.getfixturevalue("seaweed") if where == "s3" else None
    seen = datetime.now(UTC) - timedelta(seconds=locks.STALE_S + 1)
    stale = {"token": "t", "host": "elsewhere", "pid": 1, "boot": "b", "time": seen.isoformat()}
    folders = [Folder(f"{s3.url}/out", s3.options) if s3 else Folder(str(tmp_path)) for _ in range(8)]
    folders[0].write(LOCK, json.dumps(stale).encode())
    barrier, entered, refused = threading.Barrier(len(folders)), [], []

    def compete(folder):
        barrier.wait()
        try:
            entered.append(Lock(folder).__enter__())
        except LockHeld:
            refused.append(1)

    threads = [threading.Thread(target=compete, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(entered), len(refused)) == (1, 7)
    entered[0].check()
    entered[0].__exit__()
    assert not folders[0].exists(LOCK)


def test_a_lock_from_the_future_is_dead_unless_its_heart_beats(folder, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_S", 0.05)
    seen = datetime.now(UTC) + timedelta(days=1)
    owner = {"token": "t", "host": "elsewhere", "pid": 1, "boot": "b", "time": seen.isoformat()}
    folder.write(LOCK, json.dumps(owner).encode())
    with Lock(folder) as lock:
        assert lock.taken_from == "elsewhere (pid 1)"


def test_a_slow_clock_is_no_death(folder, monkeypatch):
    seen = datetime.now(UTC) - timedelta(seconds=10 * locks.STALE_S)
    owner = {"token": "t", "host": "elsewhere", "pid": 1, "boot": "b", "time": seen.isoformat()}
    folder.write(LOCK, json.dumps(owner).encode())

    def sleep(seconds):  # meanwhile the owner's heart beats, as its slow clock tells it
        later = (seen + timedelta(seconds=locks.BEAT_S)).isoformat()
        folder.write(LOCK, json.dumps({**owner, "time": later}).encode())

    monkeypatch.setattr(locks.time, "sleep", sleep)
    with pytest.raises(LockHeld, match="elsewhere"), Lock(folder):
        pass


@pytest.mark.parametrize("content", [b"{", b"{}", b"[]", b'{"time": 1}'])
def test_a_malformed_lock_is_taken_over(folder, content):
    folder.write(LOCK, content)
    with Lock(folder) as lock:
        assert lock.taken_from
        lock.check()
    with pytest.raises(LockHeld):
        lock.check()


def test_the_loser_of_a_take_over_notices(folder, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_S", 0.05)
    with Lock(folder) as lock:
        folder.write(LOCK, json.dumps({**folder.read_json(LOCK), "token": "another"}).encode())
        lock._thread.join(5)
        assert lock.lost
    assert folder.read_json(LOCK)["token"] == "another"

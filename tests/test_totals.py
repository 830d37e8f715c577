"""Sums over commits, read beside a run."""

import threading
from dataclasses import replace

import pytest

from birder_ray.commit import Ledger
from birder_ray.errors import ConfigError
from birder_ray.folder import Folder
from birder_ray.totals import Summing, Totals
from tests.built import build


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    folder = Folder(str(tmp_path / "out"))
    build(folder, {"a.tar": 25, "b.tar": 10})
    return Ledger(folder)


def test_sums_are_those_of_the_records(ledger):
    wanted = Totals()
    for record in ledger.records(ledger.units()):
        wanted.add(record)
    with Summing(ledger, ledger.units()) as summing:
        assert summing.result() == wanted
        assert summing.complete
    assert wanted.units == 4 and wanted.samples == 36


def test_known_sums_are_not_read_again(ledger, monkeypatch):
    monkeypatch.setattr(ledger, "read", pytest.fail)
    with Summing(ledger, ledger.units(), Totals(units=4)) as summing:
        assert summing.complete and summing.result() == Totals(units=4)


def test_a_run_need_not_wait_for_them(ledger, monkeypatch):
    go, read = threading.Event(), ledger.read
    monkeypatch.setattr(ledger, "read", lambda unit: go.wait(20) and read(unit))
    with Summing(ledger, ledger.units()) as summing:
        assert not summing.complete
        go.set()
        assert summing.result().units == 4


def test_a_run_that_ends_before_them_ends_them(ledger, monkeypatch):
    record, asked = ledger.read(min(ledger.units())), []
    monkeypatch.setattr(ledger, "read", lambda unit: (asked.append(unit), record)[1])
    before = threading.active_count()
    with Summing(ledger, (f"unit-{number:09d}" for number in range(200_000))):
        pass
    deadline = threading.Event()
    while threading.active_count() > before and not deadline.wait(0.05):
        assert len(asked) < 200_000
    assert len(asked) < 200_000


def test_a_damaged_record_is_told_in_the_end(ledger):
    unit = min(ledger.units())
    ledger.folder.write(f"_commits/{unit}.json", b"{")
    with Summing(ledger, ledger.units()) as summing:
        with pytest.raises(ConfigError, match="damaged commit record"):
            summing.result()
        assert not summing.complete


def test_addition_is_that_of_the_records(ledger):
    one, two = (ledger.read(unit) for unit in sorted(ledger.units())[:2])
    two = replace(two, seconds={"read": 1.0}, errors=3)
    both, first, second = Totals(), Totals(), Totals()
    for record in (one, two):
        both.add(record)
    first.add(one)
    second.add(two)
    assert first + second == both
    assert first != both

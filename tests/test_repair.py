"""repair takes back exactly what is damaged, and scoring again makes verify green."""

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from birder_ray.commit import SUCCESS, Ledger
from birder_ray.errors import ConfigError, LockHeld
from birder_ray.folder import Folder
from birder_ray.lock import LOCK, Lock
from birder_ray.parts import part_name
from birder_ray.record import record_name
from birder_ray.repair import repair
from birder_ray.schema import ERRORS, OUTPUT_TABLES
from birder_ray.verify import verify
from tests.built import build

SHARDS = {"a.tar": 25, "b.tar": 10, "cut.tar": 12}


@pytest.fixture
def folder(tmp_path) -> Folder:
    folder = Folder(str(tmp_path / "out"))
    build(folder, SHARDS)
    return folder


def _unit(folder: Folder, shard: str, number: int = 0) -> str:
    return next(u for u in Ledger(folder).units() if u.startswith(shard) and u.endswith(f"{number:06d}"))


def _flip(folder: Folder, name: str, at: float = 0.5) -> None:
    data = bytearray(folder.read(name))
    data[int(at * (len(data) - 1))] ^= 4
    Path(folder.url, name).write_bytes(bytes(data))


def _part_flipped(folder: Folder, unit: str) -> None:
    _flip(folder, part_name("features", unit))


def _errors_flipped(folder: Folder, unit: str) -> None:
    _flip(folder, part_name(ERRORS, unit))


def _part_gone(folder: Folder, unit: str) -> None:
    folder.delete(part_name("embeddings", unit))


def _record_gone(folder: Folder, unit: str) -> None:
    folder.delete(record_name(unit))


def _record_truncated(folder: Folder, unit: str) -> None:
    path = Path(folder.url, record_name(unit))
    path.write_bytes(path.read_bytes()[:100])


def _record_empty(folder: Folder, unit: str) -> None:
    Path(folder.url, record_name(unit)).write_bytes(b"")


def _record_without_numbers(folder: Folder, unit: str) -> None:
    folder.write_json(record_name(unit), folder.read_json(record_name(unit)) | {"rows": "many"})


def _record_of_another_recipe(folder: Folder, unit: str) -> None:
    folder.write_json(record_name(unit), folder.read_json(record_name(unit)) | {"recipe": "f" * 16})


def _record_says_end(folder: Folder, unit: str) -> None:
    folder.write_json(record_name(unit), folder.read_json(record_name(unit)) | {"end": True})


def _other_units_part(folder: Folder, unit: str) -> None:
    other = next(u for u in sorted(Ledger(folder).units()) if u != unit)
    shutil.copy(Path(folder.url, part_name("features", other)), Path(folder.url, part_name("features", unit)))


DAMAGE = [
    _part_flipped,
    _errors_flipped,
    _part_gone,
    _record_gone,
    _record_truncated,
    _record_empty,
    _record_without_numbers,
    _record_of_another_recipe,
    _record_says_end,
    _other_units_part,
]


def _content(folder: Folder) -> dict[str, str]:
    names = [part_name(t, u) for t in (*OUTPUT_TABLES, ERRORS) for u in Ledger(folder).parts(t)]
    return {name: hashlib.sha256(folder.read(name)).hexdigest() for name in names}


def _times(folder: Folder) -> dict[str, int]:
    return {str(p.relative_to(folder.url)): p.stat().st_mtime_ns for p in Path(folder.url).rglob("*") if p.is_file()}


def _is_of(name: str, units: list[str]) -> bool:
    return any(unit in name for unit in units)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__.strip("_"))
def test_damage_is_mended_by_repair_and_the_same_command(folder, damage):
    before, unit = _content(folder), _unit(folder, "a.tar", 0)
    damage(folder, unit)
    times = _times(folder)
    done = repair(folder.url)
    assert done.findings
    assert done.units == ([] if damage is _record_gone else [unit])
    assert not folder.exists(SUCCESS)
    assert not folder.exists(LOCK)
    untouched = {name: time for name, time in times.items() if not _is_of(name, [unit]) and name != SUCCESS}
    assert untouched.items() <= _times(folder).items(), "nothing that is whole is touched"
    assert not any(unit in name for name in _times(folder))
    build(folder, SHARDS)
    verify(folder.url, deep=True)
    assert _content(folder) == before
    assert untouched.items() - _times(folder).items() <= {("manifest.json", times["manifest.json"]), *(
        (name, times[name]) for name in ("classes.parquet",)
    )}  # fmt: skip


def test_a_stray_is_removed(folder):
    stray = _unit(folder, "b.tar").replace("-000000", "-000007")
    shutil.copy(
        Path(folder.url, part_name("features", _unit(folder, "b.tar"))), Path(folder.url, part_name("features", stray))
    )
    done = repair(folder.url)
    assert (done.units, done.strays) == ([], [part_name("features", stray)])
    build(folder, SHARDS)
    verify(folder.url)


def test_a_unit_under_another_name_is_removed(folder):
    unit = _unit(folder, "b.tar")
    copy = unit.replace("-000000", "-000007")
    for name in (*(part_name(table, unit) for table in OUTPUT_TABLES), record_name(unit)):
        shutil.copy(Path(folder.url, name), Path(folder.url, name.replace(unit, copy)))
    assert repair(folder.url).units == [copy]
    build(folder, SHARDS)
    verify(folder.url)


def test_the_classes_are_written_again(folder):
    folder.delete("classes.parquet")
    assert repair(folder.url).units == []
    build(folder, SHARDS)
    verify(folder.url)


def test_files_that_are_not_ours_are_left_alone(folder):
    Path(folder.url, "predictions", "README").write_text("mine")
    _part_gone(folder, _unit(folder, "a.tar"))
    repair(folder.url)
    assert Path(folder.url, "predictions", "README").exists()


def test_a_whole_destination_is_left_as_it_is(folder):
    times = _times(folder)
    assert repair(folder.url).findings == []
    assert _times(folder) == times


def test_every_unit_damaged_at_once(folder):
    before = _content(folder)
    for number, unit in enumerate(sorted(Ledger(folder).units())):
        [_part_flipped, _part_gone, _record_truncated][number % 3](folder, unit)
    assert len(repair(folder.url).units) == 6
    build(folder, SHARDS)
    verify(folder.url)
    assert _content(folder) == before


def test_a_run_at_work_is_left_alone(folder):
    _part_gone(folder, _unit(folder, "a.tar"))
    times = _times(folder)
    with Lock(Folder(folder.url)), pytest.raises(LockHeld):
        repair(folder.url)
    assert _times(folder) == times


def test_no_destination_at_all(tmp_path):
    with pytest.raises(ConfigError, match=r"no manifest.json"):
        repair(str(tmp_path))
    assert os.listdir(tmp_path) == []


class _Killed(BaseException):
    pass


def _mortal(monkeypatch, changes: int) -> None:
    """The process ends before its `changes`-th delete."""
    left = [changes]
    delete = Folder.delete

    def mortal(self: Folder, name: str) -> None:
        if name != LOCK:
            left[0] -= 1
            if left[0] < 0:
                raise _Killed
        delete(self, name)

    monkeypatch.setattr(Folder, "delete", mortal)


@pytest.mark.parametrize("changes", range(24))
def test_killed_before_any_delete(folder, monkeypatch, changes):
    before = _content(folder)
    _part_flipped(folder, _unit(folder, "a.tar", 1))
    _record_truncated(folder, _unit(folder, "a.tar", 2))
    _errors_flipped(folder, _unit(folder, "cut.tar", 0))
    _record_gone(folder, _unit(folder, "b.tar"))
    with monkeypatch.context() as patch:
        _mortal(patch, changes)
        try:
            repair(folder.url)
            assert changes == 23, "_SUCCESS, 3 records, 3 units of 5 files, 4 strays"
        except _Killed:
            assert changes < 23
    assert folder.exists(SUCCESS) == (changes == 0), "what is damaged does not count as finished"
    for unit in Ledger(folder).units():
        with suppress(ConfigError):  # damaged before
            assert all(folder.exists(part_name(table, unit)) for table in Ledger(folder).read(unit).parts)
    repair(folder.url)
    build(folder, SHARDS)
    verify(folder.url)
    assert _content(folder) == before

"""A run that was paused, lost its lock and wakes up again cannot write over what the new owner wrote."""

import errno
import hashlib

import pyarrow as pa
import pytest

from birder_ray import folder as folders
from birder_ray.commit import Ledger
from birder_ray.errors import LockHeld, RunFailed
from birder_ray.folder import Folder
from birder_ray.manifest import Recipe
from birder_ray.parts import part_name
from birder_ray.schema import EMBEDDINGS, ERRORS_SCHEMA, FEATURES, PREDICTIONS
from tests.built import FACTS, config

UNIT = "shard-0123456789ab-000000"
CALLS = ("create", "version", "exists", "replace", "delete")


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def place(request, tmp_path) -> tuple[str, dict]:
    if request.param == "s3":
        s3 = request.getfixturevalue("seaweed")
        return f"{s3.url}/out", s3.options
    return (str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"), {}


class Paused(Folder):
    """Runs `meanwhile` just before the call of this number; 0 for the first."""

    def __init__(self, place: tuple[str, dict], number: int, meanwhile):
        super().__init__(*place)
        self.left, self.meanwhile, self.inside = number, meanwhile, False


def _pausing(name: str):
    def call(self, *args):
        if self.inside:
            return getattr(Folder, name)(self, *args)
        self.left -= 1
        if self.left == -1:
            self.meanwhile()
        self.inside = True
        try:
            return getattr(Folder, name)(self, *args)
        finally:
            self.inside = False

    return call


for each in CALLS:
    setattr(Paused, each, _pausing(each))


def _write(ledger: Ledger, who: str, *more: str) -> None:
    """The unit as `who` scored it; `more`: tables to add to it."""
    table = pa.table({"sample": ["a", "b"], "probability": pa.array([len(who), 0.5], pa.float32())})
    tables = dict.fromkeys((PREDICTIONS, *more), table)
    errors = ERRORS_SCHEMA.empty_table()
    told = {"end": True, "limited": False, "damaged": False, "seconds": {}, "bytes_read": 0, "engines": {}}
    options = {**told, "leftovers": set(), "growing": bool(more)}
    recipe = Recipe.of(config("/nowhere", outputs={name: {} for name in tables}), FACTS)
    ledger.write(UNIT, "shard.tar", recipe, 2, errors, lambda parts: parts.write(tables), **options)


def _assert_whole(folder: Folder) -> None:
    record = Ledger(folder).read(UNIT)
    for table, part in record.parts.items():
        assert hashlib.sha256(folder.read(part_name(table, UNIT))).hexdigest() == part.sha256


@pytest.mark.parametrize("crashed_before", [False, True])
@pytest.mark.parametrize("number", range(12))
def test_paused_before_any_of_its_writes(place, number, crashed_before):
    folder = Folder(*place)
    if crashed_before:
        folder.write(part_name(PREDICTIONS, UNIT), b"of an attempt that crashed")
    taken_over = []

    def meanwhile():
        taken_over.append(1)
        _write(Ledger(Folder(*place)), "the new owner")

    def fence():
        if taken_over:
            raise LockHeld("taken over")

    paused = Paused(place, number, meanwhile)
    try:
        _write(Ledger(paused, fence), "the old")
    except LockHeld:
        assert taken_over
    else:
        assert not taken_over, "what it wrote, it wrote while the lock was its own"
    _assert_whole(folder)


@pytest.mark.parametrize("crashed_before", [False, True])
@pytest.mark.parametrize("number", range(12))
def test_paused_while_it_adds_tables(place, number, crashed_before):
    folder, taken_over, more = Folder(*place), [], (EMBEDDINGS, FEATURES)
    _write(Ledger(folder), "the first")
    before = folder.read(part_name(PREDICTIONS, UNIT))
    if crashed_before:
        folder.write(part_name(FEATURES, UNIT), b"of an attempt that crashed")

    def meanwhile():
        taken_over.append(1)
        _write(Ledger(Folder(*place)), "the new owner", *more)

    def fence():
        if taken_over:
            raise LockHeld("taken over")

    try:
        _write(Ledger(Paused(place, number, meanwhile), fence), "the old", *more)
    except LockHeld:
        assert taken_over
    else:
        assert not taken_over, "what it wrote, it wrote while the lock was its own"
    _assert_whole(folder)
    assert Ledger(folder).read(UNIT).parts.keys() == {PREDICTIONS, *more}
    assert folder.read(part_name(PREDICTIONS, UNIT)) == before


def test_a_process_stopped_in_the_middle_of_a_rename_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_RENAME_S", 0.1)
    stopped, other = Folder(str(tmp_path)), Folder(str(tmp_path))
    other.write("part", b"1")
    with stopped._alone(), pytest.raises(RunFailed, match="is stopped"):
        other.replace("part", b"2", other.version("part"))
    assert other.read("part") == b"1"


@pytest.mark.parametrize("lacks", [{"link"}, {"flock"}, {"link", "flock"}])
def test_file_systems_without_hard_links_or_locks(tmp_path, monkeypatch, lacks):
    def refuse(*_):
        raise OSError(errno.EPERM if "link" in lacks else errno.ENOLCK, "not here")

    if "link" in lacks:
        monkeypatch.setattr(folders.os, "link", refuse)
    if "flock" in lacks:
        monkeypatch.setattr(folders.fcntl, "flock", refuse)
    folder = Folder(str(tmp_path))
    assert folder.create("part", b"1")
    assert not folder.create("part", b"2")
    version = folder.version("part")
    assert folder.replace("part", b"3", version)
    assert not folder.replace("part", b"4", version)
    assert folder.read("part") == b"3"
    assert folder.names("") == {"part"}
    assert [path.name for path in tmp_path.iterdir()] == ["part"]

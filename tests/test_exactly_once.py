"""What is true when the process dies between any two writes: nothing lost, nothing doubled, and the resume mends it."""

import contextlib
import hashlib

import pytest

from birder_ray.commit import SUCCESS, Ledger
from birder_ray.errors import ConfigError, RunFailed, VerifyFailed
from birder_ray.folder import Folder
from birder_ray.manifest import MANIFEST
from birder_ray.parts import part_name
from birder_ray.record import COMMITS
from birder_ray.schema import ERRORS_SCHEMA
from birder_ray.verify import status, verify
from tests.built import SCHEMAS, build

SHARDS = {"a.tar": 25, "b.tar": 10, "empty.tar": 0, "cut.tar": 12}


class Died(BaseException):
    """Stands for SIGKILL: nothing after it runs in this process."""


class MortalFolder(Folder):
    """Dies just before its `mortal`-th change of the destination, or, for a local write, half-way through it."""

    def __init__(self, url: str, mortal: int, halfway: bool = False):
        super().__init__(url)
        self.left, self.halfway = mortal, halfway

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Died

    def _dies_writing(self, name: str, data: bytes) -> None:
        try:
            self._count()
        except Died:
            if self.halfway:
                self.fs.makedirs(self.at(name).rpartition("/")[0], exist_ok=True)
                with open(self.at(name) + ".abc.tmp", "wb") as file:
                    file.write(data[: len(data) // 2])
            raise

    def write(self, name: str, data: bytes) -> None:
        self._dies_writing(name, data)
        super().write(name, data)

    def create(self, name: str, data: bytes) -> bool:
        self._dies_writing(name, data)
        return super().create(name, data)

    def replace(self, name: str, data: bytes, version: str) -> bool:
        self._dies_writing(name, data)
        return super().replace(name, data, version)

    def delete(self, name: str) -> None:
        self._count()
        super().delete(name)


def _content(folder: Folder) -> dict[str, str]:
    """Hash by name of everything but records and reports of times."""
    names = [
        f"{table}/{n}" for table in ("predictions", "embeddings", "features", "errors") for n in folder.names(table)
    ]
    return {name: hashlib.sha256(folder.read(name)).hexdigest() for name in [*names, "classes.parquet"]}


def _changes(tmp_path) -> int:
    folder = MortalFolder(str(tmp_path / "count"), 10**9)
    build(folder, SHARDS)
    return 10**9 - folder.left


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, str]:
    folder = Folder(str(tmp_path_factory.mktemp("undisturbed")))
    build(folder, SHARDS)
    return _content(folder)


@pytest.mark.parametrize("halfway", [False, True])
def test_death_before_any_change_of_the_destination(tmp_path, undisturbed, halfway):
    changes = _changes(tmp_path)
    assert changes > 25
    for mortal in range(changes):
        url = str(tmp_path / f"{mortal}")
        with pytest.raises(Died):
            build(MortalFolder(url, mortal, halfway), SHARDS)
        ledger = Ledger(Folder(url))
        for record in ledger.records(sorted(ledger.units())):
            for table, part in record.parts.items():
                data = ledger.folder.read(f"{table}/{record.unit}.parquet")
                assert hashlib.sha256(data).hexdigest() == part.sha256, "a commit never promises what is not there"
        build(Folder(url), SHARDS)
        assert _content(Folder(url)) == undisturbed
        totals = verify(url)
        assert (totals.samples, totals.rows, totals.errors) == (48, 44, 4)
        assert not list((tmp_path / f"{mortal}").rglob("*.tmp"))


def test_running_again_changes_nothing(tmp_path, undisturbed):
    for _ in range(2):
        build(Folder(str(tmp_path)), SHARDS)
    assert _content(Folder(str(tmp_path))) == undisturbed
    assert status(str(tmp_path)).totals.samples == 48


def test_another_recipe_is_refused_and_changes_nothing(tmp_path, undisturbed):
    build(Folder(str(tmp_path)), SHARDS)
    with pytest.raises(ConfigError, match=r"another recipe \(center_crop 1.0 → 0.875\).*--overwrite"):
        build(Folder(str(tmp_path)), SHARDS, model={"name": "tiny.pt", "center_crop": 0.875})
    assert _content(Folder(str(tmp_path))) == undisturbed
    verify(str(tmp_path))


def test_overwriting_keeps_the_old_results_until_the_first_commit_of_the_new(tmp_path):
    shards = {"a.tar": 12}
    other = {"model": {"name": "tiny.pt", "center_crop": 0.875}, "run": {"overwrite": True}}
    build(Folder(str(tmp_path / "old")), shards)
    build(Folder(str(tmp_path / "new")), shards, **other)
    old, new = _content(Folder(str(tmp_path / "old"))), _content(Folder(str(tmp_path / "new")))
    for mortal in range(100):
        folder = Folder(str(tmp_path / str(mortal)))
        build(folder, shards)
        dying = MortalFolder(folder.url, mortal)
        with contextlib.suppress(Died):
            build(dying, shards, **other)
        if folder.read_json(MANIFEST)["recipe"]["facts"]["center_crop"] == 1.0:
            left = _content(folder)
            assert {name: left.get(name) for name in old} == old, "the old run is still whole"
            assert folder.exists(SUCCESS) or len(Ledger(folder).units()) > 2, "unfinished only after a new commit"
        build(folder, shards, **other)
        assert _content(folder) == new
        verify(folder.url)
        if dying.left >= 0:
            return  # lived through it
    raise AssertionError("never lived through it")


def test_a_changed_shard_is_refused_not_doubled(tmp_path):
    build(Folder(str(tmp_path)), {"a.tar": 25, "b.tar": 10})
    with pytest.raises(ConfigError, match=r"inputs that changed or left the source since, e.g. a.tar.*--overwrite"):
        from birder_ray.destination import Destination
        from birder_ray.manifest import Recipe
        from birder_ray.plan import make_plan
        from birder_ray.source.base import Shard
        from tests.built import FACTS, NAMES, config

        told = config(str(tmp_path))
        ledger, recipe = Ledger(Folder(str(tmp_path))), Recipe.of(told, FACTS)
        shards = [Shard("/data/a.tar", "a.tar", "tar", "changed"), Shard("/data/b.tar", "b.tar", "tar", "f")]
        place = Destination(told, ledger, recipe, FACTS, NAMES, shards)
        place.check(make_plan(shards, recipe.key, place.unit_rows, ledger))


def test_a_full_disk_is_one_plain_line(tmp_path, monkeypatch):
    def write(self, name, data):
        raise OSError(28, "No space left on device")

    build(Folder(str(tmp_path)), {"a.tar": 5})
    monkeypatch.setattr(Ledger, "write", lambda self, *a, **k: write(self, "", b""))
    with pytest.raises(RunFailed, match=r"cannot write to .*No space left on device.*run again to resume"):
        build(Folder(str(tmp_path)), {"a.tar": 5, "b.tar": 5})


def test_a_redone_unit_without_rows_leaves_no_old_part(tmp_path):
    """What an earlier attempt wrote, and this one does not, would pass for results."""
    folder = Folder(str(tmp_path))
    recipe = build(folder, {"a.tar": 5})
    ledger = Ledger(folder)
    (unit,) = ledger.units()
    ledger.retract(unit)
    empty = {name: schema.empty_table() for name, schema in SCHEMAS.items()}
    errors, leftovers = ERRORS_SCHEMA.empty_table(), ledger.leftovers()
    told = {"end": True, "limited": False, "damaged": False, "seconds": {}, "bytes_read": 0, "engines": {}}
    ledger.write(unit, "a.tar", recipe, 0, errors, lambda parts: parts.write(empty), leftovers=leftovers, **told)
    assert ledger.leftovers() == set()


def test_a_listing_that_hides_commits_costs_none_of_their_parts(tmp_path, undisturbed, monkeypatch):
    build(Folder(str(tmp_path)), SHARDS, finish=False)
    names = Folder.names
    monkeypatch.setattr(Folder, "names", lambda self, folder: set() if folder == COMMITS else names(self, folder))
    build(Folder(str(tmp_path)), SHARDS)  # which scores all of it again, as far as it can see
    monkeypatch.undo()
    build(Folder(str(tmp_path)), SHARDS)
    assert _content(Folder(str(tmp_path))) == undisturbed


def test_finishing_clears_away_parts_without_a_commit_and_nothing_else(tmp_path):
    folder = Folder(str(tmp_path))
    build(folder, SHARDS)
    (unit, *_) = sorted(Ledger(folder).units())
    part = folder.read(part_name("predictions", unit))
    stray, mine = part_name("predictions", unit[:-6] + "000099"), "predictions/merged.parquet"
    for name in (stray, mine):
        folder.write(name, part)
    with pytest.raises(VerifyFailed, match=r"000099\.parquet: no commit .*merged\.parquet: no commit"):
        verify(folder.url)
    build(folder, SHARDS)
    assert not folder.exists(stray) and folder.read(mine) == part
    folder.delete(mine)
    verify(folder.url)


def test_an_unlisted_commit_makes_no_stray(tmp_path, monkeypatch):
    folder = Folder(str(tmp_path))
    build(folder, SHARDS)
    units = Ledger.units
    monkeypatch.setattr(Ledger, "units", lambda self: units(self) - {max(units(self))})
    with pytest.raises(VerifyFailed) as found:
        verify(folder.url)
    assert "no commit knows" not in str(found.value)

"""Reruns follow a source that changes: only what is new is scored, what has left stays in snapshots, and a crash at any
moment costs nothing. Without Ray, as in test_histories."""

import itertools
import json
import tarfile
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from birder_ray import ConfigError, RunConfig, RunFailed, destination, history, pipeline, runs
from birder_ray.commit import RETIRED, SUCCESS, Ledger
from birder_ray.folder import Folder
from birder_ray.plan import split_name
from birder_ray.progress import Observer
from birder_ray.rerun import rerun
from birder_ray.verify import verify
from tests.built import ROWS
from tests.command import birder_ray
from tests.test_histories import Died, _content, chance  # noqa: F401

pytestmark = pytest.mark.usefixtures("clock")

FIRST = {"a": 25, "b": 12, "c": 30, "d": 5, "e": 8}


@pytest.fixture
def clock(monkeypatch):
    """A minute passes between any two looks at the clock, so that states can be told apart."""
    ticks = itertools.count()

    def now() -> str:
        return (datetime(2026, 11, 1, tzinfo=UTC) + timedelta(minutes=next(ticks))).isoformat(timespec="seconds")

    monkeypatch.setattr(destination, "now", now)
    monkeypatch.setattr(runs, "now", now)
    return now


@pytest.fixture
def source(tmp_path) -> Path:
    return shards(tmp_path / "data", FIRST)


def shards(folder: Path, counts: dict[str, int]) -> Path:
    folder.mkdir()
    for name, count in counts.items():
        shard(folder, name, count)
    return folder


def shard(folder: Path, name: str, count: int) -> None:
    with tarfile.open(folder / f"{name}.tar", "w") as tar:
        for index in range(count):
            data = b"%s %d of %d" % (name.encode(), index, count)
            member = tarfile.TarInfo(f"{index:06d}.jpg")
            member.size = len(data)
            tar.addfile(member, BytesIO(data))


def change(source: Path) -> None:
    """One shard more, one with more in it, one less."""
    shard(source, "f", 11)
    shard(source, "b", 17)
    (source / "c.tar").unlink()


def config(source: Path, out: Path, **fields) -> RunConfig:
    return RunConfig(source=str(source), model="m", destination=str(out), compute={"unit_rows": ROWS}, **fields)


def commits(out: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (out / "_commits").iterdir()}


def samples(out: Path, at: str, table: str = "predictions") -> list[str]:
    files = history.files(Folder(str(out)), at)[table]
    return sorted(ds.dataset(files).to_table(columns=["sample"])["sample"].to_pylist()) if files else []


def told(out: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((out / "_runs").iterdir())]


def test_nothing_new_computes_nothing(chance, source, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    first = rerun(config(source, out))
    assert (first.changes.new, first.changes.unchanged) == ([f"{name}.tar" for name in FIRST], 0)
    before = commits(out)
    again = rerun(config(source, out))
    assert (again.summary.units, again.changes.unchanged, again.snapshot) == (0, 5, first.snapshot)
    assert commits(out) == before
    assert [each["shards"]["unchanged"] for each in told(out)] == [0, 5]


@pytest.mark.parametrize("lives", [0, 1, 5])
def test_only_what_changed_is_scored_however_often_it_dies(chance, source, tmp_path, lives):  # noqa: F811
    out = tmp_path / "out"
    first = rerun(config(source, out))
    before, old = commits(out), samples(out, "2026-11-01")
    assert len(old) == sum(FIRST.values())
    change(source)
    chance.lives = lives
    with pytest.raises(Died):
        rerun(config(source, out))
    assert not (out / SUCCESS).exists()
    assert samples(out, "2026-11-01") == old, "whatever has begun, the old state is readable"
    chance.lives = 10**9
    done = rerun(config(source, out))
    assert (done.changes.new, done.changes.changed, done.changes.retired) == (["f.tar"], ["b.tar"], ["c.tar"])
    assert (done.changes.unchanged, told(out)[-1]["shards"]) == (3, {**vars(done.changes)})
    pipeline.run(config(source, tmp_path / "fresh"))
    assert _content(out) == _content(tmp_path / "fresh")
    verify(str(out))
    after = commits(out)
    kept = before.keys() & after.keys()
    assert {split_name(unit)[0][0] for unit in kept} == {"a", "d", "e"}
    assert all(after[unit] == before[unit] for unit in kept), "what was done is done"
    at = datetime.strptime(first.snapshot, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).isoformat()
    assert samples(out, at) == old
    assert samples(out, "2026-11-01") == sorted(row[0] for row in _content(out)["predictions"])


class Counting:
    """Dies at the n-th change of a destination."""

    def __init__(self, monkeypatch, at: int):
        self.left = at
        for name in ("copy", "delete", "create", "replace"):
            monkeypatch.setattr(Folder, name, self._counted(getattr(Folder, name)))

    def _counted(self, call):
        def counted(folder, name, *args):
            if not name.startswith("_lock"):
                self.left -= 1
                if self.left == 0:
                    raise Died
            return call(folder, name, *args)

        return counted


@pytest.mark.parametrize("at", range(1, 100, 3))
def test_a_crash_at_any_change_of_the_destination(chance, source, tmp_path, monkeypatch, at):  # noqa: F811
    out = tmp_path / "out"
    first = rerun(config(source, out))
    old = samples(out, "2026-11-01")
    change(source)
    with monkeypatch.context() as patched:
        died = Counting(patched, at)
        try:
            rerun(config(source, out), keep=2)
        except Died:
            pass
        else:
            assert died.left > 0
    whole = datetime.strptime(first.snapshot, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).isoformat()
    assert samples(out, whole) == old
    rerun(config(source, out), keep=2)
    pipeline.run(config(source, tmp_path / "fresh"))
    assert _content(out) == _content(tmp_path / "fresh")
    assert samples(out, whole) == old
    verify(str(out))


def test_there_are_enough_crashes(chance, source, tmp_path, monkeypatch):  # noqa: F811
    out = tmp_path / "out"
    rerun(config(source, out))
    change(source)
    with monkeypatch.context() as patched:
        counting = Counting(patched, 10**6)
        rerun(config(source, out))
    assert 80 < 10**6 - counting.left < 100


def test_another_recipe_goes_beside(chance, source, tmp_path):  # noqa: F811
    out, notices = tmp_path / "out", []
    rerun(config(source, out))
    before = commits(out)

    class Noting(Observer):
        def notice(self, text):
            notices.append(text)

    less = config(source, out, outputs={"predictions": {}, "embeddings": {}, "features": {"levels": ["stage1"]}})
    done = rerun(less, Noting())
    assert commits(out) == before
    sibling = f"{out}-{done.summary.recipe[:8]}"
    assert done.summary.destination == sibling and sibling in notices[0]
    assert rerun(less).summary.units == 0, "and finds what went there"
    over = less.model_copy(update={"run": less.run.model_copy(update={"overwrite": True})})
    assert rerun(over).summary.destination == str(out)
    assert not before.keys() & commits(out).keys()


def test_old_snapshots_are_forgotten(chance, source, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    first = rerun(config(source, out))
    change(source)
    rerun(config(source, out))
    retired = Ledger(Folder(str(out))).retired()
    assert {split_name(unit)[0][0] for unit in retired} == {"b", "c"}
    shard(source, "g", 4)
    done = rerun(config(source, out), keep=2)
    assert done.forgotten == [first.snapshot]
    assert len(history.names(Folder(str(out)))) == 2
    assert not [path for path in (out / RETIRED).rglob("*") if path.is_file()]
    with pytest.raises(ConfigError, match="no snapshot of 2026-11-01T00:00:00 or before; the first is of"):
        samples(out, "2026-11-01T00:00:00")


def test_what_fails_is_told_too(chance, source, tmp_path, monkeypatch):  # noqa: F811
    out = tmp_path / "out"
    rerun(config(source, out))
    shard(source, "g", 4)

    def fail(*_):
        raise RunFailed("no more disk")

    monkeypatch.setattr(pipeline.runtime, "stream", fail)
    with pytest.raises(RunFailed, match="no more disk"):
        rerun(config(source, out))
    assert told(out)[-1]["outcome"] == "RunFailed: no more disk"


def test_without_a_rerun_a_changed_source_is_refused(chance, source, tmp_path):  # noqa: F811
    pipeline.run(config(source, tmp_path / "out"))
    change(source)
    with pytest.raises(ConfigError, match="birder-ray rerun or --incremental"):
        pipeline.run(config(source, tmp_path / "out"))


def test_the_command_line(chance, source, tmp_path, monkeypatch, capsys):  # noqa: F811
    out, file = tmp_path / "out", tmp_path / "job.yaml"
    file.write_text(f"source: {source}\nmodel: m\ndestination: {out}\ncompute: {{unit_rows: {ROWS}}}\n")
    code, said, _ = birder_ray(monkeypatch, capsys, "rerun", str(file))
    assert code == 0 and "5 shards new, 0 changed, 0 retired, 0 as they were" in said
    change(source)
    code, said, _ = birder_ray(monkeypatch, capsys, "rerun", str(file), "--json")
    done = json.loads(said)
    assert code == 0 and done["shards"]["retired"] == ["c.tar"] and done["units"] == 4 and done["busy_s"]["read"] > 0
    code, said, _ = birder_ray(monkeypatch, capsys, "snapshots", str(out))
    assert code == 0 and len(said.splitlines()) == 2 and "80 images of 5 shards" in said.splitlines()[0]
    first = said.partition(" ")[0]
    at = f"{first[:4]}-{first[4:6]}-{first[6:8]}T{first[9:11]}:{first[11:13]}"
    code, said, _ = birder_ray(monkeypatch, capsys, "snapshots", str(out), "--at", at, "--table", "embeddings")
    assert code == 0 and len(ds.dataset(said.split()).to_table()) == 80
    code, _, err = birder_ray(monkeypatch, capsys, "snapshots", str(out), "--at", "yesterday")
    assert code == 2 and "write it as 2026-11-22" in err

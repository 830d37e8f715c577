"""Reading a destination: every committed row once, in order, and damage is told by the name of the file."""

import pyarrow as pa
import pytest

from birder_ray.commit import Ledger
from birder_ray.errors import ConfigError, RunFailed
from birder_ray.folder import Folder
from birder_ray.parts import part_name
from birder_ray.scores import Scores
from tests import built
from tests.built import NAMES, ROWS, build

SHARDS = {"a.tar": 25, "b.tar": 12}


@pytest.fixture
def folder(tmp_path) -> Folder:
    made = Folder(str(tmp_path))
    build(made, SHARDS)
    return made


def test_every_row_is_read_once_in_order(folder):
    scores = Scores(folder.url)
    rows = pa.concat_tables(scores.stream("predictions", ["shard", "index", "prediction"]))
    wanted = [(shard, index) for shard, size in SHARDS.items() for index in range(size) if index != 3]
    assert list(zip(rows["shard"].to_pylist(), rows["index"].to_pylist(), strict=True)) == wanted
    assert rows["prediction"].to_pylist() == [NAMES[index % 3] for _, index in wanted]
    assert scores.class_names == NAMES and scores.finished
    assert sum(each.num_rows for each in scores.stream("errors")) == 3


def test_tables_are_read_side_by_side(folder):
    columns = {"predictions": ["sample"], "embeddings": None}
    for predictions, embeddings in Scores(folder.url).aligned(columns):
        assert 0 < predictions.num_rows <= ROWS
        assert predictions["sample"].equals(embeddings["sample"])


def test_parts_that_no_commit_knows_are_not_read(folder):
    unit = min(Ledger(folder).units())
    before = sum(each.num_rows for each in Scores(folder.url).stream("predictions"))
    folder.write(part_name("predictions", "stray-0123456789ab-000000"), folder.read(part_name("predictions", unit)))
    assert sum(each.num_rows for each in Scores(folder.url).stream("predictions")) == before


def test_a_damaged_part_is_named(folder):
    name = part_name("embeddings", min(Ledger(folder).units()))
    folder.write(name, b"PAR1")
    with pytest.raises(ConfigError, match=rf"{name}.*repair"):
        list(Scores(folder.url).stream("embeddings"))
    folder.delete(name)
    with pytest.raises(ConfigError, match=rf"{name}.*repair"):
        list(Scores(folder.url).stream("embeddings"))


def test_of_a_shard_that_changed_only_what_it_is_now_is_read(folder, monkeypatch):
    """Its old units stand beside the new ones until the run that follows the source is at its end."""
    listed = built.Shard
    monkeypatch.setattr(built, "Shard", lambda uri, name, kind, _: listed(uri, name, kind, "changed"))
    build(folder, {"a.tar": 25}, finish=False, run={"incremental": True})
    assert len(Ledger(folder).units()) > 3
    rows = pa.concat_tables(Scores(folder.url).stream("predictions", ["sample"]))["sample"].to_pylist()
    assert len(rows) == len(set(rows)) == 24


@pytest.mark.parametrize("failing", ["predictions", "_commits"])
def test_an_outage_is_no_damage(folder, monkeypatch, failing):
    read = Folder.read

    def refused(self, name):
        if name.startswith(failing):
            raise PermissionError("Access Denied")
        return read(self, name)

    monkeypatch.setattr(Folder, "read", refused)
    with pytest.raises((RunFailed, PermissionError), match="Access Denied") as told:
        list(Scores(folder.url).stream("predictions"))
    assert "repair" not in str(told.value)


def test_who_may_not_write_is_told(folder, monkeypatch):
    def refused(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(Folder, "write", refused)
    monkeypatch.setattr(Folder, "delete", refused)
    for call in (lambda: Scores(folder.url).write("x", b""), lambda: Scores(folder.url).delete("x")):
        with pytest.raises(ConfigError, match="read-only"):
            call()


def test_what_is_not_there_is_told(tmp_path, folder):
    with pytest.raises(ConfigError, match="not a destination"):
        Scores(str(tmp_path / "predictions"))
    build(Folder(str(tmp_path / "few")), SHARDS, outputs={"predictions": {}})
    few = Scores(str(tmp_path / "few"))
    with pytest.raises(ConfigError, match="--outputs predictions,embeddings"):
        list(few.stream("embeddings"))
    few.folder.delete("classes.parquet")
    with pytest.raises(ConfigError, match=r"classes\.parquet"):
        few.class_names  # noqa: B018

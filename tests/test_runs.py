"""What each run leaves behind in `_runs/`, and that rows lead to it. Without Ray, as in test_histories."""

import json
from pathlib import Path

import pytest

from birder_ray import RunFailed, pipeline
from birder_ray.config import RunConfig
from birder_ray.folder import Folder
from birder_ray.testing import make_shards
from tests.built import ROWS
from tests.test_histories import Died, chance  # noqa: F401


@pytest.fixture
def config(chance, tmp_path) -> RunConfig:  # noqa: F811
    make_shards(str(tmp_path / "data"), 45, 2, size=(4, 4), labels=False)
    return RunConfig(
        source=str(tmp_path / "data"), model="m", destination=str(tmp_path / "out"), compute={"unit_rows": ROWS}
    )


def runs(config: RunConfig) -> dict[str, dict]:
    files = sorted(Path(config.destination, "_runs").iterdir())
    return {path.stem: json.loads(path.read_text()) for path in files}


def commits(config: RunConfig) -> list[dict]:
    return [json.loads(path.read_text()) for path in Path(config.destination, "_commits").iterdir()]


def test_a_run_says_what_it_did_with_what(config):
    summary = pipeline.run(config)
    ((name, told),) = runs(config).items()
    assert (summary.run, told["run"], told["outcome"]) == (name, name, "done")
    assert told["versions"].keys() >= {"birder-ray", "torch", "ray"}
    assert told["plan"] == {"units_done": 0, "units_todo": None, "units_growing": 0, "samples": None}
    assert (told["hardware"]["cpus"], told["sizes"]["inference_actors"]) == (2, 2)
    assert (told["images"], told["total_images"]) == (90, 90)
    assert {commit["run"] for commit in commits(config)} == {name}


def test_a_run_with_nothing_to_do_leaves_nothing(config):
    pipeline.run(config)
    before = runs(config)
    pipeline.run(config)
    assert runs(config) == before


def test_a_run_that_died_is_there_from_before_its_first_commit(config, chance):  # noqa: F811
    chance.lives = 0
    with pytest.raises(Died):
        pipeline.run(config)
    (first,) = runs(config).values()
    assert (first["outcome"], "finished" in first) == ("running", False)
    chance.lives = 12
    with pytest.raises(Died):
        pipeline.run(config)
    chance.lives = 10**9
    pipeline.run(config)
    outcomes = {name: told["outcome"] for name, told in runs(config).items()}
    assert sorted(outcomes.values()) == ["done", "running", "running"]
    by_run = [commit["run"] for commit in commits(config)]
    assert set(by_run) < set(outcomes)


def test_a_record_that_cannot_be_finished_undoes_nothing(config, monkeypatch):
    write = Folder.write

    def full(self, name, data):
        if name.startswith("_runs/") and b'"done"' in data:
            raise OSError(28, "No space left on device")
        write(self, name, data)

    monkeypatch.setattr(Folder, "write", full)
    assert pipeline.run(config).images == 90
    assert [told["outcome"] for told in runs(config).values()] == ["running"]


def test_a_run_that_failed_says_why(config, monkeypatch):
    def stream(*_):
        raise RunFailed("a remote step failed: boom")
        yield

    monkeypatch.setattr(pipeline.runtime, "stream", stream)
    with pytest.raises(RunFailed):
        pipeline.run(config)
    (told,) = runs(config).values()
    assert told["outcome"] == "RunFailed: a remote step failed: boom"
    assert told["finished"] >= told["started"]

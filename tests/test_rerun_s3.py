"""A rerun drill as a scheduler would have it, from S3 to S3, with real Ray and the commands that users type: a first
run, then a source that has grown by a fifth, changed and shrunk, a kill half-way, and the same command again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from birder_ray import history
from birder_ray.folder import Folder
from birder_ray.plan import split_name
from birder_ray.record import COMMITS, record_name
from birder_ray.testing import make_shards
from birder_ray.verify import verify
from tests.chaos.processes import family, send, short
from tests.results import assert_same_rows, table

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow, pytest.mark.timeout(900)]
IMAGES, SHARDS, UNIT = 10, 10, 5
TABLES = ("predictions", "embeddings", "features")


class Command:
    """`birder-ray ARGUMENTS`, with a Ray of its own."""

    def __init__(self, *arguments: str):
        self.temporary = short("drill")
        environment = {**os.environ, "RAY_TMPDIR": str(self.temporary)}
        command = [str(Path(sys.executable).with_name("birder-ray")), *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def said(self) -> dict:
        """What it prints as JSON, once it has ended well."""
        out, err = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, err
        told: dict = json.loads(out)
        return told

    def kill(self) -> None:
        """As when the machine goes: the driver and all that it has started."""
        send(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=60)
        deadline = time.monotonic() + 30
        while (left := family(self.temporary)) and time.monotonic() < deadline:
            for pid in left:
                send(pid, signal.SIGKILL)
            time.sleep(0.1)


def records(folder: Folder) -> dict[str, dict]:
    names = [name.removesuffix(".json") for name in folder.names(COMMITS)]
    return {name: folder.read_json(record_name(name)) for name in names}


def content(folder: Folder, options: dict) -> dict:
    return {name: table(folder.url, name, options) for name in TABLES}


def test_the_drill(seaweed, model, tmp_path):
    data, options = f"{seaweed.url}/data", seaweed.options

    def pipeline(out: str) -> str:
        told = {
            "source": {"uri": data, "options": options},
            "model": model,
            "destination": f"{seaweed.url}/{out}",
            "destination_options": options,
            "compute": {"unit_rows": UNIT, "gpus_per_actor": 0, "batch_size": 5},
        }
        path = tmp_path / f"{out}.yaml"
        path.write_text(yaml.safe_dump(told))
        return str(path)

    make_shards(data, images_per_shard=IMAGES, shards=SHARDS, options=options)
    scores, folder = pipeline("scores"), Folder(f"{seaweed.url}/scores", options)
    first = Command("rerun", scores, "--json").said()
    assert (len(first["shards"]["new"]), first["images"]) == (SHARDS, IMAGES * SHARDS)
    before, old = records(folder), content(folder, options)

    # Two shards more, one with other photos in it, one less
    make_shards(f"{seaweed.url}/more", images_per_shard=IMAGES, shards=SHARDS + 2, seed=1, options=options)
    files = folder.fs
    bucket = data.removeprefix("s3://").rpartition("/")[0]
    for number in (3, SHARDS, SHARDS + 1):
        files.copy(f"{bucket}/more/shard-{number:06d}.tar", f"{bucket}/data/shard-{number:06d}.tar")
    files.rm(f"{bucket}/data/shard-000007.tar")

    killed = Command("rerun", scores, "--json")
    deadline = time.monotonic() + 240
    while len(folder.names(COMMITS)) <= len(before):
        assert killed.process.poll() is None and time.monotonic() < deadline, "it has begun to commit"
        time.sleep(0.05)
    killed.kill()
    half = records(folder).keys() - before.keys()
    assert 0 < len(half) < 3 * IMAGES // UNIT, "amid the work"
    was = [parts for name in TABLES for parts in history.files(folder, first["snapshot"], (name,))[name]]
    assert len(was) == len(before) * len(TABLES), "the old state is readable while the new one is made"

    done = Command("rerun", scores, "--json").said()
    shards = done["shards"]
    assert shards["new"] == [f"shard-{number:06d}.tar" for number in (SHARDS, SHARDS + 1)]
    assert (shards["changed"], shards["retired"]) == (["shard-000003.tar"], ["shard-000007.tar"])
    assert shards["unchanged"] == SHARDS - 2
    assert done["units"] == 3 * IMAGES // UNIT - len(half), "what was committed before the kill is not done again"

    after = records(folder)
    kept = before.keys() & after.keys()
    assert len(kept) == (SHARDS - 2) * IMAGES // UNIT
    assert all(after[unit] == before[unit] for unit in kept), "nothing was computed again"
    assert max(before[unit]["finished"] for unit in kept) < min(after[unit]["finished"] for unit in after.keys() - kept)
    names = {each["run"]: each["outcome"] for each in _runs(folder)}
    assert sorted(names.values()) == ["done", "done", "running"], "the one that was killed is there, too"
    assert {record["run"] for record in after.values()} == names.keys()
    assert {split_name(unit)[0].rpartition("-")[0] for unit in before.keys() - kept} == {
        "shard-000003.tar",
        "shard-000007.tar",
    }

    verify(folder.url, options, deep=True)
    fresh = Command("rerun", pipeline("fresh"), "--json").said()
    assert fresh["images"] == IMAGES * (SHARDS + 1)
    for name, rows in content(Folder(f"{seaweed.url}/fresh", options), options).items():
        assert_same_rows(table(folder.url, name, options), rows)
    for name in TABLES:
        assert_same_rows(_read(history.files(folder, first["snapshot"], (name,))[name], options), old[name])

    started = time.monotonic()
    again = Command("rerun", scores, "--json").said()
    assert (again["units"], again["shards"]["unchanged"]) == (0, SHARDS + 1)
    assert time.monotonic() - started < 30, "without Ray, seconds"


def _runs(folder: Folder) -> list[dict]:
    return [folder.read_json(f"_runs/{name}") for name in folder.names("_runs")]


def _read(urls: list[str], options: dict):
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = Folder(urls[0].rpartition("/")[0], options).fs
    rows = pa.concat_tables([pq.read_table(files.open(url)) for url in urls])
    return rows.sort_by([("shard", "ascending"), ("index", "ascending")])

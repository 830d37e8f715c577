"""Messages as JSON: every line of standard error is an object that names its run."""

import io
import json
import logging
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from birder_ray.errors import RunFailed
from birder_ray.jsonlog import JsonLog
from birder_ray.progress import Meter
from birder_ray.testing import make_shards
from tests.chaos.processes import short


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(Path(sys.executable).with_name("birder-ray")), *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def test_what_a_run_tells():
    stream, meter = io.StringIO(), Meter(total=100, before=20, workers={"infer": 2})
    log = JsonLog(stream)
    log.notice("before it has a name")
    log.start("20261122T154000Z-1f2e3d")
    log.begin(meter)
    meter.images = 30
    log.update()
    log.update()
    log.end()
    assert log.failed(RunFailed("two\nlines, secret=abc")) == 1
    told = lines(stream.getvalue())
    assert [line["event"] for line in told] == ["notice", "start", "begin", "progress", "end", "failed"]
    assert ["run" in line for line in told] == [False, True, True, True, True, True]
    assert all(datetime.fromisoformat(line["time"]).utcoffset().total_seconds() == 0 for line in told)
    assert (told[3]["images"], told[3]["images_left"]) == (30, 50)
    assert (told[-1]["error"], told[-1]["exit_code"], told[-1]["level"]) == ("RunFailed", 1, "error")
    assert "abc" not in told[-1]["message"]


def test_what_libraries_log_is_told_too():
    stream = io.StringIO()
    log, root = JsonLog(stream), logging.getLogger()
    before = list(root.handlers)
    log.listen()
    try:
        logging.getLogger("birder_ray.engine").warning("going on without %s", "a compiler")
        logging.getLogger("somewhere").info("not worth it")
        logging.getLogger("somewhere").warning("%d files", "not a number")
        logging.getLogger("somewhere").warning(
            "GET https://me:pw@host/a?X-Amz-Signature=abc, secret=hunter2 Bl\udce4ss"
        )
    finally:
        root.handlers[:] = before
        logging.captureWarnings(False)
        logging.raiseExceptions = True
    told, secret = lines(stream.getvalue())
    assert not any(hidden in secret["message"] for hidden in ("pw", "abc", "hunter2"))
    assert (told["level"], told["logger"]) == ("warning", "birder_ray.engine")
    assert told["message"] == "going on without a compiler"


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_mistake_is_one_line(tmp_path, how):
    score = ["score", str(tmp_path / "nowhere"), "--model", "m", "--output", str(tmp_path / "out")]
    done = command("--log", "json", *score) if how == "option" else command(*score, BIRDER_RAY_LOG="json")
    failed = lines(done.stderr)[-1]
    assert (done.returncode, failed["event"], failed["exit_code"]) == (2, "failed", 2)
    assert "nowhere" in failed["message"]


@pytest.mark.ray
def test_a_run_and_its_records_go_by_one_name(tmp_path, model):
    make_shards(str(tmp_path / "data"), 12, 1)
    out = tmp_path / "out"
    score = ["score", str(tmp_path / "data"), "--model", model, "--output", str(out)]
    done = command("--log", "json", *score, RAY_TMPDIR=str(short("jsonlog")))
    assert done.returncode == 0, done.stderr
    told = lines(done.stderr)
    (run,) = {line["run"] for line in told if "run" in line}
    assert {"start", "begin", "end", "done"} <= {line["event"] for line in told}
    record = json.loads((out / "_runs" / f"{run}.json").read_text())
    (done_line,) = [line for line in told if line["event"] == "done"]
    assert (record["outcome"], record["images"], done_line["images"]) == ("done", 12, 12)
    assert record["ray_job"]
    assert {json.loads(path.read_text())["run"] for path in (out / "_commits").iterdir()} == {run}

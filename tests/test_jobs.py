"""`ray job submit` with birder-ray as an installed package, and what Prometheus scrapes of it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from birder_ray.testing import make_shards
from birder_ray.verify import verify
from tests.namespaces import possible

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
CLUSTER = Path(sys.prefix) / "cluster" / "bin"
ROOT = Path(__file__).parent.parent
IMAGES, SHARDS, UNIT = 60, 4, 10


@pytest.fixture(scope="module")
def said(model, tmp_path_factory) -> dict:
    """What tests/jobs.py says."""
    folder = tmp_path_factory.mktemp("jobs")
    make_shards(str(folder / "data"), IMAGES, SHARDS, "images")  # whose number is known, so that some are left
    (folder / "data" / "empty.jpg").touch()
    told = {
        "source": str(folder / "data"),
        "model": model,
        "destination": str(folder / "out"),
        "compute": {"unit_rows": UNIT, "batch_size": 5, "ray_address": "auto", "gpus_per_actor": 0},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(told))
    (folder / "mistake.yaml").write_text(yaml.safe_dump({**told, "source": str(folder / "nowhere")}))
    alone = ["unshare", "--kill-child", "--net", "--pid", "--mount", "--fork", "--mount-proc"]
    within = ["sh", "-c", 'ip link set lo up && "$0" "$@"']
    script = [sys.executable, "-m", "tests.jobs", str(CLUSTER), str(folder)]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [*alone, *within, *script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {**json.loads(done.stdout.splitlines()[-1]), "folder": folder}


needs = pytest.mark.skipif(
    not ((CLUSTER / "birder-ray").exists() and possible()),
    reason="needs root, iproute2, and the environment that `make test` puts beside this one",
)


@needs
def test_a_job_is_stopped_and_goes_on(said):
    jobs = said["jobs"]
    codes = {name: job["code"] for name, job in jobs.items()}
    assert codes == {"begun": 0, "stopped": 0, "resumed": 0, "again": 0, "mistake": 1}, jobs
    assert 0 < said["commits"] < SHARDS * IMAGES // UNIT, "amid the work"
    totals = verify(str(said["folder"] / "out"))
    assert (totals.rows, totals.errors) == (IMAGES * SHARDS, 1)
    assert "everything was done already" in jobs["again"]["output"]


@needs
def test_a_mistake_is_one_line_of_the_jobs_log(said):
    output = said["jobs"]["mistake"]["output"]
    assert "nowhere" in output and "Traceback" not in output


@needs
def test_prometheus_scrapes_what_alerts_and_dashboard_go_by(said):
    monitoring = ROOT / "infra/monitoring"
    used = set(re.findall(r"ray_birder_ray_\w+", (monitoring / "rules.yaml").read_text()))
    used |= set(re.findall(r"ray_birder_ray_\w+", (monitoring / "dashboard.json").read_text()))
    values: dict[str, float] = {}
    for series in said["series"]:
        assert {"recipe", "SessionName"} <= series["labels"].keys(), series
        values[series["name"]] = values.get(series["name"], 0) + series["value"]
    assert used and used <= values.keys()
    counted = {name: values[f"ray_birder_ray_{name}_total"] for name in ("images", "errors")}
    assert counted["errors"] > 0 and 0 < counted["images"] <= IMAGES * SHARDS

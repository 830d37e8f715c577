"""Rows stay where they were scored until a task there writes them; who loses them says so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from birder_ray.testing import make_shards
from birder_ray.verify import verify
from tests.chaos.processes import short

pytestmark = [pytest.mark.ray, pytest.mark.s3]
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("step", ["undisturbed", "lose", "grow"])
def test_a_cluster_writes_beside_the_rows(seaweed, model, step):
    images, shards = 40, 3
    make_shards(f"{seaweed.url}/data", images_per_shard=images, shards=shards, options=seaweed.options)
    config = {
        "source": {"uri": f"{seaweed.url}/data", "options": seaweed.options},
        "model": model,
        "destination": f"{seaweed.url}/out",
        "destination_options": seaweed.options,
        "compute": {"unit_rows": 10, "batch_size": 5, "max_cpus": 4},
    }
    command = [sys.executable, "-m", "tests.cluster", json.dumps(config), step]
    environment = {**os.environ, "RAY_TMPDIR": str(short("cluster"))}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert [at < images * shards / 10 for at in said["lost_at"]] == [True] * (step == "lose"), "amid the work"
    assert said["images"] == images * shards
    assert not [name for name in said["written"] if name.startswith(("predictions/", "embeddings/", "features/"))]
    assert verify(f"{seaweed.url}/out", seaweed.options).samples == images * shards

"""The benchmarks that reach into the package still run, at their smallest, and what they say is there."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.processes import short

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def figures(tmp_path):
    """Runs a script; what it wrote as JSON, and what it said."""
    env = {**os.environ, "RAY_TMPDIR": str(short("bench")), "BIRDER_RAY_CACHE": str(tmp_path / "cache")}

    def call(script, *arguments):
        file = tmp_path / "figures.json"
        command = [sys.executable, str(BENCHMARKS / script), *arguments, "--json", str(file)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(file.read_text()), done

    return call


def test_scaling(figures):
    found, done = figures("scaling.py", "--what", "driver", "--quick")
    for row in found["driver"].values():
        assert row["images/s"] > 0 and row["driver, cores"] > 0
        assert row["driver: Ray Data, µs/image"] > 0 and row["driver: iterate, µs/image"] > 0
    assert "What is full:" in done.stdout


def test_peers(figures, photos):
    """Two scripts that use birder's own API, and not birder-ray, find the same numbers."""
    found, done = figures(
        "peers.py", "--check", "--network", "efficientnet_lite0", "--engine", "eager", "--images", "64",
        "--rounds", "1", "--peers", "Ray Data, two passes", "Ray Data, fused",
    )  # fmt: skip
    rates = {name: rounds["images/s"] for name, rounds in found["found"].items()}
    assert set(rates) == {"birder-ray", "Ray Data, two passes", "Ray Data, fused"}
    assert all(rate > 0 for (rate,) in rates.values())
    assert done.stderr.count("same prediction for each of 64 photos") == 2


def test_gpu_rehearsed(figures, photos):
    """The table of a GPU, but on the CPU."""
    found, _ = figures("gpu.py", "--device", "cpu", "--networks", "efficientnet_lite0", "--seconds", "0.5")
    rates = {name: rounds["images/s"][0] for name, rounds in found["found"].items() if "images/s" in rounds}
    assert len(rates) == 11 and all(math.isfinite(rate) and rate > 0 for rate in rates.values())
    numbers = next(rounds for name, rounds in found["found"].items() if name.endswith("numbers"))
    assert numbers["same prediction"] == [1] and numbers["probability"] == [0]

"""What a user only asks about a run must answer at once: these modules start without torch and without Ray."""

import subprocess
import sys

import pytest

LIGHT = ["config", "storage", "schema", "commit", "manifest", "lock", "plan", "verify", "cli"]
LIGHT += ["report", "page", "photos", "checklist", "evaluate", "compare", "export", "neighbours", "rollup"]
HEAVY = ["torch", "torchvision", "ray", "birder"]


@pytest.mark.parametrize("module", LIGHT)
def test_it_imports_neither_torch_nor_ray(module: str) -> None:
    code = f"import sys, birder_ray.{module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == []

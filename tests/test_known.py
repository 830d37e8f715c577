"""birder's registry, kept in a file: what it says, when it is asked again, and what is not imported thanks to it."""

import json
import subprocess
import sys

import pytest
from birder.model_registry import Task, registry

from birder_ray.backbone import known as module
from birder_ray.testing import tiny_checkpoint


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A cache of its own; returns the calls to birder."""
    monkeypatch.setenv("BIRDER_RAY_CACHE", str(tmp_path / "cache"))
    calls, ask = [], module._ask
    monkeypatch.setattr(module, "_ask", lambda: calls.append(1) or ask())
    monkeypatch.setattr(module, "known", module.known.__wrapped__)
    return calls


def test_the_file_says_what_birder_says(fresh):
    first, second = module.known(), module.known()
    assert first.networks == second.networks and len(fresh) == 1
    names = [*registry.list_models(task=Task.IMAGE_CLASSIFICATION), *registry.name_aliases]
    assert all(registry.exists(name, task=Task.IMAGE_CLASSIFICATION) == (name in second.networks) for name in names)
    assert second.names("image_classification") == registry.list_pretrained_models(task=Task.IMAGE_CLASSIFICATION)
    for name, entry in second.pretrained.items():
        assert entry == json.loads(json.dumps(registry.get_pretrained_metadata(name)))


def test_another_birder_or_a_damaged_file_is_asked_again(fresh, tmp_path, monkeypatch):
    module.known()
    monkeypatch.setattr(module, "_fingerprint", lambda: "another")
    module.known()
    assert len(fresh) == 2
    for content in ("", "[]", '{"version": "0"}'):
        (tmp_path / "cache" / "birder-another.json").write_text(content)
        module.known()
    assert len(fresh) == 5


def test_a_cache_that_cannot_be_written_costs_time_only(fresh, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert "hgnet_v2_b0" in module.known().networks


def test_a_model_is_identified_without_torch_and_birder(fresh, tmp_path):
    tiny_checkpoint(str(tmp_path / "hgnet_v2_b0_x.pt"))
    module.known()
    script = (
        "import sys; from birder_ray.backbone import resolve; from birder_ray.config import ModelConfig; "
        f"assert resolve(ModelConfig(name={str(tmp_path / 'hgnet_v2_b0_x.pt')!r})).network == 'hgnet_v2_b0'; "
        "assert not {'torch', 'birder'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

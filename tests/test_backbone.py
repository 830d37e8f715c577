"""Names to weights, and every output in one pass equal to birder's own calls."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from birder.common.fs_ops import load_model
from birder.model_registry import Task, registry

from birder_ray.backbone import Backbone, Weights, catalogue, resolve
from birder_ray.config import ModelConfig
from birder_ray.errors import ConfigError
from birder_ray.passes import Passes
from birder_ray.testing import tiny_checkpoint

# One of each kind of layout: NCHW, NHWC, tokens behind special tokens, tokens in another order, levels overwritten in
# place, no detection_features, two classifiers, outputs that are tuples
NETWORKS = {
    "hgnet_v2_b0": 64,
    "hieradet_d_tiny": 64,
    "deit3_reg4_t16": 64,
    "hiera_tiny": 224,
    "resnet_v2_18": 64,
    "squeezenet": 64,
    "deit_t16": 64,
    "efficientvim_m1": 64,
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def mean(level: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"mean": level.mean(dim=2)}


def checkpoint(folder: Path, network: str, size: int, reparameterized: bool = False, classes: int = 5) -> str:
    torch.manual_seed(0)
    net: Any = registry.net_factory(network, classes, size=(size, size))
    if hasattr(net, "reparameterize_model"):  # its fresh statistics let the signal explode
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        net.train()(torch.randn(4, 3, size, size))
    if reparameterized:
        net.eval().reparameterize_model()
    path = folder / f"{network}_test.pt"
    signature = {"inputs": [{"data_shape": [0, 3, size, size]}], "outputs": [{"data_shape": [0, classes]}]}
    stats = {"mean": [0.5] * 3, "std": [0.25] * 3}
    torch.save({"state": net.state_dict(), "signature": signature, "class_to_idx": {}, "rgb_stats": stats}, path)
    return str(path)


def birder_net(weights: Weights, reparameterized: bool = False, size: tuple[int, int] | None = None) -> Any:
    return load_model(
        torch.device("cpu"),
        weights.network,
        path=weights.path,
        inference=True,
        reparameterized=reparameterized,
        new_size=size,
    )[0]


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 1e-5 of the largest value: some of these networks give values of thousands with random weights."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


def assert_same(backbone: Backbone, net: Any, size: tuple[int, int]) -> None:
    images = torch.randn((3, 3, *size), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        outputs = backbone.forward(images)
        assert_near(outputs.logits, net(images))
        assert torch.equal(backbone.logits(images), outputs.logits)
        embedding = net.embedding(images)
        assert_near(outputs.embedding, (embedding if isinstance(embedding, torch.Tensor) else embedding[0]).flatten(1))
        levels = net.detection_features(images) if hasattr(net, "detection_features") else {}
        assert list(outputs.features) == list(levels or ["features"])
        for name, level in levels.items():
            assert_near(outputs.features[name]["mean"], level.mean(dim=(2, 3)))


@pytest.mark.parametrize("network", NETWORKS)
def test_one_pass_gives_what_birder_gives(network, tmp_path):
    size = NETWORKS[network]
    weights = resolve(ModelConfig(name=checkpoint(tmp_path, network, size)))
    backbone = Backbone(weights, reduce=mean)
    assert backbone.passes.count == 1
    assert_same(backbone, birder_net(weights), (size, size))


@pytest.mark.parametrize("network", ["hgnet_v2_b0", "hieradet_d_tiny"])
@pytest.mark.parametrize("size", [(96, 96), (64, 96)])
def test_another_size(network, size, tmp_path):
    weights = resolve(ModelConfig(name=checkpoint(tmp_path, network, 64)))
    backbone = Backbone(weights, size=size, reduce=mean)
    assert backbone.size == size and backbone.passes.count == 1
    assert_same(backbone, birder_net(weights, size=size), size)


@pytest.mark.parametrize("saved", [False, True], ids=["plain", "reparameterized"])
def test_reparameterizable_networks_load_either_way(saved, tmp_path):
    weights = resolve(ModelConfig(name=checkpoint(tmp_path, "mobileone_s0", 64, reparameterized=saved)))
    assert weights.reparameterized is None
    assert_same(Backbone(weights, reduce=mean), birder_net(weights, reparameterized=saved), (64, 64))


def test_safetensors(tmp_path):
    pytest.importorskip("safetensors")
    from birder.common.fs_ops import save_st

    weights = resolve(ModelConfig(name=checkpoint(tmp_path, "hgnet_v2_b0", 64)))
    content = torch.load(weights.path, weights_only=True)
    path = str(tmp_path / "hgnet_v2_b0_st.safetensors")
    save_st(birder_net(weights), path, Task.IMAGE_CLASSIFICATION, {}, content["signature"], content["rgb_stats"])
    assert_same(Backbone(resolve(ModelConfig(name=path)), reduce=mean), birder_net(weights), (64, 64))


def test_some_levels_or_none(tmp_path):
    weights = resolve(ModelConfig(name=checkpoint(tmp_path, "hgnet_v2_b0", 64)))
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert list(Backbone(weights, levels=("stage3",), reduce=mean).forward(images).features) == ["stage3"]
        assert Backbone(weights, levels=(), reduce=mean).forward(images).features == {}
    with pytest.raises(ConfigError, match="no feature level stage9; this network has stage1, stage2, stage3, stage4"):
        Backbone(weights, levels=("stage9",), reduce=mean)


class Odd(torch.nn.Module):
    """A network whose level no module returns, and whose embedding is not the one of its classifier."""

    num_classes = 2

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward_features(self, x):
        return self.conv(x) * 2

    def embedding_from_features(self, x):
        return x.mean(dim=(2, 3))

    def classify(self, x):
        return x[:, :2]

    def embedding(self, x):
        return self.embedding_from_features(self.forward_features(x)) + 1

    def detection_features(self, x):
        return {"stage1": self.conv(x) * 3}

    def forward(self, x):
        return self.classify(self.embedding_from_features(self.forward_features(x)))


@torch.inference_mode()
def test_what_one_pass_cannot_give_gets_its_own():
    net, images = Odd().eval(), torch.randn(2, 3, 8, 8)
    passes = Passes(net, images, "all", mean)
    outputs = passes(images, with_levels=True)
    assert passes.count == 3
    torch.testing.assert_close(outputs.embedding, net.embedding(images))
    torch.testing.assert_close(outputs.logits, net(images))
    torch.testing.assert_close(
        outputs.features["stage1"]["mean"], net.detection_features(images)["stage1"].mean((2, 3))
    )


def test_low_precision_keeps_the_taps(tmp_path):
    weights = resolve(ModelConfig(name=checkpoint(tmp_path, "hgnet_v2_b0", 64)))
    exact, rough = (Backbone(weights, dtype=dtype, reduce=mean) for dtype in ("float32", "bfloat16"))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected, actual = exact.forward(images).features, rough.forward(images).features
    assert rough.passes.count == 1
    for level in expected:
        torch.testing.assert_close(actual[level]["mean"].float(), expected[level]["mean"], rtol=0.1, atol=0.05)


def test_without_classifier(tmp_path):
    weights = resolve(ModelConfig(name=checkpoint(tmp_path, "hgnet_v2_b0", 64, classes=0)))
    backbone = Backbone(weights, reduce=mean)
    assert backbone.class_names == []
    with pytest.raises(ConfigError, match="no classifier; leave predictions out"):
        backbone.require_classes()


def test_wrong_network_or_size(tmp_path):
    path = checkpoint(tmp_path, "hgnet_v2_b0", 64)
    with pytest.raises(ConfigError, match="does not fit the network hgnet_v2_b2: Error"):
        Backbone(resolve(ModelConfig(name=path, network="hgnet_v2_b2")), reduce=mean)
    square = resolve(ModelConfig(name=checkpoint(tmp_path, "hiera_tiny", 224)))
    with pytest.raises(ConfigError, match="hiera_tiny: cannot take 200 x 100 px"):
        Backbone(square, size=(200, 100), reduce=mean)


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    monkeypatch.setenv("BIRDER_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_published_name(models, monkeypatch):
    tiny_checkpoint(str(models / "hgnet_v2_b2_danube-delta.pt"), network="hgnet_v2_b2")
    with pytest.raises(ConfigError, match="is not the published"):
        resolve(ModelConfig(name="hgnet_v2_b2_danube-delta"))
    monkeypatch.setattr("birder_ray.weights._check", lambda *_: None)
    weights = resolve(ModelConfig(name="hgnet_v2_b2_danube-delta"))
    assert (weights.network, weights.size, weights.reparameterized) == ("hgnet_v2_b2", (64, 64), False)
    assert len(weights.class_names) == 7 and len(weights.sha256) == 64


def test_old_names_mean_the_networks_they_meant(models):
    """`hieradet_small` of today would load these weights without complaint, and compute something else."""
    name = "hieradet_small_dino-v2-inat21"
    with pytest.raises(ConfigError, match=r"hieradet_d_small_dino-v2-inat21\.pt: not there"):
        resolve(ModelConfig(name=name))
    path = models / f"{name}.pt"
    tiny_checkpoint(str(path))
    for reference in (name, str(path)):
        assert resolve(ModelConfig(name=reference)).network == "hieradet_small"
    torch.save({**torch.load(path, weights_only=True), "birder_version": "0.3.1"}, path)
    for reference in (name, str(path)):
        assert resolve(ModelConfig(name=reference)).network == "hieradet_d_small"


def test_the_catalogue_knows_what_is_here(models):
    assert not any(entry.path for entry in catalogue("hgnet_v2"))
    tiny_checkpoint(str(models / "hgnet_v2_b2_danube-delta.pt"))
    found = {entry.name: entry for entry in catalogue("hgnet_v2*")}
    here = found["hgnet_v2_b2_danube-delta"]
    assert (here.network, here.size, here.classes) == ("hgnet_v2_b2", (256, 256), 7)
    assert here.path == str(models / "hgnet_v2_b2_danube-delta.pt")
    assert [name for name, entry in found.items() if entry.path] == [here.name]
    assert len(catalogue("*")) > 200
    assert catalogue("no-such") == []


def test_own_names(models):
    tiny_checkpoint(str(models / "hgnet_v2_b0_our-valley.pt"))
    assert resolve(ModelConfig(name="hgnet_v2_b0_our-valley")).network == "hgnet_v2_b0"
    tiny_checkpoint(str(models / "valley.pt"))
    assert resolve(ModelConfig(name="valley", network="hgnet_v2_b0")).name == "valley"
    with pytest.raises(ConfigError, match="pass --network"):
        resolve(ModelConfig(name="valley"))
    with pytest.raises(ConfigError, match="pass --network"):
        resolve(ModelConfig(name=str(models / "valley.pt")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "hgnet_v2_b2_danub-delta"}, "did you mean hgnet_v2_b2_danube-delta"),
        ({"name": "{dir}/hgnet_v2_b0_x.pt", "network": "hgnet_v2_b9"}, "no such birder network; did you mean hgnet"),
        ({"name": "model.pt2"}, "not supported"),
    ],
)
def test_wrong_names(models, fields, message):
    tiny_checkpoint(str(models / "hgnet_v2_b0_x.pt"))
    with pytest.raises(ConfigError, match=message):
        resolve(ModelConfig(**{key: value.format(dir=models) for key, value in fields.items()}))


def test_models_of_other_tasks(models, monkeypatch):
    name = next(
        n
        for n in registry.list_pretrained_models()
        if registry.get_pretrained_metadata(n)["task"] != Task.IMAGE_CLASSIFICATION
    )
    with pytest.raises(ConfigError, match="only image classification is supported"):
        resolve(ModelConfig(name=name))
    header = SimpleNamespace(task="object_detection", birder_version=())
    monkeypatch.setattr("birder_ray.weights.read_header", lambda path: header)
    tiny_checkpoint(str(models / "hgnet_v2_b0_x.pt"))
    with pytest.raises(ConfigError, match="a model for object_detection"):
        resolve(ModelConfig(name="hgnet_v2_b0_x"))


def test_what_a_backbone_knows_of_itself(tmp_path):
    tiny_checkpoint(str(tmp_path / "hgnet_v2_b0_x.pt"))
    backbone = Backbone(resolve(ModelConfig(name=str(tmp_path / "hgnet_v2_b0_x.pt"))), reduce=mean)
    assert (backbone.weights.network, backbone.passes.count, backbone.num_classes) == ("hgnet_v2_b0", 1, 7)
    assert backbone.passes.levels == {"stage1": 64, "stage2": 256, "stage3": 512, "stage4": 1024}


class Shared(Odd):
    """A network that runs the layer of its level twice, and gives the first result as the level."""

    def forward_features(self, x):
        return self.conv(torch.nn.functional.pad(self.conv(x)[:, :3], (1, 1, 1, 1)))

    def embedding(self, x):
        return self.embedding_from_features(self.forward_features(x))

    def detection_features(self, x):
        return {"stage1": self.conv(x)}


@torch.inference_mode()
def test_a_layer_that_runs_twice_is_no_tap():
    net, images = Shared().eval(), torch.randn(2, 3, 8, 8)
    passes = Passes(net, images, "all", mean)
    assert passes.count == 2
    levels = passes(images, with_levels=True).features
    torch.testing.assert_close(levels["stage1"]["mean"], net.detection_features(images)["stage1"].mean((2, 3)))
    assert not net.conv._forward_hooks

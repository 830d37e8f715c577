"""Scoring chunks: the numbers are birder's, whatever the batch size; bad outputs and full memory are dealt with."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from birder.common.fs_ops import load_model
from birder.data.transforms.classification import inference_preset
from birder.inference.classification import infer_image
from PIL import Image

from birder_ray.chunk import Chunk, Sample
from birder_ray.config import ComputeConfig, ModelConfig, OutputsConfig, PredictionsConfig
from birder_ray.errors import ConfigError, RunFailed
from birder_ray.infer import Infer
from birder_ray.scoring import predictions
from birder_ray.testing import tiny_checkpoint

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelConfig:
    path = str(tmp_path_factory.mktemp("model") / "hgnet_v2_b0_tiny.pt")
    tiny_checkpoint(path)
    return ModelConfig(name=path)


def make(model: ModelConfig, outputs: OutputsConfig | None = None, **options) -> Infer:
    return Infer(model, outputs or OutputsConfig.all(), device="cpu", threads=1, **options)


def chunk(pixels: np.ndarray = PIXELS) -> Chunk:
    pixels = pixels.copy()
    pixels.flags.writeable = False  # as it comes out of Arrow
    samples = [Sample(f"s{i}", i, f"label{i}" if i else None, f"file:///s{i}") for i in range(len(pixels))]
    return Chunk("unit", "shard", 0, True, True, samples, [], {"read": 1.0}, images=pixels)


def tables(out: Chunk) -> dict[str, pa.Table]:
    assert out.tables is not None and out.images is None
    return {name: pa.ipc.open_stream(data).read_all() for name, data in out.tables.items()}


def values(table: pa.Table, column: str) -> np.ndarray:
    return np.array(table[column].to_pylist())


@pytest.fixture(scope="module")
def birder(model):
    net, info = load_model(torch.device("cpu"), "hgnet_v2_b0", path=model.name, inference=True)
    return net, inference_preset((64, 64), info.rgb_stats)


@pytest.fixture(scope="module")
def expected(birder):
    net, transform = birder
    results = [infer_image(net, Image.fromarray(image), transform, return_embedding=True) for image in PIXELS]
    return tuple(np.concatenate(part) for part in zip(*results, strict=True))


@pytest.mark.parametrize("batch_size", [1, 4, 9, 64])
def test_numbers_are_birders(model, birder, expected, batch_size):
    out = make(model, OutputsConfig(predictions={"logits": True}, embeddings={}, features={}), batch_size=batch_size)(
        chunk()
    )
    probabilities, embeddings = expected
    found = tables(out)
    predictions = found["predictions"]
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    assert np.array_equal(values(predictions, "top_indices"), order)
    np.testing.assert_allclose(
        values(predictions, "top_probabilities"), np.take_along_axis(probabilities, order, 1), rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(
        values(predictions, "entropy"), -(probabilities * np.log(probabilities)).sum(1), rtol=0, atol=1e-4
    )
    softmax = torch.from_numpy(values(predictions, "logits")).softmax(1).numpy()
    np.testing.assert_allclose(softmax, probabilities, rtol=0, atol=1e-5)
    assert values(predictions, "prediction").tolist() == [f"species-{i}" for i in order[:, 0]]
    assert values(predictions, "top_classes").tolist() == [[f"species-{i}" for i in row] for row in order]
    assert values(predictions, "label").tolist() == [None, *(f"label{i}" for i in range(1, 9))]
    np.testing.assert_allclose(values(found["embeddings"], "embedding"), embeddings, rtol=0, atol=1e-4)

    net, transform = birder
    with torch.inference_mode():
        levels = net.detection_features(torch.stack([transform(Image.fromarray(image)) for image in PIXELS]))
    for name, level in levels.items():
        found_means = values(found["features"], f"{name}_mean")
        np.testing.assert_allclose(found_means, level.mean(dim=(2, 3)).numpy(), rtol=0, atol=1e-4)


def test_rows_and_schemas(model):
    infer = make(model, batch_size=4)
    out = infer(chunk())
    for name, table in tables(out).items():
        assert table.schema == infer.schemas[name]
        assert values(table, "sample").tolist() == [f"s{i}" for i in range(9)]
        assert set(values(table, "shard")) == {"shard"} and values(table, "index").tolist() == list(range(9))
    assert set(out.seconds) == {"read", "infer"} and out.errors == []


@pytest.mark.parametrize("name", ["predictions", "embeddings", "features"])
def test_only_the_tables_asked_for(model, name):
    assert list(tables(make(model, OutputsConfig(**{name: {}}))(chunk()))) == [name]


def test_choices_of_outputs(model):
    outputs = OutputsConfig(
        predictions={"top_k": 50}, embeddings={"dtype": "float16"}, features={"levels": "stage2", "pooling": "gem"}
    )
    found = tables(make(model, outputs)(chunk()))
    assert values(found["predictions"], "top_indices").shape == (9, 7)  # as many as there are classes
    assert found["embeddings"].schema.field("embedding").type == pa.list_(pa.float16(), 2048)
    assert found["features"].column_names[3:] == ["stage2_gem"]


def test_tta_is_birders(model, birder, expected):
    net, transform = birder
    outputs = OutputsConfig(predictions={"logits": True}, embeddings={})
    found = tables(make(model.model_copy(update={"tta": True}), outputs, batch_size=4)(chunk()))
    for row, image in enumerate(PIXELS):
        probabilities, _ = infer_image(net, Image.fromarray(image), transform, tta=True)
        logits, _ = infer_image(net, Image.fromarray(image), transform, tta=True, return_logits=True)
        best = found["predictions"]["top_probabilities"][row].as_py()
        np.testing.assert_allclose(best, -np.sort(-probabilities[0])[:5], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found["predictions"]["logits"][row].as_py(), logits[0], rtol=0, atol=1e-4)
    np.testing.assert_allclose(values(found["embeddings"], "embedding"), expected[1], rtol=0, atol=1e-4)


def test_float_pixels_give_the_same(model):
    infer = make(model)
    scaled = torch.from_numpy(PIXELS).to(torch.float32).mul_(1 / 255).numpy()
    assert infer(chunk(scaled)).tables == infer(chunk()).tables


def test_ties_go_to_the_lower_index(model):
    logits = torch.tensor([[[1.0, 3.0, 3.0, 2.0, 2.0, 2.0, 0.0]]])
    assert predictions(logits, PredictionsConfig())["top_indices"].tolist() == [[1, 2, 3, 4, 5]]


def test_nothing_to_score(model):
    infer = make(model)
    out = infer(chunk(PIXELS[:0]))
    assert {name: (table.num_rows, table.schema) for name, table in tables(out).items()} == {
        name: (0, schema) for name, schema in infer.schemas.items()
    }


@pytest.mark.parametrize("bad", [[3], list(range(9))], ids=["one", "all"])
def test_outputs_that_are_not_finite_are_quarantined(model, bad):
    pixels = PIXELS.astype(np.float32) / 255
    pixels[bad] = np.nan
    out = make(model, batch_size=4)(chunk(pixels))
    assert [(error.index, error.step, error.error_type) for error in out.errors] == [
        (index, "infer", "NonFiniteOutput") for index in bad
    ]
    good = [index for index in range(9) if index not in bad]
    assert [sample.index for sample in out.samples] == good
    assert all(values(table, "index").tolist() == good for table in tables(out).values())


class SmallMemory:
    """Stands for a device that holds no more than `room` images."""

    def __init__(self, infer: Infer, room: int, error: type[RuntimeError], message: str):
        self.forward, self.room, self.error, self.message = infer.backbone.forward, room, error, message
        self.sizes: list[int] = []

    def __call__(self, images: torch.Tensor):
        self.sizes.append(len(images))
        if len(images) > self.room:
            raise self.error(self.message)
        return self.forward(images)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB"),
        (RuntimeError, "CUDA error: out of memory"),
        (RuntimeError, "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
    ],
)
def test_batches_are_halved_when_memory_runs_out(model, error, message, monkeypatch):
    infer = make(model, batch_size=8)
    whole = tables(infer(chunk()))
    small = SmallMemory(infer, 3, error, message)
    monkeypatch.setattr(infer.backbone, "forward", small)
    halved = tables(infer(chunk()))
    assert small.sizes == [8, 4, 2, 2, 2, 2, 1] and infer.batch_size == 2
    for name in whole:
        assert whole[name].column("sample") == halved[name].column("sample")
    np.testing.assert_allclose(
        values(halved["embeddings"], "embedding"), values(whole["embeddings"], "embedding"), rtol=0, atol=1e-5
    )
    small.sizes.clear()
    infer(chunk())
    assert small.sizes == [2, 2, 2, 2, 1]  # it has learnt


def test_threads_do_not_mix_their_batches(model):
    infer = make(model, batch_size=2)
    chunks = [chunk(np.roll(PIXELS, turn, axis=0)) for turn in range(8)]
    alone = [tables(infer(each)) for each in chunks]
    with ThreadPoolExecutor(4) as pool:
        together = [tables(out) for out in pool.map(infer, chunks)]
    assert alone == together


def test_threads_halve_batches_once(model, monkeypatch):
    infer = make(model, batch_size=8)
    small = SmallMemory(infer, 4, torch.OutOfMemoryError, "CUDA out of memory")
    monkeypatch.setattr(infer.backbone, "forward", small)
    with ThreadPoolExecutor(4) as pool:
        outs = list(pool.map(infer, [chunk()] * 8))
    assert infer.batch_size == 4
    assert all(len(out.samples) == len(PIXELS) for out in outs)


def test_no_room_for_a_single_image(model, monkeypatch):
    infer = make(model, batch_size=2)
    monkeypatch.setattr(infer.backbone, "forward", SmallMemory(infer, 0, torch.OutOfMemoryError, "CUDA out of memory"))
    with pytest.raises(RunFailed, match="out of memory on cpu with a single 64 x 64 px image"):
        infer(chunk())


def test_other_errors_are_not_hidden(model, monkeypatch):
    infer = make(model)
    monkeypatch.setattr(infer.backbone, "forward", SmallMemory(infer, 0, RuntimeError, "mat1 and mat2"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        infer(chunk())


def test_low_precision(model, expected):
    for compute in (ComputeConfig(dtype="bfloat16"), ComputeConfig(amp=True)):
        found = tables(make(model, compute=compute)(chunk()))
        best = expected[0].max(axis=1)
        np.testing.assert_allclose(values(found["predictions"], "probability"), best, rtol=0, atol=0.2)
        assert found["features"].schema.field("stage1_std").type == pa.list_(pa.float32(), 64)


def test_other_weights_than_the_drivers(model):
    digest = make(model).backbone.weights.sha256
    make(model, sha256=digest)
    with pytest.raises(RunFailed, match="on the driver"):
        make(model, sha256="0" * 64)


def test_predictions_need_a_classifier(tmp_path):
    from tests.test_backbone import checkpoint

    model = ModelConfig(name=checkpoint(Path(tmp_path), "hgnet_v2_b0", 64, classes=0))
    with pytest.raises(ConfigError, match="no classifier"):
        make(model)
    assert set(tables(make(model, OutputsConfig(embeddings={}, features={}))(chunk()))) == {"embeddings", "features"}


def test_classes_table():
    from birder_ray.classes import classes_table

    names = [
        "00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris",
        "05000_Plantae_Tracheophyta_Magnoliopsida_Asterales_Asteraceae_Achillea_millefolium",
    ]
    table = classes_table(names)
    assert table["class_index"].to_pylist() == [0, 1] and table["class_name"].to_pylist() == names
    assert table["species"].to_pylist() == ["Lumbricus terrestris", "Achillea millefolium"]
    assert table["order"].to_pylist() == ["Haplotaxida", "Asterales"] and table["genus"][1].as_py() == "Achillea"
    assert classes_table(["Great tit", names[0]]).column_names == ["class_index", "class_name"]
    assert classes_table([]).num_rows == 0

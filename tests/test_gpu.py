"""On a real GPU: the numbers are the CPU's, whatever overlaps what. Run with `pytest -m gpu`."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import torch

from birder_ray.chunk import Chunk, Sample
from birder_ray.config import ComputeConfig, ModelConfig, OutputsConfig
from birder_ray.infer import Infer
from birder_ray.tuning import CANDIDATES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]

PIXELS = np.random.default_rng(0).integers(0, 256, (100, 64, 64, 3), np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BIRDER_RAY_CACHE", str(tmp_path))
    return tmp_path


def make(model: str, device: str, batch_size: int | None = 32, **compute) -> Infer:
    told = ComputeConfig(**{"engine": "eager", **compute})
    return Infer(ModelConfig(name=model), OutputsConfig.all(), told, device=device, batch_size=batch_size)


def tables(infer: Infer, pixels: np.ndarray = PIXELS) -> dict[str, pa.Table]:
    samples = [Sample(f"s{i}", i, None, f"file:///s{i}") for i in range(len(pixels))]
    out = infer(Chunk("unit", "shard", 0, True, True, samples, [], images=pixels))
    return {name: pa.ipc.open_stream(data).read_all() for name, data in out.tables.items()}


def values(table: pa.Table, column: str) -> np.ndarray:
    return np.array(table[column].to_pylist())


def test_float32_is_the_cpus(model):
    ours, theirs = tables(make(model, "cuda")), tables(make(model, "cpu"))
    for table, column, bound in (
        ("predictions", "top_probabilities", 1e-5),
        ("embeddings", "embedding", 1e-4),
        ("features", "stage1_mean", 1e-4),
        ("features", "stage4_mean", 1e-4),
    ):
        found, expected = (values(each[table], column) for each in (ours, theirs))
        np.testing.assert_allclose(found, expected, rtol=0, atol=bound, err_msg=column)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_is_near(model, dtype):
    ours, theirs = (
        values(tables(make(model, device, dtype=kind))["embeddings"], "embedding")
        for device, kind in (("cuda", dtype), ("cpu", "float32"))
    )
    assert np.abs(ours - theirs).max() < 3e-2 * max(1.0, np.abs(theirs).max())


def test_what_overlaps_does_not_mix(model):
    infer = make(model, "cuda", batch_size=16)
    turns = [np.roll(PIXELS, turn, axis=0) for turn in range(20)]
    alone = [values(tables(infer, each)["embeddings"], "embedding") for each in turns]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda each: values(tables(infer, each)["embeddings"], "embedding"), turns))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_the_best_batch_size_is_found_and_kept(model, cache):
    infer = make(model, "cuda", batch_size=None)
    assert infer.batch_size in CANDIDATES
    (file,) = (cache / "batch_sizes").glob("*.json")
    assert json.loads(file.read_text())["batch_size"] == infer.batch_size


def test_memory_that_runs_out_halves_the_batch(model):
    infer = make(model, "cuda", batch_size=64)
    free, _ = torch.cuda.mem_get_info()
    hoard = torch.empty(max(0, free - 60 * 1024**2), dtype=torch.uint8, device="cuda")
    try:
        out = tables(infer)
    finally:
        del hoard
    assert len(out["predictions"]) == len(PIXELS)

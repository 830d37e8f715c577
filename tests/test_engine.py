"""The compiled engine: the same numbers as the network's, from a package made aside and kept."""

import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from birder_ray import engine
from birder_ray.config import ComputeConfig, ModelConfig, OutputsConfig
from birder_ray.engine import agree
from birder_ray.errors import RunFailed
from birder_ray.infer import Infer
from birder_ray.scoring import FINITE

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
BATCH = 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One for all, so that the network is compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIRDER_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield tmp_path_factory


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BIRDER_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


def make(model: str, wanted: str, images: float | None = None, batch_size: int = BATCH, **outputs) -> Infer:
    compute = ComputeConfig(engine=wanted)
    return Infer(
        ModelConfig(name=model),
        OutputsConfig(**outputs) if outputs else OutputsConfig.all(),
        compute,
        device="cpu",
        batch_size=batch_size,
        images=images,
    )


def score(infer: Infer, pixels: np.ndarray) -> dict[str, np.ndarray]:
    return infer._batch(infer.engine, pixels)()


def until_compiled(infer: Infer, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not infer.engine.compiled:
        assert time.monotonic() < deadline
        score(infer, PIXELS[:BATCH])
        time.sleep(1)


@pytest.fixture(scope="module")
def compiled(cache, model) -> Infer:
    infer = make(model, "compiled")
    first = score(infer, PIXELS[:BATCH])
    assert not infer.engine.compiled and first, "it scores before it is compiled"
    until_compiled(infer)
    return infer


@pytest.mark.slow
def test_the_numbers_are_those_of_the_network(compiled, model):
    eager = make(model, "eager")
    for rows in (1, 3, 4):  # short batches are padded
        ours, theirs = score(compiled, PIXELS[:rows]), score(eager, PIXELS[:rows])
        assert ours.keys() == theirs.keys()
        for name, values in theirs.items():
            assert ours[name].shape == values.shape and ours[name].dtype == values.dtype
            tolerance = 1e-5 if name == "top_probabilities" else 1e-4
            if name.endswith(("_max", "_std")):  # nothing is promised of these but the order of additions
                tolerance = max(tolerance, 1e-5 * float(abs(values).max()))
            np.testing.assert_allclose(ours[name], values, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_pixels_of_16_bits_are_scored_eagerly(compiled, model):
    scaled = PIXELS[:BATCH].astype(np.float32) / 255
    ours, theirs = score(compiled, scaled), score(make(model, "eager"), scaled)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_the_package_is_kept(compiled, model):
    later = make(model, "auto", images=BATCH)
    score(later, PIXELS[:BATCH])
    assert later.engine.compiled, "a short job, too, uses what is there"
    for other in (make(model, "auto", embeddings={}), make(model, "auto", batch_size=2)):
        score(other, PIXELS[: other.batch_size])
        assert not other.engine.compiled and other.engine._compiling is None, "not made for that"


@pytest.mark.slow
def test_a_damaged_package_is_made_anew(compiled, model, empty_cache):
    path = make(model, "auto").engine._path
    path.parent.mkdir(parents=True)
    path.write_bytes(compiled.engine._path.read_bytes()[:1000])
    infer = make(model, "auto")
    assert score(infer, PIXELS[:BATCH]) and not infer.engine.compiled
    assert not path.exists()
    path.write_bytes(b"")
    with pytest.raises(RunFailed, match=r"cannot be compiled on this machine: .*--engine eager"):
        score(make(model, "compiled"), PIXELS[:BATCH])


@pytest.mark.slow
def test_a_package_with_other_numbers_is_not_used(compiled, model, empty_cache, tmp_path):
    from birder_ray.testing import tiny_checkpoint

    other = tmp_path / "hgnet_v2_b0_other.pt"
    tiny_checkpoint(str(other), seed=1)
    infer = make(str(other), "auto")
    infer.engine._path.parent.mkdir(parents=True)
    infer.engine._path.write_bytes(compiled.engine._path.read_bytes())
    score(infer, PIXELS[:BATCH])
    assert not infer.engine.compiled


def test_auto_goes_by_the_work_ahead(model, empty_cache, monkeypatch):
    begun = []
    monkeypatch.setattr(engine, "_compile_elsewhere", lambda options, path: begun.append(path) or "no compiler")
    for images, expected in ((None, 0), (100, 0), (10_000_000, 1)):
        infer = make(model, "auto", images=images)
        for _ in range(4):
            score(infer, PIXELS[:BATCH])
            if infer.engine._compiling:
                infer.engine._compiling.join()
        assert (len(begun), infer.engine.compiled) == (expected, False)


def test_a_machine_without_a_compiler(model, empty_cache, monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setenv("PATH", "/nowhere")
    infer = make(model, "compiled")
    score(infer, PIXELS[:BATCH])
    infer.engine._compiling.join()
    with pytest.raises(RunFailed, match=r"cannot be compiled on this machine: .*--engine eager"):
        score(infer, PIXELS[:BATCH])
    assert not list(empty_cache.glob("*.pt2"))


@pytest.mark.slow
def test_the_compiler_ends_with_its_actor(model, empty_cache):
    code = f"""
import sys, time
from tests.test_engine import PIXELS, make, score
score(make({model!r}, "compiled"), PIXELS[:4])
print("begun", flush=True)
time.sleep(600)
"""
    actor = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert actor.stdout.readline() == "begun\n"
        deadline = time.monotonic() + 60
        while not (child := _children(actor.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        actor.kill()
        actor.wait()
    deadline = time.monotonic() + 60
    while any(_alive(pid) for pid in child):
        assert time.monotonic() < deadline, "the compiler outlived its actor"
        time.sleep(0.2)


def _children(parent: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(parent), "-f", "birder_ray.compiling"], capture_output=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def _alive(pid: int) -> bool:
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(found.stdout.strip()) and not found.stdout.startswith("Z")


@pytest.mark.parametrize(
    ("column", "change", "exact", "promised", "expected"),
    [
        ("embedding", 0, True, True, True),
        ("embedding", 5e-5, True, True, True),
        ("embedding", 2e-4, True, True, False),
        ("embedding", 2e-4, True, False, True),
        ("stage1_max", 2e-4, True, True, True),
        ("stage1_mean", 2e-4, True, True, False),
        ("top_probabilities", 2e-5, True, True, False),
        ("embedding", 1e-2, True, False, False),
        ("embedding", 1e-2, False, True, True),
        ("embedding", 10, False, False, False),
        ("top_indices", 1, True, True, True),
        (FINITE, 1, True, True, False),
    ],
)
def test_what_agrees(column, change, exact, promised, expected):
    eager = {
        "embedding": torch.full((2, 3), 42.0),
        "stage1_max": torch.full((2, 3), 42.0),
        "stage1_mean": torch.full((2, 3), 42.0),
        "top_probabilities": torch.full((2, 3), 0.3),
        "top_indices": torch.ones((2, 3), dtype=torch.int32),
        FINITE: torch.tensor([True, True]),
    }
    ours = {name: values.clone() for name, values in eager.items()}
    ours[column] = ours[column] != bool(change) if column == FINITE else ours[column] + change
    assert agree(ours, eager, exact, promised) is expected


def test_what_is_not_finite_is_not_compared():
    eager = {"embedding": torch.tensor([[1.0], [float("nan")]]), FINITE: torch.tensor([True, False])}
    assert agree({**eager, "embedding": torch.tensor([[1.0], [7.0]])}, eager, exact=True, promised=True)

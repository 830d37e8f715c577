"""The batch size of a GPU: the smallest that is about as fast as any, measured once."""

import json

import pytest
import torch

from birder_ray.tuning import CANDIDATES, best_batch_size, forward_rate

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BIRDER_RAY_CACHE", str(tmp_path))
    return tmp_path / "batch_sizes"


class Rates:
    """A device, by its images/s; None where its memory ends."""

    def __init__(self, *rates: float | None):
        self.rates = dict(zip(CANDIDATES, rates, strict=True))
        self.asked: list[int] = []

    def __call__(self, size: int) -> float | None:
        self.asked.append(size)
        return self.rates[size]


@pytest.mark.parametrize(
    ("rates", "best", "asked"),
    [
        ((100, 200, 300, 400), 256, 4),
        ((100, 200, 395, 400), 128, 4),
        ((400, 300, 200, 100), 32, 4),
        ((100, 200, None, 400), 64, 3),
        ((None, 200, 300, 400), 32, 1),
    ],
)
def test_the_smallest_that_is_about_as_fast_as_any(rates, best, asked):
    device = Rates(*rates)
    assert best_batch_size(device, "recipe") == best
    assert device.asked == list(CANDIDATES[:asked])


def test_it_is_remembered_for_its_recipe(cache):
    best_batch_size(Rates(1, 2, 3, 4), {"network": "a"})
    again, other = Rates(4, 3, 2, 1), Rates(4, 3, 2, 1)
    assert best_batch_size(again, {"network": "a"}) == 256 and not again.asked
    assert best_batch_size(other, {"network": "b"}) == 32 and other.asked
    told = [json.loads(path.read_text()) for path in cache.glob("*.json")]
    assert {"a", "b"} == {each["recipe"]["network"] for each in told}


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"batch_size": "many"}', '{"batch_size": 7}'])
def test_a_damaged_memory_is_none(cache, content):
    best_batch_size(Rates(1, 2, 3, 4), "recipe")
    (path,) = cache.glob("*.json")
    path.write_text(content)
    assert best_batch_size(Rates(4, 3, 2, 1), "recipe") == 32


def test_rates_are_of_whole_batches():
    seen = []
    rate = forward_rate(seen.append, (4, 8, 8, 3), CPU)
    assert rate is not None and rate > 0
    assert {(tuple(pixels.shape), pixels.dtype) for pixels in seen} == {((4, 8, 8, 3), torch.uint8)}


def test_memory_that_runs_out_is_no_rate():
    def small(pixels: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(pixels: torch.Tensor) -> None:
        raise RuntimeError("mat1 and mat2")

    assert forward_rate(small, (4, 8, 8, 3), CPU) is None
    with pytest.raises(RuntimeError, match="mat1"):
        forward_rate(broken, (4, 8, 8, 3), CPU)

"""A graph is kept where it is faster and the same; only a GPU can capture one (test_gpu.py)."""

import time

import pytest
import torch

from birder_ray import graphs
from birder_ray.graphs import faster

PIXELS = torch.zeros((2, 4, 4, 3), dtype=torch.uint8)


def slow(pixels):
    time.sleep(0.01)
    return {"a": pixels.float().mean(dim=(1, 2))}


def quick(pixels):
    return {"a": pixels.float().mean(dim=(1, 2))}


def same(ours, theirs):
    return torch.equal(ours["a"], theirs["a"])


@pytest.mark.parametrize(("forward", "captured", "kept"), [(slow, quick, True), (quick, slow, False)])
def test_the_faster_one_is_kept(monkeypatch, forward, captured, kept):
    monkeypatch.setattr(graphs, "Graph", lambda *_: captured)
    assert faster(forward, PIXELS, same) is (captured if kept else forward)


def test_other_numbers_are_not(monkeypatch, caplog):
    monkeypatch.setattr(graphs, "Graph", lambda *_: lambda pixels: {"a": torch.ones(2, 3)})
    assert faster(slow, PIXELS, same) is slow
    assert "its numbers are others" in caplog.text


def test_what_cannot_be_captured_goes_on_without(monkeypatch, caplog):
    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "Graph", refuse)
    assert faster(slow, PIXELS, same) is slow
    assert "stream is capturing" in caplog.text

"""Pooling against the formulas."""

import pytest
import torch

from birder_ray.pooling import pool


def test_formulas():
    x = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0))
    pooled = pool(x, ("mean", "max", "std", "gem"))
    assert list(pooled) == ["mean", "max", "std", "gem"]
    torch.testing.assert_close(pooled["mean"], x.sum(dim=2) / 10)
    torch.testing.assert_close(pooled["max"], x.max(dim=2).values)
    torch.testing.assert_close(pooled["std"], (x - x.mean(dim=2, keepdim=True)).square().mean(dim=2).sqrt())
    torch.testing.assert_close(pooled["gem"], x.clamp(min=1e-6).pow(3).mean(dim=2).pow(1 / 3))


def test_one_position_has_no_spread():
    assert pool(torch.ones(1, 2, 1), ("std",))["std"].tolist() == [[0, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_whatever_the_network(dtype):
    x = torch.full((1, 1, 4096), 100.0).to(dtype)  # its sum would overflow float16
    assert all(value.dtype == torch.float32 for value in pool(x, ("mean", "std", "gem")).values())
    assert pool(x, ("mean",))["mean"].item() == 100

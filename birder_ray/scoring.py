"""The forward step: from pixels to every number that is stored, as one torch module, so that one compilation covers
all of it."""

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from birder_ray.backbone import Backbone
from birder_ray.config import OutputsConfig, PredictionsConfig
from birder_ray.schema import feature_column

FINITE = "finite"
"""Column that says of each image whether all its numbers are."""

Results = dict[str, torch.Tensor]
"""Tensors (B, D) by column name, and `FINITE` (B,)."""


class Scorer(torch.nn.Module):
    """Scores batches of pixels.

    Args:
        backbone: the network. outputs: tables to make. tta: test-time augmentation as birder's.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: Backbone, outputs: OutputsConfig, tta: bool):
        super().__init__()
        self.net = backbone.net  # as a submodule, so that what exports this finds its weights
        self._backbone = backbone
        self._outputs = outputs
        self._tta = tta
        self._plain = bool(outputs.embeddings or outputs.features or not tta)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (backbone.mean, backbone.std))
        self.register_buffer("mean", mean.to(backbone.device), persistent=False)
        self.register_buffer("std", std.to(backbone.device), persistent=False)

    def forward(self, pixels: torch.Tensor) -> Results:
        """Score a batch.

        Args:
            pixels: (B, H, W, C) on the network's device; uint8, or float32 in 0..1.
        """
        images = self.normalised(pixels)
        results: Results = {}
        if self._plain:
            plain = self._backbone.forward(images)
            if self._outputs.embeddings:
                results["embedding"] = plain.embedding.to(getattr(torch, self._outputs.embeddings.dtype))
            for level, vectors in plain.features.items():
                results |= {feature_column(level, pooling): vector for pooling, vector in vectors.items()}
        if self._outputs.predictions:
            crops = _five_crops(images) if self._tta else []
            logits = [self._backbone.logits(crop) for crop in crops] or [plain.logits]
            results |= predictions(torch.stack(logits).float(), self._outputs.predictions)
        results[FINITE] = torch.stack([torch.isfinite(x).flatten(1).all(dim=1) for x in results.values()]).all(dim=0)
        return results

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) float32: the very operations of birder's transform, so that it is the same bit for bit."""
        images = F.to_dtype(pixels.permute(0, 3, 1, 2), torch.float32, scale=True)
        return (images - self.mean) / self.std


def predictions(logits: torch.Tensor, options: PredictionsConfig) -> Results:
    """Columns of predictions from (crops, B, classes): the mean of the crops' probabilities, as birder's TTA."""
    probabilities = logits.softmax(dim=2).mean(dim=0)
    ordered, order = probabilities.sort(dim=1, descending=True, stable=True)  # ties: the lower index first
    results = {
        "top_indices": order[:, : options.top_k].to(torch.int32),
        "top_probabilities": ordered[:, : options.top_k],
        "entropy": torch.special.entr(probabilities).sum(dim=1, keepdim=True),
    }
    if options.logits:
        results["logits"] = logits.mean(dim=0)
    return results


def _five_crops(images: torch.Tensor) -> list[torch.Tensor]:
    """birder's test-time augmentation: corners and centre at 0.8 of each side, resized back."""
    height, width = images.shape[-2:]
    crops = F.five_crop(images, [int(height * 0.8), int(width * 0.8)])
    return [F.resize(crop, [height, width], InterpolationMode.BICUBIC, antialias=True) for crop in crops]

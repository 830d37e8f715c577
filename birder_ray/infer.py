"""The inference step: a chunk of images in, Arrow tables out. A plain callable; it knows nothing of Ray."""

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torchvision.transforms.v2 import functional as F

from birder_ray.backbone import Backbone, resolve
from birder_ray.chunk import Chunk, Sample
from birder_ray.config import ComputeConfig, ModelConfig, OutputsConfig
from birder_ray.errors import RunFailed, SampleError
from birder_ray.pooling import pool
from birder_ray.schema import (
    EMBEDDINGS,
    FEATURES,
    INFER,
    PREDICTIONS,
    embeddings_schema,
    feature_column,
    features_schema,
    predictions_schema,
)

logger = logging.getLogger(__name__)

_BATCH_SIZE = {"cpu": 16, "cuda": 256}

Columns = dict[str, np.ndarray]
"""Output arrays by column name, one row per image."""


class Infer:
    """Scores chunks with one model held in memory.

    Args:
        model: what to load; resolved to a file on this machine.
        outputs: tables to make.
        compute: type and engine; `engine="auto"` means eager here (the runtime decides what pays).
        device: `auto` (cuda where torch sees one), `cpu`, `cuda`, `cuda:1`.
        threads: torch's CPU threads, process-wide; None leaves them as they are.
        batch_size: images per forward pass; None takes a default for the device. Halved when memory runs out.
        sha256: what the weights must hash to, as the driver resolved them; None accepts any.

    Raises:
        ConfigError: the model cannot be found or loaded, or cannot give an output that is asked for.
        RunFailed: the weights on this machine are not the driver's.
    """

    def __init__(
        self,
        model: ModelConfig,
        outputs: OutputsConfig,
        compute: ComputeConfig | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        batch_size: int | None = None,
        sha256: str | None = None,
    ):
        compute = compute or ComputeConfig()
        if threads is not None:
            torch.set_num_threads(threads)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        weights = resolve(model)
        if sha256 is not None and weights.sha256 != sha256:
            raise RunFailed(f"{weights.path}: sha256 {weights.sha256[:12]}… here, {sha256[:12]}… on the driver")
        self.outputs = outputs
        self.tta = model.tta
        self.backbone = Backbone(
            weights,
            size=model.size,
            dtype=compute.dtype,
            device=device,
            amp=compute.amp,
            compiled=compute.engine == "compiled",
            levels=outputs.features.levels if outputs.features else (),
        )
        if outputs.predictions:
            self.backbone.require_classes()
        self.batch_size = batch_size or _BATCH_SIZE[self.backbone.device.type]
        self.schemas = self._schemas()

    def describe(self) -> dict[str, Any]:
        """What the driver records about the loaded model; plain JSON types."""
        return self.backbone.describe()

    def __call__(self, chunk: Chunk) -> Chunk:
        """Score a preprocessed chunk.

        A sample whose outputs are not finite becomes an error row (`NonFiniteOutput`) and is in no table.

        Raises:
            RunFailed: the device cannot hold even one image.
        """
        start = time.perf_counter()
        assert chunk.images is not None, "infer follows preprocess"
        columns = self._score(chunk.images)
        finite = columns.pop("finite").astype(bool)
        error = SampleError("NonFiniteOutput", "the network gave NaN or infinite values for this image")
        errors = [s.failed(INFER, error) for s, ok in zip(chunk.samples, finite, strict=True) if not ok]
        samples = [s for s, ok in zip(chunk.samples, finite, strict=True) if ok]
        columns = {name: values[finite] for name, values in columns.items()}
        tables = {
            name: _to_ipc(self._table(schema, chunk.shard, samples, columns)) for name, schema in self.schemas.items()
        }
        return chunk.after(INFER, time.perf_counter() - start, samples, errors, tables=tables)

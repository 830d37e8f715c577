"""The inference step: a chunk of images in, Arrow tables out. A plain callable; it knows nothing of Ray."""

import ctypes
import logging
import re
import time
from contextlib import suppress
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from birder_ray.backbone import Backbone, resolve
from birder_ray.chunk import Chunk
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
from birder_ray.tables import Columns, build, to_ipc

logger = logging.getLogger(__name__)

FINITE = "finite"

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""

_BATCH_SIZE = {"cpu": 16, "cuda": 256}
_DTYPES = {"uint8": torch.uint8, "float32": torch.float32}
_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory")
_NON_FINITE = SampleError("NonFiniteOutput", "the network gave NaN or infinite values for this image")


class Infer:
    """Scores chunks with one model held in memory.

    Args:
        model: what to load; resolved to a file on this machine.
        outputs: tables to make.
        compute: type and engine; `engine="auto"` means eager here (the runtime decides what pays).
        device: `auto` (cuda where torch sees one), `cpu`, `cuda`, `cuda:1`.
        threads: torch's CPU threads, process-wide; None leaves them, and how the process allocates, as they are.
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
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if threads is not None:
            torch.set_num_threads(threads)
            if device == "cpu":
                _keep_memory()
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
            reduce=partial(pool, poolings=outputs.features.pooling if outputs.features else ()),
        )
        if outputs.predictions:
            self.backbone.require_classes()
        self.device = self.backbone.device
        self.batch_size = batch_size or _BATCH_SIZE[self.device.type]
        self.schemas = self._schemas()
        self._needs_plain_pass = bool(outputs.embeddings or outputs.features or not model.tta)

    def __call__(self, chunk: Chunk) -> Chunk:
        """Score a preprocessed chunk.

        A sample whose outputs are not finite becomes an error row (`NonFiniteOutput`) and is in no table.

        Raises:
            RunFailed: the device cannot hold even one image.
        """
        start = time.perf_counter()
        assert chunk.images is not None, "infer follows preprocess"
        if not len(chunk.images):
            tables = {name: to_ipc(schema.empty_table()) for name, schema in self.schemas.items()}
            return chunk.after(INFER, time.perf_counter() - start, [], [], tables=tables)
        columns = self._score(chunk.images)
        finite = columns.pop(FINITE)
        samples = [sample for sample, good in zip(chunk.samples, finite, strict=True) if good]
        errors = [s.failed(INFER, _NON_FINITE) for s, good in zip(chunk.samples, finite, strict=True) if not good]
        columns = {name: values[finite] for name, values in columns.items()}
        tables = {
            name: to_ipc(build(schema, chunk.shard, samples, columns, self.backbone.class_names))
            for name, schema in self.schemas.items()
        }
        return chunk.after(INFER, time.perf_counter() - start, samples, errors, tables=tables)

    def _score(self, images: np.ndarray) -> Columns:
        parts: list[Columns] = []
        done = 0
        while done < len(images):
            part = self._try(images[done : done + self.batch_size])
            if part is None:
                self._halve()
            else:
                parts.append(part)
                done += self.batch_size
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _try(self, images: np.ndarray) -> Columns | None:
        """None if the device's memory does not hold the batch."""
        try:
            return self._batch(images)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and not _OUT_OF_MEMORY.search(str(error)):
                raise
            return None  # the error keeps the batch's tensors alive: it must be gone before anything is retried

    def _halve(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.batch_size == 1:
            height, width = self.backbone.size
            raise RunFailed(f"out of memory on {self.device} with a single {width} x {height} px image")
        self.batch_size = (self.batch_size + 1) // 2
        logger.warning("out of memory: going on with batches of %d", self.batch_size)

    @torch.inference_mode()
    def _batch(self, pixels: np.ndarray) -> Columns:
        rows = len(pixels)
        if self.backbone.compiled and rows < self.batch_size:  # another shape would be compiled anew
            pixels = np.concatenate([pixels, np.zeros((self.batch_size - rows, *pixels.shape[1:]), pixels.dtype)])
        images = self._normalised(pixels)
        results: dict[str, torch.Tensor] = {}
        if self._needs_plain_pass:
            plain = self.backbone.forward(images)
            if self.outputs.embeddings:
                results["embedding"] = plain.embedding.to(getattr(torch, self.outputs.embeddings.dtype))
            for level, vectors in plain.features.items():
                results |= {feature_column(level, pooling): vector for pooling, vector in vectors.items()}
        if self.outputs.predictions:
            logits = [self.backbone.logits(crop) for crop in _five_crops(images)] if self.tta else [plain.logits]
            results |= self._predictions(torch.stack(logits).float())
        results[FINITE] = torch.stack([torch.isfinite(x).flatten(1).all(dim=1) for x in results.values()]).all(dim=0)
        return {name: values[:rows].cpu().numpy() for name, values in results.items()}

    def _normalised(self, pixels: np.ndarray) -> torch.Tensor:
        """The very operations of birder's transform, so that the network's input is the same bit for bit."""
        host = torch.empty(pixels.shape, dtype=_DTYPES[pixels.dtype.name], pin_memory=self.device.type == "cuda")
        host.numpy()[...] = pixels
        images = host.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        images = F.to_dtype(images, torch.float32, scale=True)
        normalised: torch.Tensor = F.normalize(images, self.backbone.mean, self.backbone.std)
        return normalised

    def _predictions(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """Columns of predictions from (crops, B, classes): the mean of the crops' probabilities, as birder's TTA."""
        options = self.outputs.predictions
        assert options is not None
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

    def _schemas(self) -> dict[str, pa.Schema]:
        schemas = {}
        if self.outputs.predictions:
            schemas[PREDICTIONS] = predictions_schema(self.backbone.num_classes, self.outputs.predictions.logits)
        if self.outputs.embeddings:
            schemas[EMBEDDINGS] = embeddings_schema(self.backbone.passes.embedding_size, self.outputs.embeddings.dtype)
        if self.outputs.features:
            schemas[FEATURES] = features_schema(self.backbone.passes.levels, self.outputs.features.pooling)
        return schemas


def _keep_memory() -> None:
    """Let glibc keep freed memory: given back, the activations of every batch are faulted in anew, page by page, which
    takes a quarter of the time of a forward pass. Other C libraries are left alone."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _five_crops(images: torch.Tensor) -> list[torch.Tensor]:
    """birder's test-time augmentation: corners and centre at 0.8 of each side, resized back."""
    height, width = images.shape[-2:]
    crops = F.five_crop(images, [int(height * 0.8), int(width * 0.8)])
    return [F.resize(crop, [height, width], InterpolationMode.BICUBIC, antialias=True) for crop in crops]

"""The inference step: a chunk of images in, Arrow tables out. A plain callable; it knows nothing of Ray."""

import ctypes
import logging
import re
import time
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from birder_ray.backbone import Backbone, resolve
from birder_ray.chunk import Chunk
from birder_ray.config import ComputeConfig, ModelConfig, OutputsConfig
from birder_ray.engine import Engine
from birder_ray.errors import RunFailed, SampleError
from birder_ray.pooling import pool
from birder_ray.schema import (
    EMBEDDINGS,
    FEATURES,
    INFER,
    PREDICTIONS,
    embeddings_schema,
    features_schema,
    predictions_schema,
)
from birder_ray.scoring import FINITE, Scorer
from birder_ray.tables import Columns, build, to_ipc

logger = logging.getLogger(__name__)

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
        compute: type and engine.
        device: `auto` (cuda where torch sees one), `cpu`, `cuda`, `cuda:1`.
        threads: torch's CPU threads, process-wide; None leaves them, and how the process allocates, as they are.
        batch_size: images per forward pass; None takes a default for the device. Halved when memory runs out.
        sha256: what the weights must hash to, as the driver resolved them; None accepts any.
        images: that are ahead of this actor, by which `engine="auto"` decides whether to compile; None: not known.

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
        images: float | None = None,
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
        self.backbone = Backbone(
            weights,
            size=model.size,
            dtype=compute.dtype,
            device=device,
            amp=compute.amp,
            levels=outputs.features.levels if outputs.features else (),
            reduce=partial(pool, poolings=outputs.features.pooling if outputs.features else ()),
        )
        if outputs.predictions:
            self.backbone.require_classes()
        self.device = self.backbone.device
        self.batch_size = batch_size or _BATCH_SIZE[self.device.type]
        self.schemas = self._schemas()
        self.scorer = Scorer(self.backbone, outputs, model.tta)
        self._engine_options: dict[str, Any] = {
            "model": model,
            "outputs": outputs,
            "compute": compute.model_copy(update={"engine": "eager"}),
            "device": device,
            "sha256": weights.sha256,
        }
        self._wanted = compute.engine
        self._images = images
        self.engine = self._new_engine()

    def _new_engine(self) -> Engine:
        options = self._engine_options
        model, outputs, compute = options["model"], options["outputs"], options["compute"]
        recipe = {
            "weights": options["sha256"],
            "network": self.backbone.weights.network,
            "size": self.backbone.size,
            "tta": model.tta,
            "outputs": outputs.model_dump(mode="json"),
            "dtype": compute.dtype,
            "amp": compute.amp,
        }
        exact = compute.dtype == "float32" and not compute.amp
        return Engine(self.scorer, exact, self._wanted, options, recipe, self.batch_size, self._images)

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
        return chunk.after(INFER, time.perf_counter() - start, samples, errors, tables=tables, engine=self.engine.name)

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
        self.engine = self._new_engine()
        logger.warning("out of memory: going on with batches of %d", self.batch_size)

    @torch.inference_mode()
    def _batch(self, pixels: np.ndarray) -> Columns:
        rows = len(pixels)
        if self.engine.compiled and rows < self.batch_size:  # it is compiled for whole batches
            pixels = np.concatenate([pixels, np.zeros((self.batch_size - rows, *pixels.shape[1:]), pixels.dtype)])
        host = torch.empty(pixels.shape, dtype=_DTYPES[pixels.dtype.name], pin_memory=self.device.type == "cuda")
        host.numpy()[...] = pixels
        results = self.engine(host.to(self.device, non_blocking=True))
        return {name: values[:rows].cpu().numpy() for name, values in results.items()}

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

"""The inference step: a chunk of images in, Arrow tables out. A plain callable; it knows nothing of Ray."""

import logging
import time
from functools import partial
from threading import Lock

import numpy as np
import pyarrow as pa
import torch

from birder_ray.backbone import Backbone, resolve
from birder_ray.chunk import Chunk, ErrorRow
from birder_ray.config import ComputeConfig, ModelConfig, OutputsConfig
from birder_ray.device import hardware, keep_memory, out_of_memory
from birder_ray.engine import Engine
from birder_ray.errors import RunFailed, SampleError
from birder_ray.gpu_decode import GpuDecoder
from birder_ray.pooling import pool
from birder_ray.schema import (
    DECODE,
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
from birder_ray.transfers import Pending, Transfers
from birder_ray.tuning import best_batch_size, forward_rate

logger = logging.getLogger(__name__)

_CPU_BATCH_SIZE = 16
_NON_FINITE = SampleError("NonFiniteOutput", "the network gave NaN or infinite values for this image")


class Infer:
    """Scores chunks with one model held in memory; several threads may call it, so that a GPU has the next chunk while
    the tables of the last are made.

    Args:
        model: what to load; resolved to a file on this machine.
        outputs: tables to make.
        compute: type and engine.
        device: `auto` (cuda where torch sees one), `cpu`, `cuda`, `cuda:1`.
        threads: torch's CPU threads, process-wide; None leaves them, and how the process allocates, as they are.
        batch_size: images per forward pass; None: 16 on a CPU, on a GPU the best by measurement. Halved when memory
            runs out.
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
                keep_memory()
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
        self.schemas = self._schemas()
        self.scorer = Scorer(self.backbone, outputs, model.tta)
        self.transfers = Transfers(self.device)
        self._decode = GpuDecoder(weights.input_spec(model), self.device)
        self._launching = Lock()  # taps and engines serve one batch at a time; a GPU computes on after a launch
        recipe = {
            "weights": weights.sha256,
            "network": weights.network,
            "size": self.backbone.size,
            "tta": model.tta,
            "outputs": outputs.model_dump(mode="json"),
            "dtype": compute.dtype,
            "amp": compute.amp,
        }
        again = {
            "model": model,
            "outputs": outputs,
            "compute": compute.model_copy(update={"engine": "eager"}),
            "device": device,
            "sha256": weights.sha256,
        }
        exact = compute.dtype == "float32" and not compute.amp
        self._engine = partial(Engine, self.scorer, exact, compute.engine, again, recipe, images=images)
        self.engine = self._engine(batch_size or self._best_batch_size(recipe))

    @property
    def batch_size(self) -> int:
        """Images per forward pass."""
        return self.engine.batch_size

    def _best_batch_size(self, recipe: dict[str, object]) -> int:
        if self.device.type == "cpu":
            return _CPU_BATCH_SIZE
        image = (*self.backbone.size, self.backbone.weights.channels)
        return best_batch_size(
            lambda size: forward_rate(self.scorer, (size, *image), self.device), [recipe, hardware(self.device)]
        )

    def __call__(self, chunk: Chunk) -> Chunk:
        """Score a preprocessed chunk; what that has left encoded is decoded on the device.

        A sample whose outputs are not finite becomes an error row (`NonFiniteOutput`) and is in no table.

        Raises:
            RunFailed: the device cannot hold even one image.
        """
        assert chunk.images is not None, "infer follows preprocess"
        images: np.ndarray | torch.Tensor = chunk.images
        samples, errors = chunk.samples, list[ErrorRow]()
        start = time.perf_counter()
        if chunk.data is not None:
            images, samples, errors = self._decode(chunk)
            chunk = chunk.spent({DECODE: time.perf_counter() - start})
            start = time.perf_counter()
        if not len(images):
            tables = {name: to_ipc(schema.empty_table()) for name, schema in self.schemas.items()}
            return chunk.after(INFER, time.perf_counter() - start, [], errors, tables=tables)
        columns = self._score(images)
        finite = columns.pop(FINITE)
        errors += [s.failed(INFER, _NON_FINITE) for s, good in zip(samples, finite, strict=True) if not good]
        samples = [sample for sample, good in zip(samples, finite, strict=True) if good]
        columns = {name: values[finite] for name, values in columns.items()}
        tables = {
            name: to_ipc(build(schema, chunk.shard, samples, columns, self.backbone.class_names))
            for name, schema in self.schemas.items()
        }
        return chunk.after(INFER, time.perf_counter() - start, samples, errors, tables=tables, engine=self.engine.name)

    def _score(self, images: np.ndarray | torch.Tensor) -> Columns:
        while True:
            engine = self.engine
            try:
                batches = range(0, len(images), engine.batch_size)
                pending = [self._batch(engine, images[start : start + engine.batch_size]) for start in batches]
                parts = [columns() for columns in pending]
                return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            # The error kept the batch's tensors alive: it must be gone before anything is retried
            self._halve(engine)

    def _halve(self, engine: Engine) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if engine.batch_size == 1:
            height, width = self.backbone.size
            raise RunFailed(f"out of memory on {self.device} with a single {width} x {height} px image")
        with self._launching:
            if self.engine is engine:  # else another thread has done it
                self.engine = self._engine((engine.batch_size + 1) // 2)
                logger.warning("out of memory: going on with batches of %d", self.batch_size)

    @torch.inference_mode()
    def _batch(self, engine: Engine, pixels: np.ndarray | torch.Tensor) -> Pending:
        """Launches a batch; what it returns waits for the results."""
        rows = len(pixels)
        there = self.transfers.up(pixels) if isinstance(pixels, np.ndarray) else pixels
        if engine.compiled and rows < engine.batch_size:  # it is compiled for whole batches
            there = torch.nn.functional.pad(there, (0, 0) * 3 + (0, engine.batch_size - rows))
        with self._launching:
            results = engine(there)
            return self.transfers.down({name: values[:rows] for name, values in results.items()})

    def _schemas(self) -> dict[str, pa.Schema]:
        schemas = {}
        if self.outputs.predictions:
            schemas[PREDICTIONS] = predictions_schema(self.backbone.num_classes, self.outputs.predictions.logits)
        if self.outputs.embeddings:
            schemas[EMBEDDINGS] = embeddings_schema(self.backbone.passes.embedding_size, self.outputs.embeddings.dtype)
        if self.outputs.features:
            schemas[FEATURES] = features_schema(self.backbone.passes.levels, self.outputs.features.pooling)
        return schemas

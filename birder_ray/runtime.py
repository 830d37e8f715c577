"""The Ray Data chain of the three remote steps: read → preprocess → infer."""

import atexit
import gc
import logging
import os
import pickle
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from birder_ray.arrivals import Far, Near
from birder_ray.chunk import Chunk, InputSpec
from birder_ray.config import RunConfig
from birder_ray.errors import BirderRayError, ConfigError, RunFailed
from birder_ray.folder import Folder
from birder_ray.guard import Attempt, AttemptBook, Key, Turns, guarded, starting, watched
from birder_ray.metrics import BatchSize
from birder_ray.plan import Work
from birder_ray.read import read_chunks
from birder_ray.schema import DECODE, INFER, TRANSFER, WAIT
from birder_ray.scored import Scored
from birder_ray.sizes import Sizes

logger = logging.getLogger(__name__)

_MOST_READ_TASKS = 10_000
"""Ray makes an object of each before the first starts, at a millisecond each; further work shares tasks."""

_NO_PROGRESS_S, _NO_CAPACITY_S = 600, 3600
"""Without any progress a run ends; on a cluster, whose machines may take their time to come, later."""

_STORE_SHARE = 0.5
"""Of the object store, for what is on its way between the steps; Ray Data's own default."""

_ROW_BYTES = 64_000
"""Of an image in all output tables: 42 kB with HGNet v2 B2, 60 with 10,000 logits and an embedding of 768."""

_SLOWEST_BYTES_PER_S = 10_000_000
_OWN_ERROR = re.compile(r"^birder_ray\.errors\.(ConfigError|RunFailed): (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class _RemoteAttempts:
    """`Attempts` backed by an actor that holds the book: it outlives the processes whose deaths it counts."""

    actor: Any

    def begin(self, key: Key) -> Attempt:
        return ray.get(self.actor.begin.remote(key))

    def at(self, key: Key, index: int | None) -> None:
        ray.get(self.actor.at.remote(key, index))

    def end(self, key: Key) -> None:
        self.actor.end.remote(key)

    def stop(self) -> None:
        self.actor.stop.remote()

    def stopping(self) -> bool:
        return bool(ray.get(self.actor.stopping.remote()))


class _PreprocessActor:
    """Ray Data's callable around `Preprocess`."""

    def __init__(self, spec: InputSpec, attempts: _RemoteAttempts, sample_timeout_s: float, decode_on: str):
        _end_at_once()
        with starting(DECODE, attempts, _actor_id()):
            with _uncollected():
                from birder_ray.preprocess import Preprocess

            self.preprocess = Preprocess(spec, threads=1, decode_on=decode_on)
        self.attempts = attempts
        self.timeout_s = sample_timeout_s

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for row in range(block.num_rows):
            chunk = _taken(block, row)
            result = guarded(DECODE, self.preprocess, self.attempts, chunk, self.timeout_s)
            if result is not None:
                yield result.to_table()


class _InferActor:
    """Ray Data's callable around `Infer`."""

    def __init__(self, options: dict[str, Any], attempts: _RemoteAttempts, recipe: str | None):
        _end_at_once()
        with starting(INFER, attempts, _actor_id()):
            with _uncollected():
                from birder_ray.device import lost
                from birder_ray.infer import Infer

            self.infer = Infer(**options)
        self.lost = lost
        self.batch_size = BatchSize(recipe)
        self.attempts = attempts
        self.turns = Turns()

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for row in range(block.num_rows):
            result = guarded(INFER, self._score, self.attempts, _taken(block, row), turns=self.turns)
            self.batch_size.now(self.infer.batch_size)
            if result is not None:
                yield result.to_table()

    def _score(self, chunk: Chunk) -> Chunk:
        try:
            return self.infer(chunk)
        except RuntimeError as error:
            if not self.lost(error):
                raise
            logger.error("this process has lost its GPU, and ends: %s", error)
            os._exit(1)  # Ray starts another; a sample that does this to each is found like any that kills its process


def _taken(block: pa.Table, row: int) -> Chunk:
    """The chunk in a row, as a step begins with it."""
    started = time.time()
    chunk = Chunk.from_table(block, row)
    # Clocks of two machines may differ
    return chunk.spent({WAIT: max(0.0, started - chunk.left), TRANSFER: time.time() - started})


@contextmanager
def _uncollected() -> Iterator[None]:
    """Around imports: what they make stays, and to look through it for garbage again and again takes a sixth of their
    time. Afterwards it is looked through no more."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _end_at_once() -> None:
    """Have this process end where Python does: the destructors of Ray's core, which come after, can wait for one
    another for ever (2.60), and the process would stay behind with all its memory."""
    atexit.register(os._exit, 0)


def _actor_id() -> str:
    """Of the actor that runs this; a restart keeps it."""
    return str(ray.get_runtime_context().get_actor_id())


def stream(
    work: Sequence[Work],
    config: RunConfig,
    spec: InputSpec,
    weights_sha256: str,
    sizes: Sizes,
    arrivals: Near | Far,
    stopping: Callable[[], bool],
    metrics: str | None = None,
) -> Generator[Scored, None, None]:
    """Scored chunks of `work`, in whatever order they are ready.

    Args:
        spec: what an input image must look like. weights_sha256: the weights every actor must load.
        arrivals: how the driver gets at what is scored.
        stopping: looked at after each chunk; once it is true, no further unit is begun.
        metrics: key of the recipe, which the actors' metrics bear; None: they have none.

    Raises:
        BirderRayError: what a step raised on purpose. RunFailed: anything else that ended the chain.
    """
    source, rows = config.source, sizes.chunk_rows

    def read(block: pa.Table) -> Iterator[pa.Table]:
        for packed in block.column("work").to_pylist():
            task = pickle.loads(packed)
            for chunk in read_chunks(task, source, rows, watched(attempts, task.prefix)):
                if chunk.number == 0 and attempts.stopping():
                    return
                yield chunk.to_table()

    folder = Folder(config.destination, config.destination_options)
    # On the driver's machine, whose files it writes, and with which everything ends anyway
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    book = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(AttemptBook)
    attempts = _RemoteAttempts(book.remote(folder))
    told = False
    infer_options = {
        "model": config.model,
        "outputs": config.outputs,
        "compute": config.compute,
        "device": "auto" if sizes.gpus_per_actor else "cpu",  # Ray hides no GPU from who asks for none
        "threads": sizes.inference_threads,
        "batch_size": sizes.batch_size,
        "sha256": weights_sha256,
        "images": sum(each.images for each in work) / sizes.inference_actors,
    }
    held = sizes.readers * work[0].unit_rows * _ROW_BYTES
    _configure(max((each.shard.size or 0 for each in work), default=0), held, config.compute.ray_address is not None)
    arrow: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": None}
    chain = (
        ray.data.from_items(
            [{"work": pickle.dumps(each)} for each in work], override_num_blocks=min(len(work), _MOST_READ_TASKS)
        )
        .map_batches(read, num_cpus=sizes.reader_cpus, concurrency=sizes.readers, **arrow)
        .map_batches(
            _PreprocessActor,
            fn_constructor_args=(spec, attempts, config.run.sample_timeout_s, config.compute.decode_on),
            num_cpus=sizes.preprocess_cpus,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=sizes.preprocess_actors),
            **arrow,
        )
        .map_batches(
            _InferActor,
            fn_constructor_args=(infer_options, attempts, metrics),
            num_cpus=sizes.inference_cpus,
            num_gpus=sizes.gpus_per_actor,
            compute=ray.data.ActorPoolStrategy(
                min_size=1,
                max_size=sizes.inference_actors,
                initial_size=sizes.inference_actors_at_first,
                max_concurrent_calls_per_actor=sizes.chunks_per_actor,
                enable_true_multi_threading=sizes.chunks_per_actor > 1,
            ),
            **arrow | {"batch_size": 1},  # Ray Data insists on a number where there are GPUs; a row is a chunk
        )
    )
    try:
        blocks = (entry.ref for bundle in chain.iter_internal_ref_bundles() for entry in bundle.blocks)
        for chunk in arrivals.heads(blocks):
            if stopping() and not told:
                attempts.stop()
                told = True
            yield chunk
    except BirderRayError:
        raise
    except Exception as error:
        raise _explained(error) from error


def _configure(largest_shard: int, held: int, cluster: bool) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1024**2  # a block is a chunk
    context.max_errored_blocks = 0
    context.actor_init_max_retries = 0  # what can be retried in there is retried in there
    # A resumed shard is streamed past what is committed, and nothing comes of that for a while
    patience = _NO_CAPACITY_S if cluster else _NO_PROGRESS_S
    context.execution_no_progress_timeout_s = patience + largest_shard // _SLOWEST_BYTES_PER_S
    # Rows of incomplete units count against what inference may put out: room for them comes on top, or it would stand
    # still once they fill its share. Ray spills what the store does not hold
    store = ray.cluster_resources().get("object_store_memory", 0.0)
    context.override_object_store_memory_limit_fraction = _STORE_SHARE + held / store if store else None
    context.execution_options.preserve_order = False
    context.execution_options.verbose_progress = False


def _explained(error: BaseException) -> BirderRayError:
    """Our own exception from under Ray's, or a RunFailed with the last line of what happened."""
    texts = []
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, BirderRayError):
            return link
        texts.append(str(link))
        link = getattr(link, "cause", None) or link.__cause__
    for text in texts:  # an actor that fails to start leaves only the text of its exception
        found = _OWN_ERROR.search(text)
        if found:
            return ConfigError(found[2]) if found[1] == "ConfigError" else RunFailed(found[2])
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()] or [repr(error)]
    return RunFailed(f"a remote step failed: {lines[-1]}; what is committed stands, run again to resume")

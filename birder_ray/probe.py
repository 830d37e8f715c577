"""`plan --probe`: one worker of each step is timed on a bit of the source, in this process, without Ray and without a
word to the destination; from that follows what a run on this machine would do."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, cycle, islice
from math import ceil
from time import perf_counter, process_time

import torch

from birder_ray.backbone import resolve
from birder_ray.chunk import Chunk
from birder_ray.config import RunConfig, SourceConfig
from birder_ray.errors import ConfigError
from birder_ray.infer import Infer
from birder_ray.plan import Work
from birder_ray.preprocess import Preprocess
from birder_ray.preview import Preview, this_machine
from birder_ray.read import read_chunks
from birder_ray.schema import DECODE, INFER, READ
from birder_ray.sizes import Hardware, Sizes, choose_sizes

_IMAGES, _BYTES, _SECONDS = 256, 1 << 30, 20.0
"""A step is measured on so many images, or encoded bytes, or for so long, whichever comes first."""

_PLACES, _CHUNK_ROWS, _FORWARDS = 3, 16, 16
_CHUNK_CORE_S = 0.035
"""Of a core, what each chunk of a run costs Ray and the driver (see `choose_sizes`)."""


@dataclass(frozen=True)
class Pace:
    """What one worker of a step did: `bytes` are encoded ones, `core_seconds` those in which its threads computed."""

    images: int = 0
    bytes: int = 0
    seconds: float = 0.0
    core_seconds: float = 0.0

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds


@dataclass(frozen=True)
class Probe:
    """What was measured, and what follows for a run on this machine.

    Args:
        paces: by step. bytes_per_image: encoded, of those that could be read.
        error_types: number of samples that would be quarantined, by type.
        engine: that was measured, eager or compiled. batch_size: images per forward pass.
        machine: this one. sizes: what it would start.
        images: in the whole source, None where there is no telling. estimated: they follow from its bytes.
    """

    paces: dict[str, Pace]
    bytes_per_image: float
    error_types: dict[str, int]
    engine: str
    batch_size: int
    machine: Hardware
    sizes: Sizes
    images: int | None
    estimated: bool

    @property
    def costs(self) -> dict[str, float]:
        """Seconds per image, by step, if this machine did nothing else: bound by the workers, or by the cores."""
        workers = dict(self.sizes.workers)
        if self.sizes.gpus_per_actor:  # actors that share a GPU are no faster together than one that has it alone
            workers[INFER] = min(workers[INFER], int(self.machine.gpus))
        return {
            step: max(pace.seconds / workers[step], pace.core_seconds / self.machine.cpus) / pace.images
            for step, pace in self.paces.items()
        }

    @property
    def bottleneck(self) -> str:
        """The step that takes the longest."""
        return max(self.costs, key=self.costs.__getitem__)

    @property
    def images_per_s(self) -> float:
        """Of a run here: the steps work at the same time, and share the cores."""
        core_s = sum(pace.core_seconds / pace.images for pace in self.paces.values())
        core_s += _CHUNK_CORE_S / self.sizes.chunk_rows
        return 1 / max(core_s / self.machine.cpus, *self.costs.values())

    @property
    def decoders_per_gpu(self) -> float | None:
        """Cores that must decode to keep one GPU busy; None without a GPU."""
        if not self.sizes.gpus_per_actor:
            return None
        gpus = max(1.0, self.sizes.gpus_per_actor)
        return self.paces[INFER].images_per_s / gpus / self.paces[DECODE].images_per_s


def probe(config: RunConfig, found: Preview) -> Probe | None:
    """Measure each step on a bit of what is left to do; None where nothing is.

    Args:
        found: by `preview`, of the same config.

    Raises:
        ConfigError: the model cannot be used as asked, or not one sample can be scored.
        RunFailed: storage does not give a shard, or the device cannot hold even one image.
    """
    if not found.work:
        return None
    weights, machine = resolve(config.model), this_machine(float(torch.cuda.device_count()))
    sizes = choose_sizes(machine, config.compute, len(found.work), sum(each.images for each in found.work))
    # All of it before anything is decoded: a reader that fetches ahead would get that time for nothing
    chunks = ceil(_IMAGES / _CHUNK_ROWS / min(_PLACES, len(found.work)))
    read, reading = _timed(chain.from_iterable(_read(each, config.source, chunks) for each in _apart(found.work)))
    preprocess = Preprocess(weights.input_spec(config.model), threads=1, decode_on=config.compute.decode_on)
    list(map(preprocess, read[:1]))  # imports the decoders
    decoded, decoding = _timed(preprocess(replace(chunk, errors=[])) for chunk in read)
    errors = {error for chunk in (*read, *decoded) for error in chunk.errors}
    good = [chunk for chunk in decoded if chunk.samples]
    if not good:
        kinds = ", ".join(sorted({error.error_type for error in errors})) or "there are no images"
        raise ConfigError(f"--probe: nothing in the source can be scored ({kinds}); name one with sound images")
    engine = "eager" if config.compute.engine == "eager" else "auto"  # takes a package, but compiles none so soon
    infer = Infer(
        config.model,
        config.outputs,
        config.compute.model_copy(update={"engine": engine}),
        device="cuda" if sizes.gpus_per_actor else "cpu",
        threads=sizes.inference_threads,
        batch_size=sizes.batch_size,
        sha256=weights.sha256,
    )
    scored, forward = _forward(good, infer, sizes)
    errors |= {error for chunk in scored for error in chunk.errors}
    bytes_per_image = reading.bytes / sum(len(chunk.samples) for chunk in read)
    images = found.samples
    if images is None and found.bytes is not None and all(each.shard.format != "manifest" for each in found.work):
        images = round(found.bytes / bytes_per_image)
    return Probe(
        paces={READ: reading, DECODE: decoding, INFER: forward},
        bytes_per_image=bytes_per_image,
        error_types=Counter(error.error_type for error in errors),
        engine=infer.engine.name,
        batch_size=infer.batch_size,
        machine=machine,
        sizes=sizes,
        images=images,
        estimated=found.samples is None,
    )


def _apart(work: Sequence[Work]) -> Iterator[Work]:
    """The first, the middle and the last, then the others, in case those are small."""
    last = len(work) - 1
    places = dict.fromkeys((0, last // 2, last))
    yield from (work[n] for n in chain(places, (n for n in range(last) if n not in places)))


def _read(work: Work, config: SourceConfig, at_most: int) -> Iterator[Chunk]:
    """The first chunks of `work`; of a shard without random access its own, as to step over what is done takes long."""
    if work.shard.count is None:
        work = replace(work, first=0, done=frozenset())
    return islice(read_chunks(work, config, _CHUNK_ROWS), at_most)


def _forward(chunks: Sequence[Chunk], infer: Infer, sizes: Sizes) -> tuple[list[Chunk], Pace]:
    """Warm, on whole batches, and on as many chunks at once as an actor has at work."""
    rows = sizes.chunk_rows if sizes.gpus_per_actor else infer.batch_size

    def score(chunk: Chunk) -> Chunk:
        whole = chunk.pick([n % len(chunk.samples) for n in range(rows)])
        return infer(replace(whole, errors=[], bytes_read=0))

    score(chunks[0])
    # A thread that is not told computes on every core
    pool = ThreadPoolExecutor(sizes.chunks_per_actor, "", torch.set_num_threads, (sizes.inference_threads,))
    try:
        return _timed(pool.map(score, islice(cycle(chunks), _FORWARDS)), at_most=rows * _FORWARDS)
    finally:
        pool.shutdown(cancel_futures=True)


def _timed(results: Iterable[Chunk], at_most: int = _IMAGES) -> tuple[list[Chunk], Pace]:
    """What a step gives, until it is enough, and its pace."""
    chunks: list[Chunk] = []
    pace = Pace()
    wall, core = perf_counter(), process_time()
    for chunk in results:
        chunks.append(chunk)
        images = pace.images + len(chunk.samples) + len(chunk.errors)
        pace = Pace(images, pace.bytes + chunk.bytes_read, perf_counter() - wall, process_time() - core)
        if images >= at_most or pace.bytes >= _BYTES or pace.seconds >= _SECONDS:
            break
    return chunks, pace

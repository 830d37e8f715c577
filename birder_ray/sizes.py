"""How many actors of which size: from what the cluster has, so that read, preprocess and infer always fit at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor

from birder_ray.config import ComputeConfig
from birder_ray.errors import ConfigError
from birder_ray.schema import DECODE, INFER, READ

_BYTES_PER_CPU_ACTOR = 3 * 1024**3
"""Memory of an inference actor on CPUs: 1 GiB once torch and birder are loaded, 1.3 (HGNet v2 B2) to 2.5 (HieraDet
Small at 384 px) in batches of 16."""

_USUAL_NODE_CPUS, _BYTES_PER_CPU = 8.0, 3 * 1024**3
"""Of a node that is yet to come."""

_CORES_PER_DECODER = 4
_MOST_READERS = 32
_FEWEST_CHUNKS = 16
"""Per inference actor, before chunks grow: an actor that is left with the last one keeps the others waiting."""


@dataclass(frozen=True)
class Sizes:
    """What a run starts. `*_cpus` and `gpus_per_actor` are Ray's logical resources, per task or actor.

    Args:
        inference_actors_at_first: Ray Data adds the others once there is work for them.
        batch_size: images per forward pass; None: each GPU's actor measures which is best.
        chunk_rows: images that travel together, whole batches.
        inference_threads: torch threads of an inference actor. chunks_per_actor: that it works on at once, so that its
            GPU has the next one while the tables of the last are made.
    """

    readers: int
    reader_cpus: float
    preprocess_actors: int
    preprocess_cpus: float
    inference_actors: int
    inference_cpus: float
    gpus_per_actor: float
    inference_actors_at_first: int
    inference_threads: int
    chunks_per_actor: int
    batch_size: int | None
    chunk_rows: int

    @property
    def workers(self) -> dict[str, int]:
        """Most workers at once, by step."""
        return {READ: self.readers, DECODE: self.preprocess_actors, INFER: self.inference_actors}


@dataclass(frozen=True)
class Hardware:
    """What a cluster has, in Ray's logical resources: in all, and on its largest node; memory in bytes, in all.

    Args:
        shared: it is not a private one of this machine, so that it has, or may get, other machines.
    """

    cpus: float
    gpus: float
    node_cpus: float
    node_gpus: float
    memory: float
    shared: bool = False

    @classmethod
    def of(cls, nodes: Sequence[Mapping[str, float]], shared: bool) -> "Hardware":
        """What a cluster of these nodes has."""
        cpus, gpus, memory = ([node.get(kind, 0.0) for node in nodes] for kind in ("CPU", "GPU", "memory"))
        return cls(sum(cpus), sum(gpus), max(cpus), max(gpus), sum(memory), shared)

    def grown(self, cpus: float, gpus: float) -> "Hardware":
        """What it is once an autoscaler has made the best of it: pools may grow up to that. Ray has no way to tell.

        Args:
            cpus, gpus: that there may be, where that is more than there are; 0: those there are.

        Raises:
            ConfigError: there is no CPU, and none to come.
        """
        cpus, gpus = max(self.cpus, cpus), max(self.gpus, gpus)
        if not cpus:
            raise ConfigError(
                "the Ray cluster has no CPUs for tasks: add a worker, or say in compute.max_cpus and max_gpus what its "
                "autoscaler may grow to"
            )
        return replace(
            self,
            cpus=cpus,
            gpus=gpus,
            node_cpus=self.node_cpus or min(cpus, _USUAL_NODE_CPUS),
            node_gpus=max(self.node_gpus, min(gpus, 1.0)),
            memory=self.memory + (cpus - self.cpus) * _BYTES_PER_CPU,
        )


def choose_sizes(hardware: Hardware, compute: ComputeConfig, tasks: int, images: float = 0.0) -> Sizes:
    """Sizes for a cluster and a job of `tasks` read tasks and about so many images (0: not known).

    An eighth of the cores is the readers'. With GPUs the rest decodes, but for a core per GPU; without, six eighths
    compute and one decodes, and every core gets an inference actor of its own as far as the memory goes: threads of one
    actor wait for one another after each layer, and for whatever takes a core from one of them. Whatever number of
    actors is asked for shares its part. What each chunk costs Ray and the driver, 30 to 40 ms of a core, is spread over
    as many images as a long job allows.

    Raises:
        ConfigError: an inference actor asks for more GPUs than any node has, or is to decode on a GPU without one.
    """
    cpus, gpus = hardware.cpus, hardware.gpus
    gpus_per_actor = compute.gpus_per_actor
    if gpus_per_actor == "auto":
        gpus_per_actor = 1.0 if gpus >= 1 else 0.0
    if gpus_per_actor > hardware.node_gpus:
        raise ConfigError(
            f"compute.gpus_per_actor is {gpus_per_actor:g}, but no machine has more than {hardware.node_gpus:g} GPUs; "
            f"leave it out, or 0 for CPUs"
        )
    if compute.decode_on == "gpu" and not gpus_per_actor:
        raise ConfigError("compute.decode_on is gpu, but no GPU is used; leave it out, or say --gpus-per-actor")
    if gpus_per_actor:
        inference = max(1, floor(gpus / gpus_per_actor + 1e-9))
        inference_part = min(float(inference), cpus / 4)
        preprocess_part = cpus * 7 / 8 - inference_part
        preprocess = max(1, floor(preprocess_part))
        usual_batch, most_rows = 256, 256
    else:
        inference = max(1, floor(min(cpus, hardware.memory / _BYTES_PER_CPU_ACTOR)))
        preprocess = max(1, floor(cpus / _CORES_PER_DECODER))
        inference_part, preprocess_part = cpus * 6 / 8, cpus / 8
        usual_batch, most_rows = 16, 64
    inference = inference if compute.inference_actors == "auto" else compute.inference_actors
    preprocess = preprocess if compute.preprocess_actors == "auto" else compute.preprocess_actors
    batch_size = usual_batch if compute.batch_size == "auto" else compute.batch_size
    rows = max(usual_batch, min(most_rows, images / inference / _FEWEST_CHUNKS))
    readers = max(1, min(tasks, 2 * preprocess if cpus >= _CORES_PER_DECODER else 1, _MOST_READERS))
    # Where readers and decoders ask for the same, on one or two cores, Ray runs both in the decoders' processes
    return Sizes(
        readers=readers,
        reader_cpus=min(0.25, _share(cpus / 8, readers)),
        preprocess_actors=preprocess,
        preprocess_cpus=min(1.0, _share(preprocess_part, preprocess)),
        inference_actors=inference,
        inference_cpus=min(_share(inference_part, inference), _share(hardware.node_cpus * 6 / 8, 1)),
        # On CPUs, actors that all load at once keep one another, and the other steps, from starting
        inference_actors_at_first=inference if gpus_per_actor else ceil(inference / 2),
        gpus_per_actor=gpus_per_actor,
        inference_threads=max(1, floor((inference_part if gpus_per_actor else cpus) / inference)),
        chunks_per_actor=2 if gpus_per_actor else 1,
        batch_size=None if gpus_per_actor and compute.batch_size == "auto" else batch_size,
        chunk_rows=max(1, floor(rows / batch_size)) * batch_size,  # so that no batch but a unit's last is short
    )


def _share(cpus: float, actors: int) -> float:
    """CPUs of each; Ray takes hundredths below 1 and whole numbers above."""
    each = cpus / actors
    return float(floor(each)) if each >= 1 else max(0.01, floor(each * 100) / 100)

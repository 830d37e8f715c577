"""Read, preprocess and infer always fit at once, whatever the machine."""

import itertools

import pytest

from birder_ray.config import ComputeConfig
from birder_ray.errors import ConfigError
from birder_ray.sizes import Hardware, choose_sizes
from birder_ray.tuning import CANDIDATES

MACHINES = [(1, 0), (2, 0), (3, 0), (4, 0), (16, 0), (96, 0), (1, 1), (2, 1), (4, 1), (16, 1), (96, 8), (7, 3)]
GIB = 1024**3
WISHES = [{}, {"inference_actors": 3}, {"preprocess_actors": 5}, {"batch_size": 400}, {"gpus_per_actor": 0.5}]


@pytest.mark.parametrize(("machine", "wish"), list(itertools.product(MACHINES, WISHES)))
def test_everything_fits(machine, wish):
    cpus, gpus = machine
    hardware = Hardware(cpus, gpus, cpus, max(gpus, wish.get("gpus_per_actor", 0)), cpus * 4 * GIB)
    sizes = choose_sizes(hardware, ComputeConfig(**wish), tasks=1000)
    used = (
        sizes.readers * sizes.reader_cpus
        + sizes.preprocess_actors * sizes.preprocess_cpus
        + sizes.inference_actors * sizes.inference_cpus
    )
    assert used <= cpus + 1e-9
    assert min(sizes.reader_cpus, sizes.preprocess_cpus, sizes.inference_cpus) > 0
    for each in (sizes.preprocess_cpus, sizes.inference_cpus):
        assert each < 1 or each == int(each), "Ray takes no 1.5 CPUs"
    assert 1 <= sizes.inference_threads <= cpus
    assert sizes.chunk_rows % (sizes.batch_size or max(CANDIDATES)) == 0


@pytest.mark.parametrize(("images", "rows"), [(0, 16), (500, 16), (1_100, 32), (2_048, 64), (10_000_000, 64)])
def test_chunks_grow_with_the_job(images, rows):
    assert choose_sizes(Hardware(2, 0, 2, 0, 24 * GIB), ComputeConfig(), 1, images).chunk_rows == rows


def test_chunks_are_whole_batches():
    sizes = choose_sizes(Hardware(16, 1, 16, 1, 64 * GIB), ComputeConfig(batch_size=100), 10, 1_000_000)
    assert (sizes.batch_size, sizes.chunk_rows) == (100, 200)


@pytest.mark.parametrize(("gpus", "wish", "actors"), [(4, {}, 4), (1, {"gpus_per_actor": 0.25}, 4), (0, {}, 16)])
def test_one_inference_actor_per_gpu_share_or_core(gpus, wish, actors):
    sizes = choose_sizes(Hardware(16, gpus, 16, gpus, 64 * GIB), ComputeConfig(**wish), 10)
    assert (sizes.inference_actors, sizes.inference_threads) == (actors, 1)


@pytest.mark.parametrize(("gib", "actors", "threads"), [(1, 1, 8), (7, 2, 4), (13, 4, 2), (64, 8, 1)])
def test_little_memory_makes_fewer_actors_of_more_threads(gib, actors, threads):
    sizes = choose_sizes(Hardware(8, 0, 8, 0, gib * GIB), ComputeConfig(), 10)
    assert (sizes.inference_actors, sizes.inference_threads) == (actors, threads)


def test_no_more_readers_than_tasks():
    assert choose_sizes(Hardware(64, 8, 64, 8, 256 * GIB), ComputeConfig(), tasks=3).readers == 3


def test_no_actor_outgrows_the_largest_node():
    sizes = choose_sizes(Hardware(20, 0, 2, 0, 80 * GIB), ComputeConfig(), tasks=100)
    assert max(sizes.inference_cpus, sizes.preprocess_cpus, sizes.reader_cpus) <= 2


@pytest.mark.parametrize("share", [1, 2, 0.5])
def test_gpus_that_no_node_has_are_refused(share):
    with pytest.raises(ConfigError, match="gpus_per_actor"):
        choose_sizes(Hardware(20, 0, 2, 0, 80 * GIB), ComputeConfig(gpus_per_actor=share), tasks=100)


def test_one_and_a_half_gpus_are_refused():
    with pytest.raises(Exception, match="whole number"):
        ComputeConfig(gpus_per_actor=1.5)


NODES = [{"memory": 8e9}, {"CPU": 16.0, "memory": 32e9}, {"CPU": 8.0, "GPU": 1.0, "memory": 32e9}]


def test_a_cluster_is_the_sum_of_its_nodes():
    found = Hardware.of(NODES, shared=True)
    assert found == Hardware(24.0, 1.0, 16.0, 1.0, 72e9, shared=True)
    assert found.grown(0, 0) == found.grown(16, 1) == found


@pytest.mark.parametrize(("cpus", "gpus", "actors"), [(120, 4, 4), (120, 0, 120), (8, 1, 1)])
def test_a_cluster_that_starts_from_nothing_is_sized_by_what_it_may_become(cpus, gpus, actors):
    grown = Hardware.of(NODES[:1], shared=True).grown(cpus, gpus)
    sizes = choose_sizes(grown, ComputeConfig(), 100)
    assert sizes.inference_actors == actors and sizes.gpus_per_actor == (1.0 if gpus else 0.0)
    each = (sizes.reader_cpus, sizes.preprocess_cpus, sizes.inference_cpus)
    assert all(0 < share <= 1 for share in each), "fits on whatever node comes first"


def test_a_cluster_without_cpus_is_refused():
    with pytest.raises(ConfigError, match="say in compute"):
        Hardware.of(NODES[:1], shared=True).grown(0, 0)

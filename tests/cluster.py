"""A run on a small cluster of its own: a head without CPUs, two workers. A script, since a process has one Ray.

    python -m tests.cluster CONFIG [STEP]

CONFIG is JSON. STEP: `lose` kills a worker, and adds another, once something is committed; `grow` adds the workers only
once the run waits for them. Says, as JSON, which files the driver wrote itself, and how many units were committed when
the worker was lost.
"""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import ray
from ray.cluster_utils import Cluster

from birder_ray import RunConfig, run
from birder_ray.folder import Folder
from birder_ray.record import COMMITS

GROWS_AFTER_S = 15
NODE = {"num_cpus": 2, "object_store_memory": 128 * 1024**2, "include_dashboard": False}


def main() -> None:
    told = RunConfig(**json.loads(sys.argv[1]))
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0})
    workers = [] if "grow" in sys.argv[2:] else [cluster.add_node(**NODE) for _ in range(2)]
    cluster.wait_for_nodes()
    written: list[str] = []
    lost_at: list[int] = []
    create = Folder.create

    def noting(self: Folder, name: str, data: bytes) -> bool:
        written.append(name)
        return create(self, name, data)

    def lose() -> None:
        folder = Folder(told.destination, told.destination_options)
        while not (committed := folder.names(COMMITS)):
            time.sleep(0.2)
        lost_at.append(len(committed))
        cluster.remove_node(workers[0], allow_graceful=False)
        cluster.add_node(**NODE)

    Folder.create = noting  # type: ignore[method-assign]
    if "lose" in sys.argv[2:]:
        threading.Thread(target=lose, daemon=True).start()
    config = told.model_copy(update={"compute": told.compute.model_copy(update={"ray_address": cluster.address})})
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, config)
        if not workers:
            time.sleep(GROWS_AFTER_S)
            assert not running.done(), running.exception()
            for _ in range(2):
                cluster.add_node(**NODE)  # on the main thread, since it handles signals
        summary = running.result()
    sys.stdout.write(json.dumps({"written": written, "lost_at": lost_at, "images": summary.images}) + "\n")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()

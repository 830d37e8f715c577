"""A run on a cluster that has no worker when it begins, and whose autoscaler, Ray's own, starts them and stops them. A
script, to be run where nothing else is: `unshare --net --pid --mount --fork --mount-proc`.

    python -m tests.autoscaled CONFIG

CONFIG is JSON. Says, as JSON, how many workers there were at most, and how many were left some time after the run.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from birder_ray import RunConfig, run

PORT, HEAD = 6379, "ray.head.default"
IDLE_MINUTES, GONE_WITHIN_S = 0.1, 90
GPU_TYPES = {"small": {"CPU": 2, "GPU": 1}, "large": {"CPU": 2, "GPU": 2}}
"""Unlike, as the nodes of a fleet are."""


def start() -> None:
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
    }
    workers = {
        name: {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": 1}
        for name, resources in GPU_TYPES.items()
    }
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    config = {
        "cluster_name": "fake", "max_workers": 2, "provider": provider, "head_node_type": HEAD,
        "available_node_types": {HEAD: head, **workers}, "idle_timeout_minutes": IDLE_MINUTES,
        "upscaling_speed": 1, "auth": {}, "docker": {}, "file_mounts": {}, "initialization_commands": [],
        "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [],
        "head_start_ray_commands": [], "worker_start_ray_commands": [], "cluster_synced_files": [],
        "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
    }  # fmt: skip
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump(config, file)
    environment = {
        **os.environ,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={PORT}", "--num-cpus=0",
        "--include-dashboard=false", "--disable-usage-stats", f"--autoscaling-config={file.name}",
    ]  # fmt: skip
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    config = RunConfig(**json.loads(sys.argv[1]))
    start()
    ray.init(f"127.0.0.1:{PORT}", log_to_driver=False, logging_level="error")
    most, over = 0, threading.Event()

    def workers() -> int:
        return sum(node["Alive"] and "GPU" in node["Resources"] for node in ray.nodes())

    def watch() -> None:
        nonlocal most
        while not over.wait(0.5):
            most = max(most, workers())

    assert workers() == 0
    watching = threading.Thread(target=watch)
    watching.start()
    try:
        summary = run(config)
    finally:
        over.set()
        watching.join()
    deadline = time.monotonic() + GONE_WITHIN_S
    while workers() and time.monotonic() < deadline:
        time.sleep(1)
    sys.stdout.write(json.dumps({"most": most, "left": workers(), "images": summary.images}) + "\n")
    ray.shutdown()


if __name__ == "__main__":
    main()

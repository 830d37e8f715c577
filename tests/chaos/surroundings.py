"""Where runs happen, and what else goes wrong there: a full disk, a faulty S3, a cluster that loses nodes."""

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from tests.chaos.processes import ROOT, Driver, send, short
from tests.faulty_s3 import FaultyS3

S3_FAULTS = {
    "slow_down": 0.1, "unavailable": 0.05, "too_many": 0.05, "internal": 0.05, "reset": 0.1, "reset_mid_body": 0.1,
    "truncated": 0.1, "short_length": 0.1, "lost_answer": 0.1, "latency": 0.2, "forbidden": 0.01,
    "expired": 0.01, "stale_list": 0.2,
}  # fmt: skip


class FullDisk:
    """A small file system of its own, which is made larger for the resume.

    Args:
        folder: where to mount it. needed: bytes that a whole run writes.
    """

    def __init__(self, folder: Path, needed: int):
        self.folder, self.needed = folder, needed
        folder.mkdir()
        self._mount("size=64m")

    def _mount(self, options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "chaos", str(self.folder)]
        subprocess.run(command, check=True, capture_output=True, timeout=30)

    def disturb(self, chance: random.Random) -> list[str]:
        share = chance.uniform(0.02, 0.95)
        used = sum(path.stat().st_blocks * 512 for path in self.folder.rglob("*"))
        self._mount(f"remount,size={max(used, int(share * self.needed)) // 1024 + 8}k")
        return [f"disk of {share:.0%}"]

    def strike(self, fault: str, driver: Driver) -> bool:
        return False

    def refused(self, name: str) -> bool:
        return False

    def mend(self) -> None:
        self._mount("remount,size=64m")

    def close(self) -> None:
        subprocess.run(["umount", str(self.folder)], check=False, capture_output=True, timeout=30)


class FaultyStorage:
    """S3 behind a proxy that lets requests go wrong."""

    def __init__(self, proxy: FaultyS3):
        self.proxy = proxy

    def disturb(self, chance: random.Random) -> list[str]:
        kinds = chance.sample(sorted(S3_FAULTS), chance.choice([1, 2, 3]))
        self.proxy.burst = chance.choice([1, 3, 20])
        self.proxy.faults = {kind: S3_FAULTS[kind] * chance.choice([0.3, 1, 2]) for kind in kinds}
        return kinds

    def strike(self, fault: str, driver: Driver) -> bool:
        return False

    def refused(self, name: str) -> bool:
        return any(self.proxy.count(re.escape(name), fault) for fault in ("forbidden", "expired"))

    def mend(self) -> None:
        self.proxy.faults = {}


class RayCluster:
    """A head and two workers on this machine, as raylets of their own; what was struck is replaced."""

    _SMALL: ClassVar[dict[str, Any]] = {"object_store_memory": 256 * 1024**2, "include_dashboard": False}

    def __init__(self) -> None:
        self.temporary = short("cluster")
        (self.temporary / "ray").mkdir()  # where Ray notes the address of the cluster
        self.lost: list[Any] = []
        self.told: dict[str, Any] = {}
        """Blocks of the pipeline file that send a run here."""
        with self._own_processes():
            self._start()

    @contextmanager
    def _own_processes(self) -> Iterator[None]:
        """What is started meanwhile is marked as the cluster's, and finds this package."""
        os.environ |= {"RAY_TMPDIR": str(self.temporary), "PYTHONPATH": str(ROOT)}
        try:
            yield
        finally:
            del os.environ["RAY_TMPDIR"], os.environ["PYTHONPATH"]

    def _start(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "_system_config": {"health_check_failure_threshold": 3}, **self._SMALL}
        self.cluster = Cluster(initialize_head=True, head_node_args={**head, "temp_dir": str(self.temporary)})
        self.nodes = [self._add(), self._add()]
        self.told["compute"] = {"ray_address": str(self.cluster.address)}

    def _add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, **self._SMALL)

    def disturb(self, chance: random.Random) -> list[str]:
        self.chance = chance
        return []

    def strike(self, fault: str, driver: Driver) -> bool:
        who, what = fault.split()
        if who == "head":  # its machine, on which the driver runs
            driver.signal(signal.SIGKILL)
            self.lost += [self.cluster.head_node]
            killed = [_send(self.cluster.head_node, kind, signal.SIGKILL) for kind in ("gcs_server", "raylet")]
            return all(killed)
        left = [node for node in self.nodes if node not in self.lost]
        if who != "raylet" or not left:
            return False
        node = self.chance.choice(left)
        if what == "KILL":
            self.lost.append(node)
            return _send(node, "raylet", signal.SIGKILL)
        _send(node, "raylet", signal.SIGSTOP)
        time.sleep(self.chance.uniform(0.5, 4))
        return _send(node, "raylet", signal.SIGCONT)

    def refused(self, name: str) -> bool:
        return False

    def mend(self) -> None:
        with self._own_processes():
            if self.cluster.head_node in self.lost:
                self.cluster.shutdown()
                self._start()
            for node in self.nodes:
                if node not in self.lost and node.any_processes_alive() and not node.dead_processes():
                    continue
                self.cluster.remove_node(node, allow_graceful=False)
                self.nodes[self.nodes.index(node)] = self._add()
        self.lost = []

    def close(self) -> None:
        self.cluster.shutdown()


def _send(node: Any, kind: str, number: int) -> bool:
    return send(node.all_processes[kind][0].process.pid, number)

"""Where runs happen, and what else goes wrong there: a full disk, a faulty S3, a cluster that loses nodes."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.chaos.processes import ROOT, send, short
from tests.chaos.scenarios import Run
from tests.faulty_s3 import FaultyS3

S3_FAULTS = {
    "slow_down": 0.1, "unavailable": 0.05, "too_many": 0.05, "internal": 0.05, "reset": 0.1, "reset_mid_body": 0.1,
    "truncated": 0.1, "lost_answer": 0.1, "latency": 0.2, "forbidden": 0.01, "expired": 0.01,
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

    def strike(self, fault: str, run: Run) -> bool:
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

    def strike(self, fault: str, run: Run) -> bool:
        return False

    def mend(self) -> None:
        self.proxy.faults = {}


class RayCluster:
    """A head and two workers on this machine, as raylets of their own; workers that are struck are replaced."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.temporary = short("cluster")
        (self.temporary / "ray").mkdir()  # where Ray notes the address of the cluster
        os.environ["RAY_TMPDIR"] = str(self.temporary)
        os.environ["PYTHONPATH"] = str(ROOT)
        small: dict[str, Any] = {"object_store_memory": 256 * 1024**2, "include_dashboard": False}
        try:
            head = {"num_cpus": 1, "_system_config": {"health_check_failure_threshold": 3}, **small}
            self.cluster = Cluster(initialize_head=True, head_node_args={**head, "temp_dir": str(self.temporary)})
            self.small = small
            self.nodes = [self._add(), self._add()]
        finally:
            del os.environ["RAY_TMPDIR"], os.environ["PYTHONPATH"]
        self.lost: list[Any] = []

    def _add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, **self.small)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def disturb(self, chance: random.Random) -> list[str]:
        self.chance = chance
        return []

    def strike(self, fault: str, run: Run) -> bool:
        who, what = fault.split()
        if who != "raylet":
            return False
        left = [node for node in self.nodes if node not in self.lost]
        if not left:
            return False
        node = self.chance.choice(left)
        pid = node.all_processes["raylet"][0].process.pid
        if what == "KILL":
            self.lost.append(node)
            return send(pid, signal.SIGKILL)
        send(pid, signal.SIGSTOP)
        time.sleep(self.chance.uniform(0.5, 4))
        return send(pid, signal.SIGCONT)

    def mend(self) -> None:
        os.environ["RAY_TMPDIR"] = str(self.temporary)
        os.environ["PYTHONPATH"] = str(ROOT)
        try:
            for node in self.nodes:
                if node not in self.lost and node.any_processes_alive() and not node.dead_processes():
                    continue
                self.cluster.remove_node(node, allow_graceful=False)
                self.nodes[self.nodes.index(node)] = self._add()
        finally:
            del os.environ["RAY_TMPDIR"], os.environ["PYTHONPATH"]
        self.lost = []

    def close(self) -> None:
        self.cluster.shutdown()

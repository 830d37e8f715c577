"""Jobs for a head that has Ray's dashboard, and what Prometheus would scrape meanwhile. A script, to be run where
nothing else is: `unshare --net --pid --mount --fork --mount-proc`.

    python -m tests.jobs BIN FOLDER

BIN: of the environment that the head and its jobs run in. FOLDER: holds run.yaml, which writes FOLDER/out, and
mistake.yaml. The first job is stopped after its first commit, the second goes on, the third finds nothing to do, the
last is a mistake. Says, as JSON, the exit code and output of each `ray job`, and every series that was scraped.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.request import urlopen

METRICS = 8090
_SERIES = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Scraped:
    """All series of birder-ray and their last values, from one scrape a second."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        threading.Thread(target=self._scrape, daemon=True).start()

    def _scrape(self) -> None:
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{METRICS}/metrics", timeout=5) as answer:
                    text = answer.read().decode()
            except OSError:
                text = ""
            for name, labels, value in _SERIES.findall(text):
                if name.startswith("ray_birder_ray_"):
                    self.series[name, tuple(_LABEL.findall(labels))] = float(value)
            time.sleep(1)


def main() -> None:
    folder = Path(sys.argv[2])
    python = str(Path(sys.argv[1]) / "python")
    environment = {
        **os.environ,
        "PATH": f"{sys.argv[1]}:{os.environ['PATH']}",
        "RAY_metrics_report_interval_ms": "1000",
        "RAY_ADDRESS": "http://127.0.0.1:8265",
    }

    def ray(*arguments: str) -> dict:
        command = [python, "-m", "ray.scripts.scripts", *arguments]
        done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)
        return {"code": done.returncode, "output": done.stdout + done.stderr}

    def submit(name: str, *more: str) -> dict:
        return ray("job", "submit", *more, "--", "birder-ray", "run", str(folder / name))

    head = (
        "--node-ip-address=127.0.0.1",
        "--num-cpus=2",
        f"--metrics-export-port={METRICS}",
        "--object-store-memory=134217728",
    )
    started = ray("start", "--head", "--disable-usage-stats", *head)
    assert started["code"] == 0, started["output"]
    scraped = Scraped()
    done = {"begun": submit("run.yaml", "--no-wait", "--submission-id", "first")}
    deadline = time.monotonic() + 120
    while not list(folder.glob("out/_commits/*.json")):
        assert time.monotonic() < deadline, ray("job", "logs", "first")
        time.sleep(0.1)
    done["stopped"] = ray("job", "stop", "first")
    commits = len(list(folder.glob("out/_commits/*.json")))
    done |= {"resumed": submit("run.yaml")}
    time.sleep(3)
    done |= {"again": submit("run.yaml"), "mistake": submit("mistake.yaml")}
    series = [
        {"name": name, "labels": dict(labels), "value": value} for (name, labels), value in scraped.series.items()
    ]
    sys.stdout.write(json.dumps({"jobs": done, "commits": commits, "series": series}) + "\n")


if __name__ == "__main__":
    main()

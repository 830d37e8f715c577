"""Metrics count what the commits say. That Ray exports them: test_arrivals, where ray[default] is installed."""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

from birder_ray import metrics
from birder_ray.commit import Ledger
from birder_ray.folder import Folder
from birder_ray.metrics import Metrics
from birder_ray.progress import Meter
from birder_ray.scored import look
from tests.built import build, chunks


@pytest.fixture
def counted(monkeypatch) -> Counter:
    """What was added to Ray's counters, and set in its gauges, by name and tags."""
    found: Counter = Counter()

    def inc(self, value=1.0, tags=None):
        assert value > 0, "Ray refuses anything else"
        found[self.info["name"], *(tags or {}).values()] += value

    def put(self, value, tags=None):
        found[self.info["name"]] = value

    monkeypatch.setattr(metrics.Counter, "inc", inc)
    monkeypatch.setattr(metrics.Gauge, "set", put)
    return found


def test_counts_are_the_commits(tmp_path, counted):
    build(Folder(str(tmp_path)), {"a.tar": 25, "b.tar": 12})
    ledger, made, meter = Ledger(Folder(str(tmp_path))), Metrics("recipe"), Meter(100, 10)
    records = list(ledger.records(sorted(ledger.units())))
    assert counted["birder_ray_running"] == 1, "also before the first commit"
    for record in records:
        made.committed(record, meter)
    assert counted["birder_ray_units",] == len(records) == 5
    assert counted["birder_ray_images",] == sum(record.rows for record in records) == 35
    for table in ("predictions", "embeddings", "features", "errors"):
        size = sum(record.parts[table].bytes for record in records if table in record.parts)
        assert counted["birder_ray_written_bytes", table] == size > 0
    read = sum(record.seconds["read"] for record in records)
    assert counted["birder_ray_step_seconds", "read"] == pytest.approx(read)
    assert counted["birder_ray_images_left"] == 90
    made.ended()
    assert counted["birder_ray_running"] == 0


def test_errors_are_counted_by_step_and_type(counted):
    made = Metrics("recipe")
    for chunk in chunks("p", "a.tar", 25, bad=frozenset({3, 7}), damaged=True):
        for head in look(chunk.to_table()):
            made.scored(head)
    del counted["birder_ray_running"]
    assert counted == {("birder_ray_errors", "read", "EmptyFile"): 2, ("birder_ray_errors", "read", "TruncatedTar"): 1}


MONITORING = Path(__file__).resolve().parents[1] / "infra/monitoring"
PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool here: apt-get install prometheus")
def test_alerts_come_when_they_should():
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]):
        done = subprocess.run([PROMTOOL, *command], cwd=MONITORING, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_that_alerts_go_by_exists(counted):
    """Under the name that Ray gives it."""
    made = vars(Metrics("recipe")).values()
    names = {f"ray_{each.info['name']}" + ("_total" if isinstance(each, metrics.Counter) else "") for each in made}
    used = set(re.findall(r"ray_birder_ray_\w+", (MONITORING / "rules.yaml").read_text()))
    assert used and used <= names
    tested = set(re.findall(r"ray_birder_ray_\w+", (MONITORING / "rules_test.yaml").read_text()))
    assert tested <= names


def test_alerts_lead_to_what_to_do():
    headings = re.findall(r"^## (.+)$", (MONITORING.parents[1] / "docs/operations.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", each).strip().lower().replace(" ", "-") for each in headings}
    for rule in yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"][0]["rules"]:
        if "alert" in rule:
            assert rule["annotations"]["runbook"].partition("#")[2] in anchors

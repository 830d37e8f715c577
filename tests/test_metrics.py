"""Metrics count what the commits say. That Ray exports them, and Prometheus could scrape them: test_jobs."""

import re
import shutil
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from birder_ray import metrics
from birder_ray.commit import Ledger
from birder_ray.folder import Folder
from birder_ray.metrics import BatchSize, Gauge, exported
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
    monkeypatch.setattr(Gauge, "set", put)
    return found


def test_counts_are_the_commits(tmp_path, counted):
    build(Folder(str(tmp_path)), {"a.tar": 25, "b.tar": 12})
    ledger, meter = Ledger(Folder(str(tmp_path))), Meter(100, 10)
    records = list(ledger.records(sorted(ledger.units())))
    with exported("recipe", "run") as made:
        assert counted["birder_ray_running"] == 1, "also before the first commit"
        for chunk in chunks("p", "a.tar", 25):
            made.scored(look(chunk.to_table())[0])
        for record in records:
            made.committed(record, meter)
    assert counted["birder_ray_units",] == len(records) == 5
    assert counted["birder_ray_images",] == sum(record.rows for record in records) == 35
    for table in ("predictions", "embeddings", "features", "errors"):
        size = sum(record.parts[table].bytes for record in records if table in record.parts)
        assert counted["birder_ray_written_bytes", table] == size > 0
    read = sum(chunk.seconds["read"] for chunk in chunks("p", "a.tar", 25))
    assert counted["birder_ray_step_seconds", "read"] == pytest.approx(read)
    written = sum(record.seconds["write"] for record in records)
    assert counted["birder_ray_step_seconds", "write"] == pytest.approx(written)
    assert counted["birder_ray_images_left"] == 90
    assert counted["birder_ray_running"] == 0


def test_errors_are_counted_by_step_and_type(counted):
    with exported("recipe", "run") as made:
        for chunk in chunks("p", "a.tar", 25, bad=frozenset({3, 7}), damaged=True):
            for head in look(chunk.to_table()):
                made.scored(head)
    errors = {what: count for what, count in counted.items() if "birder_ray_errors" in what}
    assert errors == {("birder_ray_errors", "read", "EmptyFile"): 2, ("birder_ray_errors", "read", "TruncatedTar"): 1}


def test_of_a_unit_that_grew_only_what_was_added_is_counted_as_written(tmp_path, counted):
    build(Folder(str(tmp_path)), {"a.tar": 8})
    ledger = Ledger(Folder(str(tmp_path)))
    (unit,) = ledger.units()
    record = replace(ledger.read(unit), added={"embeddings": "before", "features": "now"})
    with exported("recipe", "now") as made:
        made.committed(record, Meter(None, 0))
    assert ("birder_ray_step_seconds", "write") not in counted
    written = {name: value for name, value in counted.items() if "birder_ray_written_bytes" in name}
    assert written == {("birder_ray_written_bytes", "features"): record.parts["features"].bytes}


def test_gauges_are_set_again_until_the_run_ends(monkeypatch):
    """Or Ray, half a minute later, exports them no more."""
    told: list[tuple[Gauge, float]] = []
    monkeypatch.setattr(metrics, "SET_AGAIN_S", 0.01)
    monkeypatch.setattr(Gauge, "set", lambda self, value, tags=None: told.append((self, value)))
    with exported("recipe", "run") as made:
        deadline = time.monotonic() + 10
        while told.count((made.running, 1)) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    time.sleep(0.1)
    now = list(told)
    assert now[-1] == (made.running, 0)
    time.sleep(0.1)
    assert told == now


def test_the_batch_size_is_told_when_it_changes(monkeypatch):
    told = []
    monkeypatch.setattr(metrics, "SET_AGAIN_S", 60)
    monkeypatch.setattr(Gauge, "set", lambda self, value, tags=None: told.append((self.info["name"], value)))
    size = BatchSize("recipe")
    for now in (256, 256, 128):
        size.now(now)
    BatchSize(None).now(64)
    assert told == [("birder_ray_batch_size", 256), ("birder_ray_batch_size", 128)]


MONITORING = Path(__file__).resolve().parents[1] / "infra/monitoring"
PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool here: apt-get install prometheus")
def test_alerts_come_when_they_should():
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]):
        done = subprocess.run([PROMTOOL, *command], cwd=MONITORING, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_that_alerts_go_by_exists(counted):
    """Under the name that Ray gives it."""
    with exported("recipe", "run") as metrics_of_run:
        made = [each for each in vars(metrics_of_run).values() if hasattr(each, "info")]
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

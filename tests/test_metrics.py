"""Metrics count what the commits say. That Ray exports them: test_arrivals, where ray[default] is installed."""

from collections import Counter

import pytest

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


def test_errors_are_counted_by_step_and_type(counted):
    made = Metrics("recipe")
    for chunk in chunks("p", "a.tar", 25, bad=frozenset({3, 7}), damaged=True):
        for head in look(chunk.to_table()):
            made.scored(head)
    assert counted == {("birder_ray_errors", "read", "EmptyFile"): 2, ("birder_ray_errors", "read", "TruncatedTar"): 1}

"""Reports of destinations that are odd: in the midst of a run, of many runs, with values that are no numbers, or made
by somebody who means harm."""

import json
import os

import numpy as np
import pyarrow as pa
import pytest

from birder_ray.classes import short_names
from birder_ray.commit import Ledger
from birder_ray.errors import ConfigError
from birder_ray.folder import Folder
from birder_ray.manifest import MANIFEST
from birder_ray.page import save
from birder_ray.record import record_name
from birder_ray.report import facts, report
from birder_ray.report.pace import work
from birder_ray.report.thumbnails import thumbnails
from birder_ray.report.vectors import levels
from birder_ray.scores import Scores
from tests.built import build, rewrite
from tests.test_report import photo

SHARDS = {"a.tar": 25, "b.tar": 12}


@pytest.fixture
def folder(tmp_path) -> Folder:
    made = Folder(str(tmp_path / "out"))
    build(made, SHARDS)
    return made


def records(folder: Folder, change) -> None:
    """Change every record; `change` gets its position too."""
    for at, unit in enumerate(sorted(Ledger(folder).units())):
        folder.write_json(record_name(unit), change(at, folder.read_json(record_name(unit))))


@pytest.mark.parametrize("seconds", [1, 59, 306, 490, 3601, 19_999])
def test_the_pace_adds_up_to_the_images(folder, seconds):
    """Of two runs, the second of which took so long."""

    def at(number, record):
        last = 1_700_000_000 + 1000 + (seconds if number == 4 else number * seconds / 5)
        time = np.datetime_as_string(np.datetime64(int(1_700_000_000 + number if number < 2 else last), "s"))
        return {**record, "run": "one" if number < 2 else "two", "finished": f"{time}+00:00"}

    records(folder, at)
    found = work(Scores(folder.url))
    assert len(found.stretches) == 2
    for stretch in found.stretches:
        width = stretch.length / len(stretch.rates)
        assert np.isfinite(stretch.rates).all()
        assert sum(stretch.rates) * width == pytest.approx(stretch.images, abs=0.01 * len(stretch.rates) * width)
        assert max(stretch.rates) <= stretch.images / width + 0.01


def test_records_that_say_no_time_count_all_the_same(folder):
    records(folder, lambda at, record: {**record, "finished": ""} if at else record)
    found = work(Scores(folder.url))
    assert found.totals.samples == 38
    assert sum(stretch.images for stretch in found.stretches) < 38
    assert report(folder.url, thumbnails=0)


def test_channels_are_told_of_their_finite_values_alone(folder):
    """Also where a channel has none in the first unit."""
    units = sorted(Ledger(folder).units())
    values = {}

    def change(unit):
        def changed(table):
            found = np.array([[np.nan, index] for index in table["index"].to_pylist()], np.float32)
            if unit != units[0]:
                found[:, 0] = found[:, 1] + 7
            values[unit] = found
            at = table.column_names.index("stage1_mean")
            return table.set_column(
                at, "stage1_mean", pa.FixedSizeListArray.from_arrays(pa.array(found.ravel(), pa.float32()), 2)
            )

        return changed

    for unit in units:
        rewrite(folder, "features", unit, change(unit))
    found = levels(Scores(folder.url))
    every = np.concatenate(list(values.values())).astype(np.float64)
    (level,) = [each for each in found.each if each.pooling == "mean"]
    assert found.total == len(every) and level.channels == 2
    assert level.mean == pytest.approx(np.nanmean(every, axis=0).mean())
    assert level.apart == pytest.approx(np.nanmean(every, axis=0).std())
    assert level.within == pytest.approx(np.sqrt(np.nanvar(every, axis=0).mean()))


def test_a_plant_and_an_animal_of_one_name_stay_apart():
    above = "Phylum_Class_Order_Family"
    names = [f"0000{n}_{k}_{above}_Prunella_vulgaris" for n, k in enumerate(("Animalia", "Plantae"))]
    names.append(f"00002_Plantae_{above}_Bellis_perennis")
    assert short_names(names) == {names[2]: "Bellis perennis"}


def test_a_manifest_does_not_consent_for_whoever_reads_it(tmp_path, s3_moto):
    """Local files that a list on a server names are not read, though the destination says that its run might."""
    private = tmp_path / "private.jpg"
    private.write_bytes(photo(0))
    Folder(s3_moto.url, s3_moto.options).write("a.csv", f"path\n{private.as_uri()}\n".encode())
    manifest = {
        "config": {
            "source": {"uri": [f"{s3_moto.url}/a.csv"], "options": [], "allow_local_uris": True},
            "model": {"name": "m"},
            "destination": "out",
            "destination_options": [],
        },
        "inputs": [],
    }
    from birder_ray.config import SourceConfig
    from birder_ray.source import list_shards, read_samples

    source = SourceConfig(uri=[f"{s3_moto.url}/a.csv"], options=s3_moto.options, allow_local_uris=True)
    (shard,) = list_shards(source)
    ((sample, content),) = read_samples(shard, source, 0, lambda _: True)
    assert content == private.read_bytes(), "or this shows nothing"
    manifest["inputs"] = [{"name": shard.name, "fingerprint": shard.fingerprint}]
    image = facts.Image(sample.sample, shard.name, 0, "heron", 0.9)
    found = thumbnails(manifest, [image], s3_moto.options)
    assert found.jpegs == {}
    assert ["Local" in reason for reason in found.left_out] == [True]


def test_an_evaluation_of_other_predictions_says_so(folder):
    told = {"recipe": folder.read_json(MANIFEST)["recipe"]["key"], "scored": 35}
    for summary, stale in ((told, False), ({**told, "scored": 34}, True), ({**told, "recipe": "other"}, True)):
        folder.write("evaluation/summary.json", json.dumps(summary).encode())
        report(folder.url, thumbnails=0)
        assert (b"other predictions" in folder.read("report.html")) == stale


def test_the_balance_counts_every_table(folder):
    report(folder.url, thumbnails=0)
    assert b"agree with the commit records" in folder.read("report.html")
    lacking = {"a": None}

    def change(at, record):
        if at == 0:
            lacking["a"] = record["parts"].pop("features")
        return record

    records(folder, change)
    report(folder.url, thumbnails=0)
    assert b"do not agree" in folder.read("report.html")
    folder.write_json(MANIFEST, {**folder.read_json(MANIFEST), "adding": ["features"]})
    report(folder.url, thumbnails=0)
    assert b"A run is adding features" in folder.read("report.html")


def test_a_unit_that_a_run_takes_back_meanwhile_is_left_out(folder):
    scores, unit = Scores(folder.url), min(Ledger(folder).units())
    assert len(scores.units) == 5
    Ledger(folder).retract(unit)
    assert sum(rows.num_rows for rows in scores.stream("predictions")) < 35
    folder.write(record_name(unit), b"{")
    with pytest.raises(ConfigError, match="damaged commit record"):
        list(scores.stream("predictions"))


def test_a_destination_that_may_only_be_read(folder, monkeypatch):
    def refused(self, name, data, content_type=None):
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(Folder, "write", refused)
    with pytest.raises(ConfigError, match="--to another path"):
        report(folder.url, thumbnails=0)


def test_rows_without_a_number_are_left_out_and_the_balance_tells(folder):
    def change(table):
        values = table["probability"].to_pylist()
        values[0] = None
        at = table.column_names.index("probability")
        return table.set_column(at, "probability", pa.array(values, pa.float32()))

    rewrite(folder, "predictions", min(Ledger(folder).units()), change)
    report(folder.url, thumbnails=0)
    assert b"do not agree" in folder.read("report.html")


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "report.html"
    save(b"of yesterday", str(file))
    monkeypatch.setattr(os, "replace", lambda old, new: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(OSError, match="disk gone"):
        save(b"of today", str(file))
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"of yesterday"]
    with pytest.raises(OSError, match="there is no folder"):
        save(b"of today", str(tmp_path / "none" / "report.html"))


@pytest.mark.parametrize("told", [{"thumbnails": -1}, {"points": 0}])
def test_too_few_are_told(tmp_path, told):
    with pytest.raises(ConfigError, match="give at least 0 and 1"):
        report(str(tmp_path), **told)

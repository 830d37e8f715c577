"""The whole chain on a local Ray: every source, every option that changes what is written, the resume."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from birder_ray import ConfigError, RunConfig, RunFailed, run
from birder_ray.commit import SUCCESS
from birder_ray.record import COMMITS
from birder_ray.testing import Truth, make_shards
from birder_ray.verify import status, verify
from tests.results import assert_same, parts, table, vectors

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def _config(source, model: str, destination: Path, **blocks) -> RunConfig:
    compute = {"unit_rows": 5, "gpus_per_actor": 0} | blocks.pop("compute", {})
    return RunConfig(source=source, model=model, destination=str(destination), compute=compute, **blocks)


def _source(folder: Path, form: str) -> str:
    return f"{folder}/*.csv" if form == "manifest" else str(folder)


@pytest.mark.parametrize("form", ["tar", "parquet", "images", "manifest"])
def test_every_format_is_scored_once_with_its_labels(tmp_path, model, form):
    truth = make_shards(str(tmp_path / "data"), images_per_shard=8, shards=2, format=form)
    summary = run(_config(_source(tmp_path / "data", form), model, tmp_path / "out"))
    assert (summary.images, summary.errors, summary.units) == (16, 0, 4)
    predictions = table(tmp_path / "out", "predictions")
    found = [Truth(*row) for row in zip(*(predictions[c].to_pylist() for c in Truth._fields), strict=True)]
    assert found == sorted(truth, key=lambda row: (row.shard, row.index))
    assert verify(str(tmp_path / "out")).samples == 16


def test_the_same_photos_give_the_same_numbers_from_every_format_and_batch_size(tmp_path, model):
    outs = []
    for form, batch in [("tar", 1), ("parquet", 7), ("images", 64), ("manifest", 3)]:
        make_shards(str(tmp_path / form), images_per_shard=8, shards=2, format=form)
        outs.append(tmp_path / f"out-{form}")
        run(_config(_source(tmp_path / form, form), model, outs[-1], compute={"batch_size": batch}))
    for name, columns in {"embeddings": ["embedding"], "features": ["stage1_mean", "stage4_std"]}.items():
        for column in columns:
            first = vectors(table(outs[0], name), column)
            assert np.ptp(first, axis=0).max() > 1e-3, "the images must differ for this to mean anything"
            for other in outs[1:]:
                np.testing.assert_allclose(vectors(table(other, name), column), first, atol=1e-4)


def test_what_a_run_leaves_behind(tmp_path, model):
    make_shards(str(tmp_path / "data"), images_per_shard=3, shards=1)
    summary = run(_config(str(tmp_path / "data"), model, tmp_path / "out"))
    unit = next((tmp_path / "out" / "predictions").iterdir()).stem
    assert parts(tmp_path / "out") == sorted(
        [f"{COMMITS}/{unit}.json", SUCCESS, "classes.parquet", "manifest.json", f"_runs/{summary.run}.json"]
        + [f"{name}/{unit}.parquet" for name in ("embeddings", "features", "predictions")]
    )
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for name in ("predictions", "embeddings", "features"):
        told = pq.read_metadata(tmp_path / "out" / name / f"{unit}.parquet").metadata
        recipe = f"{manifest['recipe']['core']}-{manifest['recipe']['tables'][name]}"
        assert told[b"birder_ray.recipe"].decode() == recipe
        assert told[b"birder_ray.unit"].decode() == unit
        assert told[b"birder_ray.schema_version"] == b"1"
    classes = pq.read_table(tmp_path / "out" / "classes.parquet")
    assert classes["class_name"].to_pylist() == [f"species-{i}" for i in range(7)]
    assert manifest["totals"]["samples"] == 3


def test_tables_that_are_added_are_those_of_one_run(tmp_path, model):
    make_shards(str(tmp_path / "data"), images_per_shard=8, shards=2)
    (tmp_path / "data" / "bad.tar").write_bytes((tmp_path / "data" / "shard-000000.tar").read_bytes()[:9000])
    run(_config(str(tmp_path / "data"), model, tmp_path / "whole"))
    run(_config(str(tmp_path / "data"), model, tmp_path / "grown", outputs={"predictions": {}}))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "grown" / "predictions").iterdir()}
    summary = run(_config(str(tmp_path / "data"), model, tmp_path / "grown"))
    assert summary.added == ("embeddings", "features")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "grown" / "predictions").iterdir()} == before
    assert_same(tmp_path / "grown", tmp_path / "whole")
    assert table(tmp_path / "grown", "errors").num_rows
    verify(str(tmp_path / "grown"), deep=True)


def test_every_commit_says_where_its_time_and_bytes_went(tmp_path, model):
    make_shards(str(tmp_path / "data"), images_per_shard=8, shards=1, format="images")
    summary = run(_config(str(tmp_path / "data"), model, tmp_path / "out"))
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "out" / COMMITS).iterdir())]
    assert len(records) == 2 and summary.engines == {"eager": 8}
    for record in records:
        assert set(record["seconds"]) == {"read", "decode", "infer", "write", "wait", "transfer"}
        assert all(0 < seconds < 60 for seconds in record["seconds"].values())
        assert record["engines"] == {"eager": record["rows"]}
    size = sum(path.stat().st_size for path in (tmp_path / "data").rglob("*.jpg"))
    assert sum(record["bytes_read"] for record in records) == size
    assert status(str(tmp_path / "out")).totals.bytes_read == size


def test_running_again_does_nothing(tmp_path, model):
    make_shards(str(tmp_path / "data"), images_per_shard=6, shards=1)
    config = _config(str(tmp_path / "data"), model, tmp_path / "out")
    run(config)
    before = {
        name: (tmp_path / "out" / name).stat().st_mtime_ns
        for name in parts(tmp_path / "out/predictions")
        for name in [f"predictions/{name}"]
    }
    summary = run(config)
    assert (summary.images, summary.units, summary.total_images) == (0, 0, 6)
    assert before == {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before}


def test_a_run_that_lost_commits_redoes_just_those(tmp_path, model):
    make_shards(str(tmp_path / "data"), images_per_shard=12, shards=2)
    config = _config(str(tmp_path / "data"), model, tmp_path / "out")
    run(config)
    whole = table(tmp_path / "out", "embeddings")
    for lost in sorted((tmp_path / "out" / COMMITS).iterdir())[1:4:2]:
        lost.unlink()
    summary = run(config)
    assert (summary.units, summary.total_units, summary.total_images) == (2, 6, 24)
    np.testing.assert_allclose(
        vectors(table(tmp_path / "out", "embeddings"), "embedding"), vectors(whole, "embedding"), atol=1e-5
    )
    verify(str(tmp_path / "out"))


def test_tables_and_their_options(tmp_path, model):
    make_shards(str(tmp_path / "data"), images_per_shard=4, shards=1)
    run(
        _config(
            str(tmp_path / "data"), model, tmp_path / "out",
            outputs={
                "predictions": {"top_k": 2, "logits": True},
                "features": {"levels": ["stage2", "stage4"], "pooling": ["mean", "gem"]},
            },
        )
    )  # fmt: skip
    predictions = table(tmp_path / "out", "predictions")
    logits = vectors(predictions, "logits")
    assert logits.shape == (4, 7)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(predictions["probability"].to_numpy(), probabilities.max(axis=1), atol=1e-5)
    assert [len(row) for row in predictions["top_classes"].to_pylist()] == [2] * 4
    assert [row[0] for row in predictions["top_classes"].to_pylist()] == predictions["prediction"].to_pylist()
    entropy = -(probabilities * np.log(probabilities)).sum(axis=1)
    np.testing.assert_allclose(predictions["entropy"].to_numpy(), entropy, atol=1e-5)
    features = table(tmp_path / "out", "features")
    assert features.schema.names[3:] == ["stage2_mean", "stage2_gem", "stage4_mean", "stage4_gem"]
    assert not (tmp_path / "out" / "embeddings").exists()
    verify(str(tmp_path / "out"))


@pytest.mark.parametrize("form", ["tar", "images"])
def test_a_limit_takes_the_first_and_lifting_it_goes_on(tmp_path, model, form):
    truth = make_shards(str(tmp_path / "data"), images_per_shard=8, shards=2, format=form)
    names = [row.sample for row in truth]
    for limit, images in [(3, 3), (3, 0), (10, 10), (None, 16)]:
        source = {"uri": str(tmp_path / "data"), "limit": limit}
        summary = run(_config(source, model, tmp_path / "out"))
        assert sorted(table(tmp_path / "out", "predictions")["sample"].to_pylist()) == sorted(names[: limit or 16])
        assert summary.total_images == (limit or 16)
        assert (summary.images == 0) == (images == 0)
        verify(str(tmp_path / "out"))


def test_another_recipe_is_refused_then_overwrites(tmp_path, model):
    make_shards(str(tmp_path / "data"), images_per_shard=6, shards=1)
    run(_config(str(tmp_path / "data"), model, tmp_path / "out"))
    other = {"name": model, "center_crop": 0.8}
    with pytest.raises(ConfigError, match=r"another recipe \(center_crop 1.0 → 0.8\)"):
        run(_config(str(tmp_path / "data"), other, tmp_path / "out"))
    assert status(str(tmp_path / "out")).finished
    run(_config(str(tmp_path / "data"), other, tmp_path / "out", run={"overwrite": True}))
    run(_config(str(tmp_path / "data"), other, tmp_path / "fresh"))
    assert_same(tmp_path / "out", tmp_path / "fresh")
    assert verify(str(tmp_path / "out")).samples == 6


def test_quarantined_samples_are_retried_on_demand(tmp_path, model):
    make_shards(str(tmp_path / "data"), images_per_shard=8, shards=1, format="images")
    bad = tmp_path / "data" / "class-0" / "000006.jpg"
    good = bad.read_bytes()
    stat = bad.stat()
    bad.write_bytes(b"x" * len(good))
    import os

    os.utime(bad, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the fingerprint of the directory stays as it was
    config = _config(str(tmp_path / "data"), model, tmp_path / "out")
    assert run(config).total_errors == 1
    bad.write_bytes(good)
    os.utime(bad, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert run(config).units == 0
    summary = run(_config(str(tmp_path / "data"), model, tmp_path / "out", run={"retry_errors": True}))
    assert (summary.units, summary.images, summary.total_errors) == (1, 3, 0)
    assert table(tmp_path / "out", "errors").num_rows == 0
    verify(str(tmp_path / "out"))


def test_a_run_that_is_mostly_errors_ends(tmp_path, model):
    (tmp_path / "data").mkdir()
    for n in range(4):
        (tmp_path / "data" / f"{n}.jpg").write_bytes(b"no image")
    config = _config(str(tmp_path / "data"), model, tmp_path / "out")
    for _ in range(2):  # and so does its resume
        with pytest.raises(RunFailed, match=r"4 of 4 samples are quarantined.*--max-error-rate"):
            run(config)
    summary = run(_config(str(tmp_path / "data"), model, tmp_path / "out", run={"max_error_rate": 1}))
    assert (summary.total_images, summary.total_errors) == (0, 4)
    verify(str(tmp_path / "out"))


def test_logical_gpus_are_shared_out(tmp_path, model):
    make_shards(str(tmp_path / "data"), images_per_shard=8, shards=2)
    run(
        _config(str(tmp_path / "data"), model, tmp_path / "gpu", compute={"gpus_per_actor": 0.5, "inference_actors": 3})
    )
    run(_config(str(tmp_path / "data"), model, tmp_path / "cpu"))
    assert_same(tmp_path / "gpu", tmp_path / "cpu")


def test_logical_gpus_decode(tmp_path, model):
    make_shards(str(tmp_path / "data"), images_per_shard=8, shards=2)
    there = {"gpus_per_actor": 1, "decode_on": "gpu"}
    summary = run(_config(str(tmp_path / "data"), model, tmp_path / "gpu", compute=there))
    assert summary.images == 16
    run(_config(str(tmp_path / "data"), model, tmp_path / "cpu"))
    assert_same(tmp_path / "gpu", tmp_path / "cpu")
    with pytest.raises(ConfigError, match="decode_on"):
        run(_config(str(tmp_path / "data"), model, tmp_path / "gpu"))


def test_errors_of_the_users_are_plain(tmp_path, model):
    make_shards(str(tmp_path / "data"), images_per_shard=2, shards=1)
    with pytest.raises(ConfigError, match=r"no feature level stage9"):
        run(_config(str(tmp_path / "data"), model, tmp_path / "out", outputs={"features": {"levels": ["stage9"]}}))
    with pytest.raises(ConfigError, match=r"nowhere"):
        run(_config(str(tmp_path / "nowhere"), model, tmp_path / "out2"))
    with pytest.raises(ConfigError, match=r"no-such-model"):
        run(_config(str(tmp_path / "data"), "no-such-model", tmp_path / "out3"))

"""The whole chain, from every source format, against birder's own calls on the same photos and real weights."""

import csv
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.parity import CASES, _birder
from birder_ray import RunConfig, run
from tests.results import table, vectors

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

IMAGES = 100
CASE = CASES["efficientnet_lite0"]


def _tar(folder: Path, photos: list[Path]) -> str:
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for photo in photos[shard * 50 : shard * 50 + 50]:
                tar.add(photo, photo.name.lower())
    return str(folder)


def _images(folder: Path, photos: list[Path]) -> str:
    for photo in photos:
        shutil.copy(photo, folder)
    return str(folder)


def _parquet(folder: Path, photos: list[Path]) -> str:
    rows = [{"bytes": photo.read_bytes(), "path": photo.name} for photo in photos]
    image = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": image}), folder / "photos.parquet", row_group_size=30)
    return str(folder / "photos.parquet")


def _manifest(folder: Path, photos: list[Path]) -> str:
    with (folder / "photos.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["uri"], *([str(photo)] for photo in photos)])
    return str(folder / "photos.csv")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return CASE.checkpoint(tmp_path_factory.mktemp("lite0"))


@pytest.fixture(scope="module")
def expected(checkpoint, photos):
    return _birder(CASE, checkpoint, photos[:IMAGES], "torchvision")


@pytest.mark.parametrize(
    ("write", "batch_size"), [(_tar, 1), (_images, 7), (_parquet, 64), (_manifest, 16)], ids=lambda each: str(each)[:16]
)
def test_every_source_gives_birders_numbers(
    tmp_path, photos, checkpoint, expected, write: Callable[[Path, list[Path]], str], batch_size: int
):
    (tmp_path / "data").mkdir()
    source = write(tmp_path / "data", sorted(photos[:IMAGES], key=lambda photo: photo.name.encode()))
    summary = run(
        RunConfig(
            source=source,
            model={"name": checkpoint, "center_crop": CASE.center_crop, "simple_crop": CASE.simple_crop},
            outputs={"predictions": {"top_k": CASE.classes}, "embeddings": {}, "features": {"pooling": "mean"}},
            destination=str(tmp_path / "out"),
            compute={"batch_size": batch_size, "unit_rows": 32, "gpus_per_actor": 0},
        )
    )
    assert (summary.images, summary.errors) == (IMAGES, 0)
    predictions = table(tmp_path / "out", "predictions")
    order = np.array(predictions["top_indices"].to_pylist())
    found = np.array(predictions["top_probabilities"].to_pylist())
    np.testing.assert_allclose(found, np.take_along_axis(expected.probabilities, order, axis=1), atol=1e-5)
    assert (order[:, 0] == expected.probabilities.argmax(axis=1)).all()
    embedding = vectors(table(tmp_path / "out", "embeddings"), "embedding")
    np.testing.assert_allclose(embedding, expected.embedding, atol=1e-4)
    features = table(tmp_path / "out", "features")
    for level, means in expected.level_means.items():
        np.testing.assert_allclose(vectors(features, f"{level}_mean"), means, atol=1e-4)

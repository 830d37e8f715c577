"""A finished destination, read by the tools that people have, from a disk and from S3: each answers a question that
somebody would ask, and the answer follows from how the destination was built."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pytest

from birder_ray.folder import Folder
from tests.built import NAMES, build
from tests.conftest import ACCESS_KEY, REGION, SECRET_KEY

SHARDS = {"a.tar": 25, "b.tar": 12}
SCORED = [(shard, index) for shard, size in SHARDS.items() for index in range(size) if index != 3]


@dataclass
class Place:
    folder: Folder
    endpoint: str | None

    def glob(self, table: str) -> str:
        return f"{self.folder.url}/{table}/*.parquet"

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.folder.options)

    @property
    def remote(self) -> bool:
        return self.endpoint is not None


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def place(request, tmp_path) -> Iterator[Place]:
    if request.param == "disk":
        made = Place(Folder(str(tmp_path)), None)
    else:
        s3 = request.getfixturevalue("seaweed")
        made = Place(Folder(f"{s3.url}/scores", s3.options), s3.endpoint)
    build(made.folder, SHARDS)
    return made


def test_duckdb_tells_how_often_each_species_was_seen_for_sure(place):
    with duckdb.connect() as connection:
        if place.remote:
            connection.register_filesystem(place.folder.fs)
        found = connection.sql(
            f"SELECT prediction, count(*) FROM read_parquet('{place.glob('predictions')}') WHERE probability > 0.7 "
            "GROUP BY prediction"
        ).fetchall()
    assert dict(found) == Counter(NAMES[index % 3] for _, index in SCORED if 0.5 + index % 40 / 100 > 0.7)


def test_polars_finds_the_embeddings_of_the_least_certain(place):
    options = {
        "aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY, "aws_region": REGION,
        "aws_endpoint_url": place.endpoint, "aws_allow_http": "true",
    } if place.remote else None  # fmt: skip
    predictions, embeddings = (
        pl.scan_parquet(place.glob(table), storage_options=options) for table in ("predictions", "embeddings")
    )
    unsure = predictions.sort("entropy", "shard", descending=[True, False]).head(2)
    found = unsure.join(embeddings, on="sample").select("sample", "embedding").collect()
    assert dict(found.iter_rows()) == {"a.tar/24": [24.0] * 4, "a.tar/23": [23.0] * 4}


def test_pandas_tells_why_samples_were_quarantined(place):
    found = pd.read_parquet(f"{place.folder.url}/errors", storage_options=place.options if place.remote else None)
    assert found.groupby("error_type")["sample"].agg(list).to_dict() == {
        "EmptyFile": ["a.tar/3", "b.tar/3"],
        "TruncatedTar": ["b.tar"],
    }


def test_pyarrow_reads_only_the_rows_it_is_asked_for(place):
    where = place.folder.url.removeprefix("s3://")
    dataset = pa.dataset.dataset(f"{where}/predictions", filesystem=place.folder.fs)
    wanted = (pc.field("shard") == "b.tar") & (pc.field("prediction") == "ibis")
    found = dataset.to_table(columns={"second": pc.list_element(pc.field("top_classes"), 1)}, filter=wanted)
    assert found["second"].to_pylist() == ["heron"] * sum(s == "b.tar" and i % 3 == 2 for s, i in SCORED)


def test_datasets_gives_vectors_to_train_on(place, tmp_path):
    import datasets

    files = sorted(place.folder.fs.glob(place.glob("features").removeprefix("s3://")))
    made = datasets.load_dataset(
        "parquet",
        data_files=[f"s3://{file}" if place.remote else file for file in files],
        storage_options=place.options if place.remote else None,
        cache_dir=str(tmp_path / "cache"),
        split="train",
    ).with_format("numpy")
    assert made["stage1_mean"][:].shape == (len(SCORED), 2)
    of_sample = dict(zip(made["sample"], np.asarray(made["stage1_mean"]), strict=True))
    assert of_sample["b.tar/11"].tolist() == [11.0, 11.0]


@pytest.mark.ray
def test_ray_data_goes_on_with_the_embeddings(ray_session, place):
    where = place.folder.where("embeddings").removeprefix("s3://")
    read = ray_session.data.read_parquet(where, filesystem=place.folder.fs).select_columns(["sample", "embedding"])
    lengths = read.map_batches(lambda batch: {"length": np.linalg.norm(np.stack(batch["embedding"]), axis=1)})
    assert lengths.sum("length") == pytest.approx(sum(2 * index for _, index in SCORED))

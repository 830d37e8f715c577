"""Manifests: CSV and Parquet tables of URIs, and what each row may name."""

import gzip
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from birder_ray.config import SourceConfig
from birder_ray.errors import ConfigError, SampleError, ShardDamaged
from birder_ray.source import Item, count_samples, list_shards, read_samples
from birder_ray.source.resolve import Resolver
from birder_ray.testing import make_images, make_shards


def read(path: Path | str, **config: Any) -> list[Item]:
    source = SourceConfig(uri=str(path), **config)
    (shard,) = list_shards(source)
    assert shard.format == "manifest"
    items = list(read_samples(shard, source))
    assert shard.count == len(items)
    return items


def found(items: list[Item]) -> list[bytes | str]:
    return [data.error_type if isinstance(data, SampleError) else data for _, data in items]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name in ("a", "b", "räv, 1"):
        (tmp_path / "photos" / f"{name}.jpg").write_bytes(name.encode())
    return tmp_path


def test_samples_labels_and_bytes_are_those_written(tmp_path: Path) -> None:
    truth = make_shards(str(tmp_path), images_per_shard=5, shards=2, format="manifest")
    source = SourceConfig(uri=f"{tmp_path}/*.csv")
    result = [
        (sample.sample, shard.name, sample.index, sample.label, data)
        for shard in list_shards(source)
        for sample, data in read_samples(shard, source)
    ]
    images = make_images(5, 0) + make_images(5, 1)
    assert result == [(*row, image) for row, image in zip(truth, images, strict=True)]


def test_quotes_unicode_windows_line_ends_and_blank_lines(folder: Path) -> None:
    text = '\ufeffURL,label\r\nphotos/a.jpg,"red ""fox"""\r\n\r\n"photos/räv, 1.jpg",räv\r\n'
    (folder / "m.csv").write_bytes(text.encode())
    items = read(folder / "m.csv")
    assert [(sample.sample, sample.index, sample.label) for sample, _ in items] == [
        ("photos/a.jpg", 0, 'red "fox"'), ("photos/räv, 1.jpg", 1, "räv"),
    ]  # fmt: skip
    assert found(items) == [b"a", "räv, 1".encode()]


@pytest.mark.parametrize("name", ["m.csv.gz", "m.parquet"])
def test_other_containers(folder: Path, name: str) -> None:
    rows = {"path": ["photos/a.jpg", str(folder / "photos/b.jpg")], "species": ["fox", None], "photo_id": [7, 8]}
    if name.endswith("gz"):
        lines = [",".join(rows), *(",".join(str(v or "") for v in row) for row in zip(*rows.values(), strict=True))]
        (folder / name).write_bytes(gzip.compress("\n".join(lines).encode()))
    else:
        pq.write_table(pa.table(rows), folder / name)
    items = read(folder / name, label_column="species")
    assert [(sample.sample, sample.label) for sample, _ in items] == [("7", "fox"), ("8", None)]
    assert found(items) == [b"a", b"b"]


def test_named_columns(folder: Path) -> None:
    (folder / "m.csv").write_text("url,mine,key,what\nnope,photos/a.jpg,k1,fox\n")
    ((sample, data),) = read(folder / "m.csv", image_column="mine", id_column="key", label_column="what")
    assert (sample.sample, sample.label, data) == ("k1", "fox", b"a")


@pytest.mark.parametrize("option", ["image_column", "id_column", "label_column"])
@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_missing_column_is_said_at_listing(folder: Path, name: str, option: str) -> None:
    (folder / "m.csv").write_text("url,key\nphotos/a.jpg,1\n")
    pq.write_table(pa.table({"url": ["photos/a.jpg"], "key": [1]}), folder / "m.parquet")
    with pytest.raises(ConfigError, match=r"typo.*the columns are url, key"):
        list_shards(SourceConfig(uri=str(folder / name), **{option: "typo"}))


def test_no_column_of_uris_is_said_at_listing(folder: Path) -> None:
    (folder / "m.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="image_column"):
        list_shards(SourceConfig(uri=str(folder / "m.csv")))


def test_rows_fail_one_by_one(folder: Path) -> None:
    (folder / "photos/empty.jpg").touch()
    rows = ["photos/a.jpg,1", "photos/gone.jpg,2", ",3", "photos/empty.jpg,4", "photos/a.jpg,5,6", "nope://x/y.jpg,7"]
    (folder / "m.csv").write_text("\n".join(["image,id", *rows, "photos/b.jpg,8"]))
    items = read(folder / "m.csv")
    assert found(items) == [b"a", "NotFound", "BadUri", "EmptyFile", "BadRow", "BadUri", b"b"]
    assert [sample.sample for sample, _ in items] == ["1", "2", "3", "4", "m.csv#4", "7", "8"]


def test_repeated_ids_stay_unique_also_after_a_resume(folder: Path) -> None:
    (folder / "m.csv").write_text("image\n" + "photos/a.jpg\nphotos/b.jpg\n" * 3)
    source = SourceConfig(uri=str(folder / "m.csv"))
    (shard,) = list_shards(source)
    full = list(read_samples(shard, source))
    assert len({sample.sample for sample, _ in full}) == 6
    assert full[3][0].sample == "photos/b.jpg#3"
    assert list(read_samples(shard, source, start=3)) == full[3:]
    assert list(read_samples(shard, source, 1, lambda index: index == 4)) == [full[4]]


@pytest.mark.parametrize("tail", [b'"photos/b.jpg', b'"photos/b.jpg"x,2\n'])
def test_bad_quotes_damage_the_manifest_after_what_was_good(folder: Path, tail: bytes) -> None:
    (folder / "m.csv").write_bytes(b"image,id\nphotos/a.jpg,1\n" + tail)
    source = SourceConfig(uri=str(folder / "m.csv"))
    (shard,) = list_shards(source)
    items: list[Item] = []
    with pytest.raises(ShardDamaged, match="line 3") as caught:
        items.extend(read_samples(shard, source))
    assert (found(items), caught.value.error_type) == ([b"a"], "DamagedManifest")


def test_cut_gzip_damages_the_manifest(folder: Path) -> None:
    data = gzip.compress(b"image\n" + b"photos/a.jpg\n" * 5)
    (folder / "m.csv.gz").write_bytes(data[:-9])
    source = SourceConfig(uri=str(folder / "m.csv.gz"))
    with pytest.raises(ShardDamaged) as caught:
        list(read_samples(list_shards(source)[0], source))
    assert caught.value.error_type == "DamagedManifest"


def test_remote_manifest_may_not_name_local_files(folder: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe("/bucket/photos/a.jpg", b"a")
    secret = folder / "photos/a.jpg"
    rows = [
        "photos/a.jpg", "memory://bucket/photos/a.jpg", str(secret), f"file://{secret}", f"local://{secret}",
        f"memory://bucket/photos/a.jpg::file://{secret}", "~/x", f"sftp://localhost{secret}",
        f"../../../../..{secret}",
    ]  # fmt: skip
    fs.pipe("/bucket/m.csv", "\n".join(["image", *rows]).encode())
    assert found(read("memory://bucket/m.csv")) == [
        b"a", b"a", "LocalUriRefused", "LocalUriRefused", "LocalUriRefused", "BadUri", "LocalUriRefused", "BadUri",
        "NotFound",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("manifest", "uri", "sent"),
    [
        ("https://a.org/m.csv", "x.jpg", True),
        ("https://a.org/m.csv", "https://b.org/x.jpg", False),
        ("https://a.org/m.csv", "http://a.org/x.jpg", False),
        ("s3://b/m.csv", "https://a.org/x.jpg", False),
        ("/m.csv", "https://a.org/x.jpg", True),
    ],
)
def test_options_may_hold_credentials_and_go_to_no_other_store(manifest: str, uri: str, sent: bool) -> None:
    place = Resolver(manifest, {"headers": {"Authorization": "secret"}})(uri)
    assert not isinstance(place, SampleError)
    assert ("headers" in place[0].storage_options) == sent


def test_remote_manifest_reaches_known_stores_only() -> None:
    refused = Resolver("https://a.org/m.csv", {})("memory://bucket/a.jpg")
    assert isinstance(refused, SampleError) and refused.error_type == "BadUri"


def test_count_streams_what_listing_left_out(folder: Path) -> None:
    (folder / "m.csv").write_text("image\n" + "photos/a.jpg\n" * 9)
    source = SourceConfig(uri=str(folder / "m.csv"))
    (shard,) = list_shards(source)
    uncounted = type(shard)(**{**vars(shard), "count": None})
    assert [count_samples(uncounted, source, at_most) for at_most in (4, 100)] == [4, 9]

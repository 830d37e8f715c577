"""Sources on an S3 server."""

from typing import Any

import pytest
import s3fs

from birder_ray.config import SourceConfig
from birder_ray.errors import ConfigError, SampleError
from birder_ray.source import list_shards, read_samples
from birder_ray.testing import make_shards

pytestmark = pytest.mark.s3


@pytest.mark.parametrize("format_", ["tar", "parquet", "images", "manifest"])
def test_every_format(s3_moto: Any, format_: Any) -> None:
    truth = make_shards(f"{s3_moto.url}/set", 5, 2, format_, options=s3_moto.options)
    uri = f"{s3_moto.url}/set" + ("/*.csv" if format_ == "manifest" else "")
    source = SourceConfig(uri=uri, options=s3_moto.options)
    shards = list_shards(source)
    assert shards == list_shards(source)
    found = [
        (sample.sample, shard.name, sample.index, sample.label)
        for shard in shards
        for sample, data in read_samples(shard, source)
        if isinstance(data, bytes)
    ]
    assert found == [tuple(row) for row in truth]


def test_tar_larger_than_the_read_ahead(s3_moto: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = {"block_size": 4096, "cache_type": "background", "cache_options": {"maxblocks": 3}}
    monkeypatch.setattr("birder_ray.source.tar.SEQUENTIAL", blocks)
    make_shards(f"{s3_moto.url}/set", 30, 1, "tar", options=s3_moto.options)
    source = SourceConfig(uri=f"{s3_moto.url}/set", options=s3_moto.options)
    (shard,) = list_shards(source)
    assert shard.size and shard.size > 10 * 4096
    full = list(read_samples(shard, source))
    assert len(full) == 30
    assert list(read_samples(shard, source, start=17)) == full[17:]


def test_directory_markers_are_no_images_but_empty_images_are(s3_moto: Any) -> None:
    fs = s3fs.S3FileSystem(**s3_moto.options)
    for key, data in {"p/": b"", "p/a/": b"", "p/a/1.jpg": b"x", "p/a/2.jpg": b""}.items():
        fs.call_s3("put_object", Bucket=s3_moto.bucket, Key=key, Body=data)
    source = SourceConfig(uri=f"{s3_moto.url}/p/", options=s3_moto.options)
    (shard,) = list_shards(source)
    assert (shard.name, shard.count) == ("a", 2)
    (_, first), (_, second) = read_samples(shard, source)
    assert first == b"x" and isinstance(second, SampleError)


def test_fingerprint_is_the_etag(s3_moto: Any) -> None:
    fs = s3fs.S3FileSystem(**s3_moto.options)
    source = SourceConfig(uri=f"{s3_moto.url}/s.tar", options=s3_moto.options)

    def fingerprint(data: bytes) -> str:
        fs.pipe_file(f"{s3_moto.bucket}/s.tar", data)
        return list_shards(source)[0].fingerprint

    assert fingerprint(b"1") == fingerprint(b"1") != fingerprint(b"2")


def test_listing_makes_no_request_per_image(s3_moto: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make_shards(f"{s3_moto.url}/set", 40, 1, "images", options=s3_moto.options)
    calls: list[str] = []
    original = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *args: Any, **options: Any) -> Any:
        calls.append(method)
        return await original(self, method, *args, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    (shard,) = list_shards(SourceConfig(uri=f"{s3_moto.url}/set", options=s3_moto.options))
    assert shard.count == 40
    assert len(calls) < 6


def test_no_credentials_and_no_bucket(s3_moto: Any) -> None:
    nobody = {"client_kwargs": s3_moto.options["client_kwargs"]}
    with pytest.raises(ConfigError, match=r"forbidden; give credentials.*anon"):
        list_shards(SourceConfig(uri=f"{s3_moto.url}/set", options=nobody))
    with pytest.raises(ConfigError, match="no such file"):
        list_shards(SourceConfig(uri="s3://no-such-bucket-here/set", options=s3_moto.options))

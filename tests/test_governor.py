"""What storage does wrong for a moment goes unnoticed: everything is read and written whole, and not twice."""

import asyncio
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import s3fs
from aiobotocore.retries.bucket import AsyncTokenBucket
from botocore.retries.bucket import Clock
from faulty_s3 import FaultyS3

from birder_ray import retries
from birder_ray.config import SourceConfig
from birder_ray.errors import ConfigError, RunFailed
from birder_ray.folder import Folder
from birder_ray.retries import ATTEMPTS
from birder_ray.source import Item, images, list_shards, read_samples
from birder_ray.storage import filesystem, open_binary
from birder_ray.testing import make_shards

pytestmark = pytest.mark.s3

FORMATS = ["images", "tar", "parquet", "manifest"]
BLOCK = 16 << 10
TRIES = 3 * 2  # of botocore, and of aiohttp on a connection that it had before, for one of ours
SLEEP, ASYNC_SLEEP, WAIT_FOR_THE_RATE = time.sleep, asyncio.sleep, AsyncTokenBucket._wait_for_new_fill_rate


@dataclass
class Store:
    """A bucket as seen through the proxy, and directly."""

    proxy: FaultyS3
    bucket: str
    options: dict[str, Any]
    direct: dict[str, Any]

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"

    def source(self, format_: str, options: dict[str, Any] | None = None) -> SourceConfig:
        uri = f"{self.url}/{format_}" + ("/*.csv" if format_ == "manifest" else "")
        return SourceConfig(uri=uri, options=options or self.options)

    def truth(self, format_: str) -> list[Item]:
        """Samples and bytes as they are without any proxy."""
        found = read(self.source(format_, self.direct))
        assert found and all(isinstance(data, bytes) for _, data in found)
        return found


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time goes by fifty times as fast for whoever waits (we, s3fs, botocore and its limit of the rate), and shards are
    read in blocks so small that they have many.

    Returns how long each wait would have been, in seconds.
    """
    asked: list[float] = []

    def sleep(seconds: float) -> None:
        asked.append(seconds)
        SLEEP(seconds / 50)

    async def sleep_in_a_loop(seconds: float, result: Any = None) -> Any:
        asked.append(seconds)
        return await ASYNC_SLEEP(seconds / 50, result)

    async def wait_for_the_rate(bucket: AsyncTokenBucket, seconds: float) -> None:
        asked.append(seconds)
        await WAIT_FOR_THE_RATE(bucket, seconds / 50)

    monkeypatch.setattr(retries.time, "sleep", sleep)
    monkeypatch.setattr(asyncio, "sleep", sleep_in_a_loop)
    monkeypatch.setattr(AsyncTokenBucket, "_wait_for_new_fill_rate", wait_for_the_rate)
    monkeypatch.setattr(Clock, "current_time", lambda clock: 50 * time.time())
    blocks = {"block_size": BLOCK, "cache_type": "background", "cache_options": {"maxblocks": 8}}
    for module in ("tar", "parquet", "manifest"):
        monkeypatch.setattr(f"birder_ray.source.{module}.SEQUENTIAL", blocks)
    images._images.cache_clear()
    return asked


def behind(server: Any) -> Iterator[Store]:
    with FaultyS3(server.endpoint, seed=7) as proxy:
        client = server.options["client_kwargs"] | {"endpoint_url": proxy.url}
        yield Store(proxy, server.bucket, server.options | {"client_kwargs": client}, server.options)


@pytest.fixture
def store(seaweed: Any) -> Iterator[Store]:
    yield from behind(seaweed)


@pytest.fixture
def moto_store(s3_moto: Any) -> Iterator[Store]:
    """Of a server that takes any key."""
    yield from behind(s3_moto)


def read(source: SourceConfig) -> list[Item]:
    images._images.cache_clear()
    return [item for shard in list_shards(source) for item in read_samples(shard, source)]


def make(store: Store, format_: Any, count: int = 24) -> list[Item]:
    make_shards(f"{store.url}/{format_}", count, 1, format_, options=store.direct)
    return store.truth(format_)


# reading


_ROUNDS = 30


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    "fault",
    [
        "slow_down", "too_many", "internal", "reset", "reset_mid_body", "truncated", "short_length", "latency",
        "expired", "expired_403",
    ],
)  # fmt: skip
def test_every_format_is_read_whole_under_every_fault(store: Store, format_: str, fault: str) -> None:
    truth = make(store, format_)
    store.proxy.latency_s = 0.05
    store.proxy.faults = {fault: 0.2}
    for _ in range(_ROUNDS):  # few requests make a format, and chance may spare them all
        assert read(store.source(format_)) == truth
        if store.proxy.count(fault=fault):
            return
    raise AssertionError("no fault struck")


@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_is_read_whole_under_all_faults_at_once(store: Store, format_: str) -> None:
    truth = make(store, format_, 60)
    store.proxy.expiry_s = 0.05  # waits are a fiftieth, and this must be shorter than all that a listing has
    store.proxy.faults = dict.fromkeys(
        ["slow_down", "internal", "reset", "reset_mid_body", "truncated", "short_length", "expired"], 0.03
    )
    for _ in range(_ROUNDS):
        assert read(store.source(format_)) == truth
        if len({request.fault for request in store.proxy.requests}) > 3:
            return
    raise AssertionError("hardly any fault struck")


def ranges(proxy: FaultyS3, matching: str) -> list[tuple[int, str]]:
    """Where each GET started, and what went wrong with it, in the order they came."""
    return [
        (int(re.findall(r"\d+", request.range)[0]), request.fault)
        for request in proxy.requests
        if request.method == "GET" and re.search(matching, request.path) and request.range
    ]


@pytest.mark.parametrize("fault", ["reset_mid_body", "truncated", "short_length"])
def test_a_tar_cut_mid_body_goes_on_where_it_was(store: Store, fault: str) -> None:
    truth = make(store, "tar", 60)
    store.proxy.faults = {fault: 0.3}
    assert read(store.source("tar")) == truth
    requests = ranges(store.proxy, r"\.tar")
    cut = [start for start, told in requests if told]
    good = [start for start, told in requests if not told]
    assert len(cut) > 1
    assert sorted(good) == sorted(set(good)) == list(range(0, max(good) + 1, BLOCK))  # each block came once
    assert store.proxy.count(r"HEAD .*\.tar") <= 3


def test_an_image_cut_short_is_noticed_by_its_listed_size(store: Store) -> None:
    truth = make(store, "images")
    store.proxy.inject({"short_length": 1.0}, matching=r"GET .*\.jpg", times=5)
    assert read(store.source("images")) == truth
    assert store.proxy.count(r"GET .*\.jpg") == len(truth) + 5


def test_an_image_that_stays_short_is_an_error_and_no_image(store: Store) -> None:
    truth = make(store, "images", 3)
    store.proxy.inject({"short_length": 1.0}, matching="000001.jpg")
    found = read(store.source("images"))
    assert [sample for sample, _ in found] == [sample for sample, _ in truth]
    errors = [data for _, data in found if not isinstance(data, bytes)]
    assert [error.error_type for error in errors] == ["ReadFailed"]
    assert re.search(r"bytes came of|checksum", str(errors[0]))


def test_a_shard_that_stays_short_ends_the_run(store: Store) -> None:
    make(store, "tar")
    source = store.source("tar")
    (shard,) = list_shards(source)
    store.proxy.faults = {"short_length": 1.0}
    with pytest.raises(RunFailed, match=r"bytes came of .*run again to resume"):
        list(read_samples(shard, source))


# how many requests


def test_listing_and_reading_ask_for_each_image_once(store: Store) -> None:
    truth = make(store, "images", 60)
    source = store.source("images")
    (*shards,) = list_shards(source)
    listing = store.proxy.count()
    assert store.proxy.count(r"\.jpg") == 0 and listing < 10
    for shard in shards:
        list(read_samples(shard, source))
    assert store.proxy.count(r"GET .*\.jpg") == len(truth)
    assert store.proxy.count(r"HEAD .*\.jpg") == 0
    assert store.proxy.count() <= listing + len(truth) + len(shards)


def test_a_manifest_costs_one_request_for_an_image(store: Store) -> None:
    truth = make(store, "manifest")
    read(store.source("manifest"))
    assert (store.proxy.count(r"GET .*\.jpg"), store.proxy.count(r"HEAD .*\.jpg")) == (len(truth), 0)


def test_concurrency_is_bounded(store: Store) -> None:
    make(store, "images", 60)
    store.proxy.faults = {"latency": 1.0}
    read(store.source("images"))
    assert 4 < store.proxy.busiest <= 16


def test_a_throttled_client_slows_down(store: Store, waits: list[float]) -> None:
    make(store, "images", 30)
    source = store.source("images")
    (*shards,) = list_shards(source)
    for shard in shards:
        list(read_samples(shard, source))
    assert not waits
    store.proxy.burst = 10
    store.proxy.inject({"slow_down": 1.0}, matching=r"\.jpg", times=1)
    for shard in shards:
        list(read_samples(shard, source))
    assert sum(waits) > 0.5
    assert store.proxy.count(fault="slow_down") == 10


def test_an_outage_ends_the_run_after_a_bounded_number_of_requests(store: Store) -> None:
    make(store, "tar")
    source = store.source("tar")
    (shard,) = list_shards(source)
    store.proxy.faults = {"reset": 1.0}
    with pytest.raises(RunFailed, match="run again to resume"):
        list(read_samples(shard, source))
    assert store.proxy.count(fault="reset") <= ATTEMPTS * TRIES


@pytest.mark.parametrize("fault", ["reset", "slow_down", "expired"])
@pytest.mark.parametrize("format_", ["images", "manifest"])
def test_an_outage_is_no_fault_of_the_images(
    store: Store, format_: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store, format_, 5)
    source = store.source(format_)
    shards = list_shards(source)
    store.proxy.inject({fault: 1.0}, matching=r"\.jpg")
    monkeypatch.setattr(retries, "DEADLINE_S", 0.5)
    with pytest.raises(RunFailed, match="run again to resume"):
        for shard in shards:
            list(read_samples(shard, source))


def test_somebody_who_waits_hears_soon_that_the_endpoint_is_out_of_reach(store: Store) -> None:
    store.proxy.faults = {"reset": 1.0}
    with pytest.raises(ConfigError, match="cannot be listed"):
        list_shards(store.source("tar"))
    assert store.proxy.count() <= 5 * TRIES


# listing


def test_a_listing_that_lags_behind_is_listed_again(store: Store) -> None:
    make(store, "images", 3)
    source = store.source("images")
    list_shards(source)
    fs = s3fs.S3FileSystem(**store.direct)
    fs.pipe_file(f"{store.bucket}/images/class-0/new.jpg", b"new")
    fs.invalidate_cache()
    found = list_shards(source)
    store.proxy.inject({"stale_list": 1.0}, times=2)
    read_ = [sample.sample for shard in found for sample, _ in read_samples(shard, source)]
    assert sum(shard.count or 0 for shard in found) == len(read_) == 4
    assert store.proxy.count(fault="stale_list") == 2


@pytest.mark.parametrize("fault", ["internal", "reset", "expired"])
def test_a_wildcard_leaves_nothing_out(store: Store, fault: str) -> None:
    fs = s3fs.S3FileSystem(**store.direct)
    fs.pipe({f"{store.bucket}/site-{site}/day/{name}.tar": b"x" for site in range(6) for name in "ab"})
    store.proxy.inject({fault: 0.4}, matching="GET .*list-type")
    found = list_shards(SourceConfig(uri=f"{store.url}/site-?/*/a*.tar", options=store.options))
    assert [shard.name for shard in found] == [f"site-{site}/day/a.tar" for site in range(6)]
    everywhere = list_shards(SourceConfig(uri=f"{store.url}/**/b.tar", options=store.options))
    assert [shard.name for shard in everywhere] == [f"site-{site}/day/b.tar" for site in range(6)]
    assert store.proxy.count(fault=fault) > 0


def test_markers_and_foreign_files_are_ignored(store: Store) -> None:
    truth = make(store, "images", 3)
    fs = s3fs.S3FileSystem(**store.direct)
    for key in ("images/", "images/class-0/", "images/empty/", "images/class-0/.DS_Store", "images/readme.txt",
                "images/class-1/Thumbs.db", "images/class-1/notes_$folder$", "images/class-1_$folder$"):  # fmt: skip
        fs.call_s3("put_object", Bucket=store.bucket, Key=key, Body=b"")
    assert read(store.source("images")) == truth


# writing


@pytest.mark.parametrize("fault", ["slow_down", "too_many", "internal", "reset", "lost_answer", "expired"])
def test_a_folder_is_written_and_read_whole(store: Store, fault: str) -> None:
    folder = Folder(f"{store.url}/dest", store.options)
    store.proxy.faults = {fault: 0.2}
    parts = {f"part-{number}": bytes([number]) * 10_000 for number in range(8)}
    for _ in range(_ROUNDS):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(folder.write, parts, parts.values()))
        assert folder.names("") == parts.keys()
        assert {name: folder.read(name) for name in parts} == parts
        if store.proxy.count("PUT", fault):
            break
    else:
        raise AssertionError("no fault struck")
    store.proxy.faults = {}
    assert Folder(f"{store.url}/dest", store.direct).names("") == parts.keys()


@pytest.mark.parametrize("fault", ["slow_down", "reset", "lost_answer"])
def test_one_creates_though_answers_are_lost(store: Store, fault: str) -> None:
    folder = Folder(f"{store.url}/dest", store.options)
    store.proxy.inject({fault: 1.0}, matching="^PUT", times=2)
    assert folder.create("lock", b"mine") is True
    assert folder.create("lock", b"yours") is False


# credentials


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which botocore looks for credentials."""
    path = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setattr(retries, "_renewed_at", float("-inf"))
    s3fs.S3FileSystem.clear_instance_cache()
    return path


def rotate(keys: Path, key: str) -> None:
    keys.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")


@pytest.mark.parametrize("format_", FORMATS)
def test_a_run_outlives_its_credentials(moto_store: Store, keys: Path, format_: str) -> None:
    store = moto_store
    truth = make(store, format_, 60)
    source = store.source(format_, {"client_kwargs": store.options["client_kwargs"]})
    folder = Folder(f"{store.url}/dest", source.options)
    rotate(keys, "old")
    folder.write("before", b"1")
    found = []
    for shard in list_shards(source):
        for item in read_samples(shard, source):
            found.append(item)
            if len(found) == 5:
                rotate(keys, "new")
                store.proxy.revoked = {"old"}
    folder.write("after", b"2")
    assert found == truth
    assert folder.names("") == {"after", "before"}
    assert folder.exists("before")
    assert store.proxy.count(fault="expired") > 0


def test_fresh_credentials_may_come_late(moto_store: Store, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(f"{moto_store.url}/dest", {"client_kwargs": moto_store.options["client_kwargs"]})
    rotate(keys, "old")
    folder.write("part", b"1")
    moto_store.proxy.revoked = {"old"}
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        monkeypatch.setattr(retries, "_renewed_at", float("-inf"))
        if len(waits) == 3:
            rotate(keys, "new")

    monkeypatch.setattr(retries.time, "sleep", wait)
    assert folder.exists("part")  # a HEAD, whose answer does not say what is wrong
    assert len(waits) == 3


def test_many_threads_renew_credentials_once(moto_store: Store, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"client_kwargs": moto_store.options["client_kwargs"]}
    folder = Folder(f"{moto_store.url}/dest", options)
    rotate(keys, "old")
    folder.write("part", b"1")
    rotate(keys, "new")
    moto_store.proxy.revoked = {"old"}
    renewed: list[Any] = []
    read_anew = retries._read_anew
    monkeypatch.setattr(retries, "_read_anew", lambda fs: (renewed.append(fs), read_anew(fs))[1])
    fs = filesystem(folder.url, options)[0]
    client = fs._s3
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(folder.read, ["part"] * 8)) == {b"1"}
    assert renewed.count(fs) == 1
    assert fs._s3 is client, "each client is 15 MB, and s3fs keeps those that it replaces"


def test_credentials_that_stay_expired_are_named(moto_store: Store) -> None:
    moto_store.proxy.faults = {"expired": 1.0}
    opened = open_binary(f"{moto_store.url}/x", moto_store.options, size=10)
    with pytest.raises(PermissionError, match="credentials have expired"), opened as file:
        file.read()

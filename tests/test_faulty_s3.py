"""Each fault of the proxy reaches a plain S3 client, and without faults it is not there."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiobotocore.session
import aiohttp
import botocore.exceptions
import pytest
import s3fs
from aiobotocore.config import AioConfig
from faulty_s3 import FAULTS, FaultyS3

pytestmark = pytest.mark.s3

PHOTO = bytes(range(256)) * 4096


class Plain:
    """An S3 client that never tries again."""

    def __init__(self, proxy: FaultyS3, server: Any, key: str | None = None):
        self.proxy, self.server = proxy, server
        self.key = key or server.options["key"]

    def __call__(self, method: str, key: str = "photo", **arguments: Any) -> Any:
        named = {} if method.startswith("list") else {"Key": key}
        return asyncio.run(self._call(method, {"Bucket": self.server.bucket, **named, **arguments}))

    async def _call(self, method: str, arguments: dict[str, Any]) -> Any:
        session = aiobotocore.session.AioSession()
        async with session.create_client(
            "s3",
            endpoint_url=self.proxy.url,
            region_name="eu-west-1",
            aws_access_key_id=self.key,
            aws_secret_access_key=self.server.options["secret"],
            config=AioConfig(retries={"max_attempts": 0}, response_checksum_validation="when_required"),
        ) as client:
            answer = await getattr(client, method)(**arguments)
            return await answer["Body"].read() if "Body" in answer else answer


@pytest.fixture
def plain(seaweed: Any) -> Iterator[Plain]:
    s3fs.S3FileSystem(**seaweed.options).pipe_file(f"{seaweed.bucket}/photo", PHOTO)
    with FaultyS3(seaweed.endpoint, seed=1) as proxy:
        yield Plain(proxy, seaweed)


def keys(plain: Plain) -> list[str]:
    return [entry["Key"] for entry in plain("list_objects_v2").get("Contents", [])]


def test_without_faults_the_proxy_is_not_there(plain: Plain) -> None:
    client = plain.server.options["client_kwargs"] | {"endpoint_url": plain.proxy.url}
    fs = s3fs.S3FileSystem(**plain.server.options | {"client_kwargs": client})
    path = f"{plain.server.bucket}/folder/Kråka 🐦?#.jpg"
    fs.pipe_file(path, PHOTO)
    assert fs.cat_file(path) == PHOTO
    assert fs.cat_file(path, start=5, end=9) == PHOTO[5:9]
    assert fs.ls(f"{plain.server.bucket}/folder") == [path]
    large = bytes(6 << 20)
    fs.pipe_file(path, large, chunksize=5 << 20)  # in two parts
    assert fs.info(path)["size"] == len(large)
    fs.rm_file(path)
    assert not fs.exists(path)
    assert plain.proxy.count() == plain.proxy.count(fault="") > 8


def test_signatures_are_still_checked(plain: Plain) -> None:
    plain.server.options["secret"] = "wrong"
    with pytest.raises(botocore.exceptions.ClientError, match="SignatureDoesNotMatch"):
        plain("get_object")


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("slow_down", 503, "SlowDown"),
        ("unavailable", 503, "ServiceUnavailable"),
        ("too_many", 429, "TooManyRequests"),
        ("internal", 500, "InternalError"),
        ("expired", 400, "ExpiredToken"),
        ("expired_403", 403, "ExpiredToken"),
        ("forbidden", 403, "AccessDenied"),
    ],
)
def test_errors_of_s3(plain: Plain, fault: str, status: int, code: str) -> None:
    plain.proxy.faults = {fault: 1.0}
    for method, arguments in {"get_object": {}, "put_object": {"Body": b"x"}, "list_objects_v2": {}}.items():
        with pytest.raises(botocore.exceptions.ClientError) as raised:
            plain(method, **arguments)
        assert raised.value.response["Error"]["Code"] == code
        assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    with pytest.raises(botocore.exceptions.ClientError, match=str(status)):  # without a body to tell more
        plain("head_object")
    plain.proxy.faults = {}
    assert plain("get_object") == PHOTO


def test_reset_before_the_server_has_seen_the_request(plain: Plain) -> None:
    plain.proxy.faults = {"reset": 1.0}
    with pytest.raises(botocore.exceptions.BotoCoreError):
        plain("put_object", "new", Body=b"x")
    plain.proxy.faults = {}
    assert keys(plain) == ["photo"]


def test_lost_answer_of_a_write_that_was_done(plain: Plain) -> None:
    plain.proxy.faults = {"lost_answer": 1.0}
    with pytest.raises(botocore.exceptions.BotoCoreError):
        plain("put_object", "new", Body=b"x")
    plain.proxy.faults = {}
    assert keys(plain) == ["new", "photo"]


@pytest.mark.parametrize("fault", ["reset_mid_body", "truncated"])
def test_body_that_ends_early(plain: Plain, fault: str) -> None:
    plain.proxy.faults = {fault: 1.0}
    with pytest.raises((aiohttp.ClientError, botocore.exceptions.BotoCoreError, OSError)):
        plain("get_object")
    assert plain("put_object", "new", Body=b"x") and plain("list_objects_v2")  # these have no body to cut


def test_short_content_length_is_believed(plain: Plain) -> None:
    plain.proxy.faults = {"short_length": 1.0}
    assert plain("get_object") == PHOTO[: len(PHOTO) // 2]


def test_latency(plain: Plain) -> None:
    plain.proxy.latency_s = 0.5
    plain.proxy.faults = {"latency": 1.0}
    started = time.monotonic()
    assert plain("get_object") == PHOTO
    assert time.monotonic() - started > 0.5


def test_stale_list(plain: Plain) -> None:
    plain.proxy.faults = {"stale_list": 1.0}
    assert keys(plain) == ["photo"]  # nothing recorded yet
    plain("put_object", "new", Body=b"x")
    assert keys(plain) == ["photo"]
    plain.proxy.faults = {}
    assert keys(plain) == ["new", "photo"]


def test_credentials_come_back_after_a_while(plain: Plain) -> None:
    plain.proxy.expiry_s = 1.0
    plain.proxy.inject({"expired": 1.0}, times=1)
    until = time.monotonic() + 1.0
    answers = []
    while not answers or answers[-1] == "ExpiredToken":
        try:
            answers.append(plain("get_object"))
        except botocore.exceptions.ClientError as error:
            answers.append(error.response["Error"]["Code"])
    assert len(answers) > 1 and answers[-1] == PHOTO and time.monotonic() > until


def test_revoked_key(plain: Plain, moto_endpoint: str) -> None:
    plain.proxy.upstream = moto_endpoint  # which takes any key
    plain.proxy.revoked = {"old"}
    with pytest.raises(botocore.exceptions.ClientError, match="ExpiredToken"):
        Plain(plain.proxy, plain.server, "old")("get_object")
    with pytest.raises(botocore.exceptions.ClientError, match="NoSuchBucket"):
        Plain(plain.proxy, plain.server, "new")("get_object")


def test_burst_hits_whatever_comes_next(plain: Plain) -> None:
    plain.proxy.burst = 3
    plain.proxy.inject({"slow_down": 1.0}, times=1)
    for _ in range(3):
        with pytest.raises(botocore.exceptions.ClientError, match="SlowDown"):
            plain("list_objects_v2")
    assert keys(plain) == ["photo"]


def test_matching_and_times_and_counts(plain: Plain) -> None:
    plain.proxy.inject({"internal": 1.0}, matching="^PUT .*/new", times=1)
    assert plain("get_object") == PHOTO
    with pytest.raises(botocore.exceptions.ClientError):
        plain("put_object", "new", Body=b"x")
    plain("put_object", "new", Body=b"x")
    assert (plain.proxy.count("GET"), plain.proxy.count("PUT"), plain.proxy.count(fault="internal")) == (1, 2, 1)
    with pytest.raises(ValueError, match="unknown"):
        plain.proxy.faults = {"nonsense": 1.0}


def test_schedule_depends_on_the_seed_and_not_on_the_order(seaweed: Any) -> None:
    def schedule(seed: int, order: list[int]) -> dict[int, str]:
        proxy = FaultyS3(seaweed.endpoint, seed)
        proxy.faults = dict.fromkeys(["internal", "reset", "latency"], 0.2)
        found = {number: proxy._decide("GET", f"/b/{number}", "", "") for number in order}
        proxy._server.server_close()
        return found

    forward = list(range(100))
    assert schedule(1, forward) == schedule(1, forward[::-1]) != schedule(2, forward)
    assert set(schedule(1, forward).values()) == {"", "internal", "reset", "latency"}


def test_busiest_counts_what_is_under_way_at_once(plain: Plain) -> None:
    plain.proxy.faults = {"latency": 1.0}
    barrier = threading.Barrier(3)

    def get(_: int) -> bytes:
        barrier.wait(timeout=30)
        return plain("get_object")

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(get, range(3))) == [PHOTO] * 3
    assert 2 <= plain.proxy.busiest <= 3


def test_every_fault_has_a_test() -> None:
    text = Path(__file__).read_text()
    assert [fault for fault in FAULTS if f'"{fault}"' not in text] == []

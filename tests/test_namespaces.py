"""On machines of their own, as far as one machine can have them: `ray start`, token authentication, S3 in and out."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from birder_ray.folder import Folder
from birder_ray.record import COMMITS
from birder_ray.testing import make_shards
from birder_ray.verify import verify
from tests.conftest import ACCESS_KEY, REGION, SECRET_KEY, free_ports
from tests.namespaces import Forwarder, Machines, possible
from tests.results import assert_same_rows, table

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow, pytest.mark.timeout(600)]
IMAGES, SHARDS, UNIT = 60, 4, 10


def command(path: Path, *more: str) -> list[str]:
    return [str(Path(sys.executable).with_name("birder-ray")), "run", str(path), *more]


@pytest.mark.skipif(not possible(), reason="needs root and iproute2")
def test_a_machine_goes_and_another_comes(seaweed, model, tmp_path):
    make_shards(f"{seaweed.url}/data", images_per_shard=IMAGES, shards=SHARDS, options=seaweed.options)
    files, bucket = Folder(seaweed.url, seaweed.options).fs, seaweed.url.removeprefix("s3://")
    files.put(model, f"{bucket}/models/{Path(model).name}")
    gcs, s3 = free_ports(2)
    there = urlsplit(seaweed.endpoint)
    credentials = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_DEFAULT_REGION": REGION
    }  # fmt: skip

    def pipeline(name: str, endpoint: str, **compute) -> Path:
        options = {**seaweed.options, "client_kwargs": {**seaweed.options["client_kwargs"], "endpoint_url": endpoint}}
        told = {
            "source": {"uri": f"{seaweed.url}/data", "options": options},
            "model": f"{seaweed.url}/models/{Path(model).name}",
            "destination": f"{seaweed.url}/{name}",
            "destination_options": options,
            "compute": {"unit_rows": UNIT, "batch_size": 5, "gpus_per_actor": 0, **compute},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(told))
        return path

    environment = {**credentials, "AWS_ENDPOINT_URL": seaweed.endpoint}
    alone = subprocess.run(
        command(pipeline("alone", seaweed.endpoint)),
        env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr

    environment["AWS_ENDPOINT_URL"] = f"http://{_host()}:{s3}"
    with Machines(environment, gcs) as machines:
        with Forwarder((machines.host, s3), (there.hostname, there.port)) as forwarder:
            first, second = machines.add(), machines.add()
            told = pipeline("scores", environment["AWS_ENDPOINT_URL"], ray_address=machines.address)
            driver = {**machines.environment, "BIRDER_RAY_CACHE": str(machines.cache("head"))}

            wrong = {**driver, "RAY_AUTH_TOKEN": "0" * 64}
            refused = subprocess.run(command(told), env=wrong, capture_output=True, text=True, check=False, timeout=200)
            assert refused.returncode == 2, refused.stderr
            assert "Traceback" not in refused.stderr
            assert "asks for another token" in refused.stderr

            folder = Folder(f"{seaweed.url}/scores", seaweed.options)
            pipe = subprocess.PIPE
            with subprocess.Popen(command(told), env=driver, stdout=pipe, stderr=pipe, text=True) as process:
                deadline = time.monotonic() + 200
                while not folder.names(COMMITS):
                    assert process.poll() is None and time.monotonic() < deadline, process.communicate(timeout=9)
                    time.sleep(0.1)
                machines.lose(first)
                lost_at = len(folder.names(COMMITS))
                third = machines.add()
                _out, err = process.communicate(timeout=300)
            assert process.returncode == 0, err
        assert lost_at < SHARDS * IMAGES // UNIT, "amid the work"
        assert verify(folder.url, seaweed.options, deep=True).rows == IMAGES * SHARDS
        for name in ("predictions", "embeddings", "features"):
            assert_same_rows(
                table(folder.url, name, seaweed.options), table(f"{seaweed.url}/alone", name, seaweed.options)
            )
        weights = f"/{bucket}/models/{Path(model).name}"
        fetched = {name: forwarder.gets[machines.address_of(name), weights] for name in (first, second, third)}
        assert set(fetched.values()) <= {0, 1}, f"each machine fetches the weights once, if it has work: {fetched}"
        assert fetched[second] == 1
        (record,) = [folder.read_json(f"_runs/{name}") for name in folder.names("_runs")]
        assert (record["outcome"], record["hardware"]["cpus"]) == ("done", 4)
        assert machines.environment["RAY_AUTH_TOKEN"] not in json.dumps(record)


@pytest.mark.skipif(not possible(), reason="needs root and iproute2")
def test_an_autoscaler_brings_workers_and_takes_them_away(model, tmp_path):
    """Of two types, with one GPU and with two, from none and back to none."""
    make_shards(str(tmp_path / "data"), images_per_shard=IMAGES, shards=SHARDS)
    config = {
        "source": str(tmp_path / "data"),
        "model": model,
        "destination": str(tmp_path / "out"),
        "compute": {"unit_rows": UNIT, "batch_size": 5, "ray_address": "auto", "max_cpus": 4, "max_gpus": 3},
    }
    flags = ("--kill-child", "--net", "--pid", "--mount", "--fork", "--mount-proc")
    alone = ["unshare", *flags, "sh", "-c", 'ip link set lo up && "$0" "$@"']
    script = [sys.executable, "-m", "tests.autoscaled", json.dumps(config)]
    root = Path(__file__).parent.parent
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}  # else Ray goes by whether this account has a token
    done = subprocess.run(
        [*alone, *script], cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {"most": 2, "left": 0, "images": IMAGES * SHARDS}
    assert verify(str(tmp_path / "out")).rows == IMAGES * SHARDS


def _host() -> str:
    return f"10.231.{os.getpid() % 250}.1"

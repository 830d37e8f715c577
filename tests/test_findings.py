"""The commands that draw conclusions, as their users start them, on a destination that lies on S3: they print what they
found, write beside the tables, and leave a destination that verifies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from birder_ray.folder import Folder
from birder_ray.verify import verify
from tests.built import NAMES, build
from tests.conftest import ACCESS_KEY, REGION, SECRET_KEY

pytestmark = pytest.mark.s3
SHARDS = {"a.tar": 25, "b.tar": 12}


@pytest.fixture
def place(seaweed):
    """A destination, and a function that runs birder-ray with what it needs to get there in its environment."""
    folder = Folder(f"{seaweed.url}/scores", seaweed.options)
    build(folder, SHARDS)
    told = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_DEFAULT_REGION": REGION}
    environment = {**os.environ, **told, "AWS_ENDPOINT_URL": seaweed.endpoint}

    def command(*arguments: str, code: int = 0) -> str:
        path = Path(sys.executable).with_name("birder-ray")
        done = subprocess.run(
            [path, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
        return done.stderr if code else done.stdout

    return folder, command


def test_evaluate_with_labels_that_lie_on_s3(place):
    folder, command = place
    rows = [f"{shard}/{index},{NAMES[index % 3 if index % 5 else 0]}" for shard in SHARDS for index in range(12)]
    labels = folder.url.replace("/scores", "/labels.csv")
    folder.fs.pipe_file(labels.removeprefix("s3://"), "\n".join(["sample,label", *rows]).encode())
    scored = [index for index in range(12) if index != 3]
    right = sum(index % 5 != 0 or index % 3 == 0 for index in scored) / len(scored)
    assert f"{right:.4f}" in command("evaluate", folder.url, "--labels", labels)
    assert folder.read_json("evaluation/summary.json")
    assert verify(folder.url, folder.options).rows == 35
    assert "labels.csv" in command("evaluate", folder.url, "--labels", labels, "--label-column", "species", code=2)


def test_compare_is_a_gate(place):
    folder, command = place
    other = Folder(folder.url.replace("/scores", "/more"), folder.options)
    build(other, {**SHARDS, "c.tar": 5})
    told = json.loads(command("compare", folder.url, other.url, "--json", "-", "--max-flip-rate", "0"))
    assert told["samples"]["both"] == 35 and told["samples"]["added"] == 4 and told["violations"] == []
    assert "missing samples" in command("compare", other.url, folder.url, "--max-missing", "0.1", code=1)


def test_a_browser_shows_the_report(place):
    folder, command = place
    assert f"{folder.url}/report.html" in command("report", folder.url)
    assert folder.fs.info(folder.at("report.html"))["ContentType"] == "text/html; charset=utf-8"
    assert b"35 scored" in folder.read("report.html")
    assert verify(folder.url, folder.options).rows == 35


def test_rollup(place, tmp_path):
    folder, command = place
    (tmp_path / "taxa.csv").write_text("class_name,class,species\nheron,Aves,a\nstork,Aves,b\nibis,Aves,c\n")
    said = command("rollup", folder.url, "--taxonomy", str(tmp_path / "taxa.csv"))
    assert "35 images at 0.65; probabilities are lower bounds" in " ".join(said.split())
    assert len(folder.names("rollup")) == 5 + 1
    assert verify(folder.url, folder.options).rows == 35


def test_neighbours_and_duplicates(place):
    folder, command = place
    found = json.loads(command("similar", folder.url, "a.tar/7", "-k", "3", "--json", "-"))
    assert [each["cosine"] for each in found["neighbours"]] == [1, 1, 1] and found["without_direction"] == 2
    assert folder.names("neighbours") == {"_about.json", "index-000.faiss"}
    assert found["neighbours"][0]["sample"] in command("similar", folder.url, "a.tar/7", "-k", "1")
    assert "1 group; 32 of 33 images (96.97%) are redundant" in command("duplicates", folder.url)
    assert folder.names("duplicates") == {"_about.json", "embedding.parquet"}
    assert "/data" in command("duplicates", folder.url, "--by", "image", code=2)
    other = Folder(folder.url.replace("/scores", "/test"), folder.options)
    build(other, {"c.tar": 5})
    assert "3 of 3 images = 100.000%" in command("leakage", folder.url, other.url, "--max-rate", "1")
    assert "3 of 3" in command("leakage", folder.url, other.url, "--max-rate", "0.5", code=1)
    assert "no sample" in command("similar", folder.url, "c.tar/1", code=2)
    assert verify(folder.url, folder.options).rows == 35

"""From a model reference to a file: where it is looked for, what is checked, and what is said when it is not there."""

import hashlib
import json
import multiprocessing
import os
import struct
import zipfile
from pathlib import Path

import fsspec
import pytest
import torch

from birder_ray.errors import ConfigError
from birder_ray.weights import from_name, from_reference, is_reference, read_header, sha256_file

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BIRDER_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def mirror() -> str:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/mirror/net_tag.pt", CONTENT)
    yield "memory://mirror"
    fs.rm("/mirror", recursive=True)


def unreachable(file: str, path: Path) -> None:
    raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")


def find(models_dir: Path, mirror: str | None = None, known=None, download=unreachable) -> Path | None:
    return from_name("net_tag", models_dir, mirror, known or {".pt": SHA256}, download)


def test_what_is_a_reference():
    assert all(map(is_reference, ("a/b.pt", "s3://bucket/net_tag.pt", "net_tag.safetensors", "./net_tag")))
    assert not any(map(is_reference, ("net_tag", "hieradet_d_small_dino-v2-inat21", "hgnet_v2_b2_v1.5")))


def test_models_dir_comes_first(tmp_path, mirror):
    (tmp_path / "net_tag.pt").write_bytes(CONTENT)
    assert find(tmp_path, mirror) == tmp_path / "net_tag.pt"


def test_another_file_of_the_name_is_refused(tmp_path):
    (tmp_path / "net_tag.pt").write_bytes(b"other")
    with pytest.raises(ConfigError, match=r"net_tag\.pt: sha256 .* delete it, or pass it as MODEL by its path"):
        find(tmp_path)


def test_mirror_is_downloaded_once(tmp_path, mirror, cache):
    path = find(tmp_path, mirror)
    assert path is not None and path.read_bytes() == CONTENT and cache in path.parents
    fsspec.filesystem("memory").pipe_file("/mirror/net_tag.pt", b"x" * len(CONTENT))
    assert find(tmp_path, mirror) == path and sha256_file(path) == SHA256
    assert sorted(item.suffix for item in path.parent.iterdir()) == [".lock", ".pt"]


def test_a_damaged_mirror_leaves_nothing_behind(tmp_path, mirror, cache):
    fsspec.filesystem("memory").pipe_file("/mirror/net_tag.pt", CONTENT[:-1])
    with pytest.raises(ConfigError, match=r"memory://mirror/net_tag\.pt: sha256"):
        find(tmp_path, mirror)
    assert not list(cache.rglob("*.pt")) and not list(cache.rglob("*.tmp"))


def test_a_damaged_cache_is_replaced(tmp_path, mirror):
    path = find(tmp_path, mirror)
    path.write_bytes(b"half")
    assert find(tmp_path, mirror).read_bytes() == CONTENT


def test_birders_site_is_last(tmp_path, cache):
    path = find(tmp_path, download=lambda file, target: target.write_bytes(CONTENT))
    assert path == cache / "birder" / "net_tag.pt"
    assert find(tmp_path) == path  # found, not downloaded


def test_offline_says_where_to_put_the_file(tmp_path):
    with pytest.raises(ConfigError) as caught:
        find(tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "net_tag.pt") in message and "MODELS_DIR" in message and "--weights-mirror" in message
    assert "\n" not in message


def test_a_name_of_nobody(tmp_path):
    assert from_name("mine", tmp_path, None, {}, None) is None


def test_references(tmp_path, mirror):
    (tmp_path / "own_net.pt").write_bytes(CONTENT)
    assert from_reference(str(tmp_path / "own_net.pt")) == tmp_path / "own_net.pt"
    assert from_reference(f"file://{tmp_path}/own_net.pt") == tmp_path / "own_net.pt"
    fetched = from_reference(f"{mirror}/net_tag.pt")
    assert fetched.read_bytes() == CONTENT and fetched.name == "net_tag.pt"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("{dir}/none.pt", "no such checkpoint"),
        ("memory://nowhere/none.pt", "cannot be read"),
        ("nosuch://bucket/none.pt", "nosuch"),
        ("{dir}/model.pts", r"\.pts is not supported"),
        ("{dir}/model", "a file without suffix is not supported"),
    ],
)
def test_references_that_lead_nowhere(tmp_path, reference, message):
    with pytest.raises(ConfigError, match=message):
        from_reference(reference.format(dir=tmp_path))


def _fetch_slowly(cache: str, barrier, downloads: str) -> None:
    import time

    os.environ["BIRDER_RAY_CACHE"] = cache

    def download(file: str, path: Path) -> None:
        (Path(downloads) / str(os.getpid())).touch()
        time.sleep(0.3)
        path.write_bytes(CONTENT)

    barrier.wait()
    from_name("net_tag", Path(cache) / "models", None, {".pt": SHA256}, download)


def test_two_processes_download_once(tmp_path, cache):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    (tmp_path / "downloads").mkdir()
    arguments = (str(cache), barrier, str(tmp_path / "downloads"))
    processes = [context.Process(target=_fetch_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list((tmp_path / "downloads").iterdir())) == 1


SIGNATURE = {"inputs": [{"data_shape": [0, 1, 32, 48]}], "outputs": [{"data_shape": [0, 3]}]}


def test_header(tmp_path):
    torch.save({"signature": SIGNATURE, "class_to_idx": {"b": 1, "a": 0}, "state": {}}, tmp_path / "net.pt")
    header = read_header(tmp_path / "net.pt")
    assert (header.size, header.channels, header.task) == ((32, 48), 1, None)
    assert header.class_names == ("a", "b", "class_2")


def test_few_bytes_that_fill_the_memory_are_left_to_torch(tmp_path):
    for pickled in (b"\x80\x02Nr\xff\xff\xff\xff.", b"Np4294967295\n.", b"\x96" + b"\xff" * 5 + b"\0" * 3 + b"."):
        with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
            archive.writestr("net/data.pkl", pickled)
        with pytest.raises(ConfigError, match="not a birder checkpoint, or damaged: RuntimeError"):
            read_header(tmp_path / "net.pt")


def test_header_of_safetensors(tmp_path, monkeypatch):
    metadata = {"signature": json.dumps(SIGNATURE), "class_to_idx": "{}", "task": "image_classification"}
    header = json.dumps({"__metadata__": metadata}).encode()
    (tmp_path / "net.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    monkeypatch.setattr("birder_ray.weights.find_spec", lambda name: object())
    assert read_header(tmp_path / "net.safetensors").task == "image_classification"
    monkeypatch.setattr("birder_ray.weights.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install safetensors"):
        read_header(tmp_path / "net.safetensors")


class Code:
    def __reduce__(self):
        return os.system, ("echo ran > ran",)


def test_a_checkpoint_with_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"signature": SIGNATURE, "state": Code()}, "net.pt")
    with pytest.raises(ConfigError, match="not opened for safety"):
        read_header(Path("net.pt"))
    assert not Path("ran").exists()


@pytest.mark.parametrize("content", [b"", b"junk" * 100, None], ids=["empty", "junk", "not birder's"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_are_no_checkpoints(tmp_path, monkeypatch, content, suffix):
    monkeypatch.setattr("birder_ray.weights.find_spec", lambda name: object())
    path = tmp_path / f"net{suffix}"
    if content is None:
        torch.save({"model": {}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"net\.(pt|safetensors)"):
        read_header(path)

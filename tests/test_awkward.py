"""Awkward inputs: whatever lies in a source, every sample is scored or quarantined, and the balance closes."""

import io
import tarfile
import zlib
from pathlib import Path

import pytest

from birder_ray import RunConfig, run
from birder_ray.testing import make_images
from birder_ray.verify import verify
from tests.results import table

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def _score(source: Path, model: str, out: Path) -> dict[str, str]:
    """Scores, verifies, and gives the error type by sample of what was quarantined."""
    compute = {"unit_rows": 5, "gpus_per_actor": 0}
    run(RunConfig(source=str(source), model=model, destination=str(out), compute=compute, run={"max_error_rate": 1}))
    totals = verify(str(out))
    errors = table(out, "errors")
    scored = table(out, "predictions").num_rows
    assert totals.samples == scored + errors.num_rows
    assert totals.rows == scored
    return dict(zip(errors["sample"].to_pylist(), errors["error_type"].to_pylist(), strict=True))


def _tar(members: dict[str, bytes] | list[tuple[str, bytes]]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def _huge_png(side: int) -> bytes:
    """A valid grey PNG of side x side pixels, all zero: small to store, gigabytes to decode."""

    def block(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    packer = zlib.compressobj(9)
    pixels = b"".join([*(packer.compress(bytes(side + 1)) for _ in range(side)), packer.flush()])
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", pixels) + block(b"IEND", b"")


def test_a_folder_of_trouble(tmp_path, model, awkward):
    good = make_images(3)
    folder = tmp_path / "data" / "mit Leerzeichen und ü"
    folder.mkdir(parents=True)
    (folder / "größe 1 %20#?.jpg").write_bytes(good[0])
    (folder / "日本語.JPG").write_bytes(good[1])
    (folder / "<b>'quoted\".jpeg").write_bytes(good[2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no image")
    (folder / "cut.jpg").write_bytes(good[0][: len(good[0]) // 2])
    (folder / "bomb.png").write_bytes(_huge_png(30_000))
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    from PIL import Image

    Image.new("RGB", (1, 1), (9, 9, 9)).save(folder / "one-pixel.png")
    for photo in awkward:
        (folder / photo.name).write_bytes(photo.read_bytes())
    errors = {
        name.rpartition("/")[2]: kind for name, kind in _score(tmp_path / "data", model, tmp_path / "out").items()
    }
    assert errors == {
        "empty.jpg": "EmptyFile",
        "text.jpg": "UndecodableImage",
        "cut.jpg": "TruncatedImage",
        "bomb.png": "DecompressionBomb",
        "gone.jpg": "NotFound",
        "african_elephants_truncated_file.jpg": "TruncatedImage",
    }
    scored = {name.rpartition("/")[2] for name in table(tmp_path / "out", "predictions")["sample"].to_pylist()}
    assert {"one-pixel.png", "日本語.JPG", "<b>'quoted\".jpeg", "african_elephants_cmyk.jpg"} <= scored


def test_a_folder_of_troubled_tars(tmp_path, model):
    data = tmp_path / "data"
    data.mkdir()
    images = make_images(6)
    whole = _tar({f"{n:03d}.jpg": image for n, image in enumerate(images)})
    blocks = sum(1 + -(-len(image) // 512) for image in images)
    whole = whole[: (blocks + 2) * 512]  # without the padding after the end-of-archive mark, which nobody misses
    for tenth in range(10):
        (data / f"cut-{tenth}.tar").write_bytes(whole[: len(whole) * tenth // 10])
    garbled = bytearray(whole)
    second_header = 512 + -(-len(images[0]) // 512) * 512
    garbled[second_header : second_header + 512] = b"\xff" * 512
    (data / "garbled.tar").write_bytes(bytes(garbled))
    (data / "empty.tar").write_bytes(_tar({}))
    (data / "duplicates.tar").write_bytes(_tar([("a.jpg", images[0]), ("b.jpg", images[1]), ("a.jpg", images[2])]))
    (data / "nested.tar").write_bytes(_tar({"inner.tar": whole, "x.jpg": images[3]}))
    (data / "zero.tar").write_bytes(_tar({"none.jpg": b"", "some.jpg": images[4]}))
    errors = _score(data, model, tmp_path / "out")
    damaged = {name: kind for name, kind in errors.items() if "/" not in name}
    assert set(damaged) == {f"cut-{n}.tar" for n in range(10)} | {"garbled.tar"}
    assert damaged["garbled.tar"] == "DamagedTar"
    assert {kind for name, kind in damaged.items() if name.startswith("cut")} == {"TruncatedTar", "EmptyFile"}
    assert errors["zero.tar/none"] == "EmptyFile"
    shards = table(tmp_path / "out", "predictions")["shard"].to_pylist()
    assert (shards.count("duplicates.tar"), shards.count("nested.tar"), shards.count("garbled.tar")) == (3, 1, 1)
    cut = [shards.count(f"cut-{tenth}.tar") for tenth in range(10)]
    assert cut == sorted(cut)
    assert 0 < cut[5] < 6


def test_a_sample_that_kills_the_decoder(tmp_path, model, monkeypatch):
    """A real crash of the actor's process, as a bug in a native decoder would cause."""
    plugin = tmp_path / "site"
    plugin.mkdir()
    (plugin / "deadly.py").write_text(
        "import os\n"
        "from birder_ray import preprocess\n"
        "original = preprocess.Preprocess.__call__\n"
        "def call(self, chunk):\n"
        "    if any(b'DEADLY' in data for data in chunk.data):\n"
        "        os.kill(os.getpid(), 11)\n"
        "    return original(self, chunk)\n"
        "preprocess.Preprocess.__call__ = call\n"
    )
    images = make_images(7)
    images[4] += b"DEADLY"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.tar").write_bytes(_tar({f"{n}.jpg": image for n, image in enumerate(images)}))
    from birder_ray import runtime

    class Deadly(runtime._PreprocessActor):
        def __init__(self, *arguments):
            import sys

            sys.path.insert(0, str(plugin))
            import deadly  # noqa: F401

            super().__init__(*arguments)

    monkeypatch.setattr(runtime, "_PreprocessActor", Deadly)
    assert _score(tmp_path / "data", model, tmp_path / "out") == {"a.tar/4": "ProcessKilled"}
    assert table(tmp_path / "out", "predictions")["index"].to_pylist() == [0, 1, 2, 3, 5, 6]

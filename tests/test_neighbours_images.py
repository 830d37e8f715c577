"""Copies and look-alikes found by reading the images again, in directories and tars; queries that are images."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image, ImageOps

from birder_ray.cli import app
from birder_ray.config import RunConfig
from birder_ray.errors import ConfigError, SampleError
from birder_ray.folder import Folder
from birder_ray.neighbours import duplicates, hashing, leakage, similar, violations
from birder_ray.reread import reason
from birder_ray.scores import Scores
from birder_ray.testing import make_images
from birder_ray.verify import verify
from tests.built import rewrite
from tests.inprocess import score

SHARDS = ("animals", "more")


def encoded(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def photos() -> dict[str, bytes]:
    """Images by name: 10 different ones, copies of some of them, and what is no copy."""
    made = {f"{at:02d}": data for at, data in enumerate(make_images(10, size=(240, 320)))}
    whole = {name: Image.open(io.BytesIO(data)) for name, data in made.items()}
    made["10-copy-of-01"] = made["01"]
    made["11-encoded-of-02"] = encoded(whole["02"], 40)
    made["12-smaller-of-03"] = encoded(whole["03"].resize((160, 120)), 85)
    made["13-mirrored-of-04"] = encoded(ImageOps.mirror(whole["04"]), 90)
    made["14-part-of-05"] = encoded(whole["05"].crop((60, 50, 300, 230)), 90)
    made["15-copy-of-01"] = made["01"]
    return made


def write(root: Path, kind: str, images: dict[str, bytes]) -> None:
    """Half of the images to each of two shards."""
    root.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(SHARDS):
        those = dict(list(images.items())[number::2])
        if kind == "images":
            (root / shard).mkdir()
            for name, data in those.items():
                (root / shard / f"{name}.jpg").write_bytes(data)
        else:
            with tarfile.open(root / f"{shard}.tar", "w") as tar:
                for name, data in those.items():
                    member = tarfile.TarInfo(f"{name}.jpg")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def config(root: Path, folder: str, **model) -> RunConfig:
    return RunConfig(
        source=str(root / folder),
        model=model,
        destination=str(root / f"{folder}-out"),
        outputs={"predictions": {}, "embeddings": {}},
        compute={"unit_rows": 3},
    )


@pytest.fixture(scope="module", params=["images", "tar"])
def scored(request, tmp_path_factory, model) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    images = photos()
    write(root / "photos", request.param, images)
    others = {f"1{name}": data for name, data in list(images.items())[:2]}
    others |= {f"{at}": data for at, data in enumerate(make_images(4, seed=5, size=(240, 320)))}
    others |= {"encoded": encoded(Image.open(io.BytesIO(images["07"])), 30)}
    write(root / "others", request.param, others)
    for name in ("photos", "others"):
        score(config(root, name, name=model))
    return root


@pytest.fixture
def own(scored, tmp_path) -> Path:
    """A copy of everything, whose manifests name the copies."""
    shutil.copytree(scored, tmp_path / "own")
    for name in ("photos", "others"):
        manifest = tmp_path / "own" / f"{name}-out" / "manifest.json"
        manifest.write_text(manifest.read_text().replace(str(scored), str(tmp_path / "own")))
    return tmp_path / "own"


def short(sample: str) -> str:
    return sample.rpartition("/")[2].removesuffix(".jpg")


def pairs(folder: Folder, kind: str) -> dict[str, str]:
    rows = pq.read_table(folder.at(f"duplicates/{kind}.parquet")).to_pylist()
    return {short(row["sample"]): short(row["keeper"]) for row in rows if row["sample"] != row["keeper"]}


def test_what_was_planted_is_found(own):
    folder = Folder(str(own / "photos-out"))
    done = duplicates(folder.url, by="all", min_cosine=0.9999)
    copies = {"15-copy-of-01": "10-copy-of-01", "01": "10-copy-of-01"}  # of the first shard, the first one is kept
    assert pairs(folder, "bytes") == copies
    assert pairs(folder, "image") == {**copies, "11-encoded-of-02": "02", "03": "12-smaller-of-03"}
    assert pairs(folder, "embedding").items() >= copies.items()
    assert [(each.kind, each.groups, each.redundant) for each in done.found[:2]] == [("bytes", 1, 2), ("image", 3, 4)]
    assert all(each.images == 16 and not each.left_out for each in done.found) and not done.notes
    assert folder.names("hashes") == {f"{unit}.parquet" for unit in Scores(folder.url).units}
    assert verify(folder.url).rows == 16


def test_each_image_is_read_once(own, monkeypatch):
    folder = Folder(str(own / "photos-out"))
    looked: list[bytes] = []
    look = hashing.hashed
    monkeypatch.setattr(hashing, "hashed", lambda data: looked.append(data) or look(data))
    first = duplicates(folder.url, by="image")
    assert sorted(looked) == sorted(photos().values())
    shutil.rmtree(own / "photos")
    assert duplicates(folder.url, by="image") == first and len(looked) == 16
    unit = Scores(folder.url).units[1]
    folder.write(f"hashes/{unit}.parquet", b"PAR1")
    assert duplicates(folder.url, by="image").found[0].images == 16 - 3


def test_hashes_of_other_rows_are_made_anew(own, monkeypatch):
    folder = Folder(str(own / "photos-out"))
    first = duplicates(folder.url, by="image")
    unit = Scores(folder.url).units[1]
    looked: list[bytes] = []
    look = hashing.hashed
    monkeypatch.setattr(hashing, "hashed", lambda data: looked.append(data) or look(data))
    for table in ("predictions", "embeddings"):
        rewrite(folder, table, unit, lambda rows: rows.slice(1))
    record = folder.read_json(f"_commits/{unit}.json")
    folder.write_json(f"_commits/{unit}.json", {**record, "rows": record["rows"] - 1})
    folder.write("hashes/gone-0123456789ab-000000.parquet", b"PAR1")
    assert duplicates(folder.url, by="image").found[0].images == first.found[0].images - 1 and len(looked) == 3
    assert "gone-0123456789ab-000000.parquet" not in folder.names("hashes")


def test_hashes_of_units_that_lack_a_table_are_kept(own):
    folder = Folder(str(own / "photos-out"))
    first = duplicates(folder.url, by="image")
    unit = Scores(folder.url).units[1]
    record = folder.read_json(f"_commits/{unit}.json")
    less = {**record, "parts": {"embeddings": record["parts"]["embeddings"]}}
    folder.write_json(f"_commits/{unit}.json", less)
    assert duplicates(folder.url, by="image").found[0].images == first.found[0].images - 3
    assert f"{unit}.parquet" in folder.names("hashes")


def test_a_damaged_part_is_named_and_not_passed_over(own):
    folder = Folder(str(own / "photos-out"))
    unit = Scores(folder.url).units[1]
    folder.write(f"predictions/{unit}.parquet", b"PAR1")
    with pytest.raises(ConfigError, match=f"predictions/{unit}.parquet.*birder-ray verify"):
        hashing.image_hashes(Scores(folder.url))


def test_images_that_are_gone_are_one_reason():
    gone = [SampleError("NotFound", f"FileNotFoundError: https://example.org/{at}.jpg") for at in range(3)]
    assert {reason(each) for each in gone} == {"NotFound: storage does not give them now"}


def test_what_changed_since_is_left_out_and_counted(own):
    folder = Folder(str(own / "photos-out"))
    changed = next(path for path in sorted((own / "photos").rglob("*")) if path.is_file())
    changed.write_bytes(b"something else")
    done = duplicates(folder.url, by="image")
    assert done.found[0].left_out == {"their shard changed since it was scored": 8} and done.found[0].images == 8
    found = leakage(str(own / "others-out"), folder.url, by="image")
    assert found.found[0].test_left_out == done.found[0].left_out
    assert "8 images could not be looked at" in violations(found, 0.4)[0] and not violations(found, 0.9)


def test_without_the_source_there_are_still_embeddings(own):
    shutil.rmtree(own / "photos")
    folder = Folder(str(own / "photos-out"))
    done = duplicates(folder.url, by="all", min_cosine=0.9999)
    assert [each.images for each in done.found] == [0, 0, 16] and done.found[2].redundant >= 2
    assert sum(done.found[0].left_out.values()) == 16 and "photos" in min(done.found[0].left_out)
    with pytest.raises(ConfigError, match=r"no image can be read again: .*photos"):
        duplicates(folder.url, by="image")
    assert "bytes: no image was looked at" in violations(leakage(str(own / "others-out"), folder.url, by="all"), 1)[0]


def test_leakage_by_image(own):
    train, test = str(own / "photos-out"), str(own / "others-out")
    found = leakage(train, test, by="all", min_cosine=0.9999)
    rows = {(row["kind"], short(row["sample"])): short(row["train_sample"]) for row in found.table.to_pylist()}
    copies = {"100": "00", "101": "10-copy-of-01"}
    assert {name: other for (kind, name), other in rows.items() if kind == "bytes"} == copies
    assert {name: other for (kind, name), other in rows.items() if kind == "image"} == {**copies, "encoded": "07"}
    assert {name for kind, name in rows if kind == "embedding"} >= copies.keys()
    assert [(each.count, each.total, each.train) for each in found.found[:2]] == [(2, 7, 16), (3, 7, 16)]
    said = CliRunner().invoke(app, ["leakage", train, test, "--by", "image", "--max-rate", "0.3"])
    assert "image     3 of 7 images = 42.857%" in said.output and "image: 3 of 7" in str(said.exception)
    assert "bytes: " not in str(said.exception)


def test_images_of_other_networks_are_compared(own, model):
    write(own / "third", "tar", dict(list(photos().items())[:4]))
    score(config(own, "third", name=model, size=96))
    train, test = str(own / "photos-out"), str(own / "third-out")
    with pytest.raises(ConfigError, match="size"):
        leakage(train, test, by="all")
    assert [each.count for each in leakage(train, test, by="image").found] == [4, 4]


def test_an_image_that_pillow_cannot_decode_is_compared_by_its_bytes(own, monkeypatch):
    monkeypatch.setattr("birder_ray.reread.MAX_PIXELS", 200 * 150)
    bytes_, images = duplicates(str(own / "photos-out"), by="image").found
    assert bytes_.redundant == 2 and (images.images, images.redundant) == (1, 0)
    assert images.left_out == {"cannot be decoded, or too large": 15} and not bytes_.left_out


def test_a_query_that_is_an_image(own, tmp_path, model):
    folder = str(own / "photos-out")
    (tmp_path / "mine.jpg").write_bytes(photos()["06"])
    found = similar(folder, str(tmp_path / "mine.jpg"), k=3)
    assert not found.sample and short(found.neighbours[0].sample) == "06"
    assert found.neighbours[0].cosine == pytest.approx(1, abs=1e-5)
    stored = similar(folder, found.neighbours[0].sample, k=2)
    assert [each.sample for each in stored.neighbours] == [each.sample for each in found.neighbours[1:]]
    cosines = [each.cosine for each in stored.neighbours]
    assert [each.cosine for each in found.neighbours[1:]] == pytest.approx(cosines, abs=1e-4)
    said = CliRunner().invoke(app, ["similar", folder, str(tmp_path / "mine.jpg"), "-k", "1", "--model", model])
    assert said.output.split()[:2] == ["1", "1.0000"]
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"bad.jpg: cannot be scored: \w+"):
        similar(folder, str(tmp_path / "bad.jpg"))
    with pytest.raises(ConfigError, match=r"weights of sha256 .* are missing"):
        similar(folder, str(tmp_path / "mine.jpg"), model=str(tmp_path / "bad.jpg"))


def test_re_encoded_photos(photos):
    """Real ones: by the default limit, each is like itself at any quality and size, and like no other."""
    looks = []
    for path in photos[:60]:
        image = Image.open(path).convert("RGB")
        half = image.resize((image.width // 2, image.height // 2))
        versions = (path.read_bytes(), encoded(image, 30), encoded(half, 80), encoded(ImageOps.mirror(image), 90))
        looks.append([hashing.hashed(data)[1] for data in versions])
    found = np.array(looks, np.uint64)
    apart = np.bitwise_count(found[:, 0, None] ^ found[:, 1:])
    assert (apart[:, :2] <= 4).all() and (apart[:, 2] > 4).all()
    others = np.bitwise_count(found[:, None, 0] ^ found[None, :, 0])
    assert (others[~np.eye(len(others), dtype=bool)] > 4).all()

"""What a source names: formats, names, fingerprints, and one plain line where there is nothing to score."""

import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from birder_ray.config import SourceConfig
from birder_ray.errors import ConfigError, SampleError
from birder_ray.source import Shard, list_shards, read_samples
from birder_ray.source.find import expand_braces
from birder_ray.testing import make_shards


def listed(*uris: str | Path, format: str = "auto") -> list[Shard]:
    return list_shards(SourceConfig(uri=[str(uri) for uri in uris], format=format))


def names(*uris: str | Path, format: str = "auto") -> list[tuple[str, str, tuple[str, ...] | None]]:
    return [(shard.format, shard.name, shard.members) for shard in listed(*uris, format=format)]


def touch(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"x")


@pytest.mark.parametrize(
    ("uri", "expanded"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{000000..000001}", ["000000", "000001"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("{train,}x", ["trainx", "x"]),
        ("{name}/{1..2}", ["{name}/1", "{name}/2"]),
        ("plain", ["plain"]),
    ],
)
def test_braces(uri: str, expanded: list[str]) -> None:
    assert expand_braces(uri) == expanded


def test_image_directories_are_shards(tmp_path: Path) -> None:
    touch(tmp_path, "root.jpg", "b/2.png", "b/deep er/3.JPEG", "a/1.gif", "a/notes.txt", "labels.csv",
          ".git/x.jpg", "__MACOSX/x.jpg", "a/._1.jpg", "empty/readme")  # fmt: skip
    assert names(tmp_path) == [("images", name, None) for name in ("", "a", "b", "b/deep er")]
    assert [shard.count for shard in listed(f"{tmp_path}/")] == [1, 1, 1, 1]


def test_chosen_images_are_grouped_by_directory(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/2.jpg", "a/._2.jpg", "a/x.txt", "b/3.jpg", "__MACOSX/4.jpg", "c.jpg")
    assert names(tmp_path / "a/*.jpg") == [("images", "", ("1.jpg", "2.jpg"))]
    assert names(tmp_path / "*/*.jpg") == [("images", "a", ("1.jpg", "2.jpg")), ("images", "b", ("3.jpg",))]
    assert names(tmp_path / "a/2.jpg", tmp_path / "c.jpg") == [("images", "", ("c.jpg",)), ("images", "a", ("2.jpg",))]
    assert names(tmp_path / "*") == [("images", "", ("c.jpg",)), ("images", "a", None), ("images", "b", None)]
    assert names(tmp_path / "a", tmp_path / "a/2.jpg") == [("images", "", None)]


def test_names_stay_unique_over_several_sources(tmp_path: Path) -> None:
    touch(tmp_path, "x/s.tar", "y/s.tar", "y/z/s.tar")
    assert names(tmp_path / "x", tmp_path / "y") == [("tar", f"{d}/s.tar", None) for d in ("x", "y", "y/z")]
    assert names(tmp_path / "x/s.tar", tmp_path / "x", tmp_path / "x/../x/s.tar") == [("tar", "s.tar", None)]
    assert names(tmp_path / "{y,x}") == [("tar", f"{d}/s.tar", None) for d in ("x", "y", "y/z")]


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "d/a.jpg", "s-1.tar", "s-2.tar")
    monkeypatch.chdir(tmp_path)
    assert names("d") == names("./d/") == names("d/../d") == [("images", "", None)]
    assert names("*.tar") == names("s-{1..2}.tar") == [("tar", "s-1.tar", None), ("tar", "s-2.tar", None)]


def test_names_with_wildcard_characters_are_taken_as_they_are(tmp_path: Path) -> None:
    touch(tmp_path, "site [a]/1.jpg", "what?/1.jpg")
    assert names(tmp_path / "site [a]") == [("images", "", None)]
    assert names(tmp_path / "what?" / "1.jpg") == [("images", "what?", ("1.jpg",))]


def test_links_are_followed_but_not_round_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "real/1.jpg", "source/a/2.jpg")
    (tmp_path / "source/link").symlink_to(tmp_path / "real")
    (tmp_path / "source/a/loop").symlink_to(tmp_path / "source")
    (tmp_path / "source/self").symlink_to("self")
    assert names(tmp_path / "source") == [("images", "a", None), ("images", "link", None)]


def test_results_next_to_the_photos_are_no_source(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "scores/_commits/u.json", "scores/predictions/u.parquet")
    assert names(tmp_path) == [("images", "", None)]


def test_mixed_formats_need_a_choice(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "s.tar")
    with pytest.raises(ConfigError, match=r"several formats \(images, tar\).*--format"):
        listed(tmp_path)
    assert names(tmp_path, format="tar") == [("tar", "s.tar", None)]
    assert names(tmp_path, format="images") == [("images", "", None)]
    assert names(tmp_path / "a.jpg", tmp_path / "s.tar") == [("images", "", ("a.jpg",)), ("tar", "s.tar", None)]


def test_format_given_for_a_file_without_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "download")
    for format_ in ("tar", "parquet", "images"):
        members = ("download",) if format_ == "images" else None
        name = "" if format_ == "images" else "download"
        assert names(tmp_path / "download", format=format_) == [(format_, name, members)]
    (tmp_path / "list.txt").write_text("image\n1.jpg\n")
    assert [shard.count for shard in listed(tmp_path / "list.txt", format="manifest")] == [1]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nowhere", "nowhere: no such file or directory"),
        ("*.tar", r"\*.tar: no such file or directory"),
        ("empty", "empty: holds no images, tars, Parquet files or CSV manifests.*--format"),
        ("readme.txt", "readme.txt: holds no images"),
        ("s-{1..4}.tar", r"s-2.tar: no such file or directory.*s-\{1..4\}.tar"),
        ("nope://x/y", "nope://x/y: Protocol not known"),
    ],
)
def test_nothing_to_score_is_one_plain_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, message: str
) -> None:
    touch(tmp_path, "empty/x.txt", "readme.txt", "sub/x", "s-1.tar", "s-3.tar")
    monkeypatch.chdir(tmp_path if "*" not in uri else tmp_path / "empty")
    with pytest.raises(ConfigError, match=message) as caught:
        listed(uri)
    assert "\n" not in str(caught.value)


def test_forbidden_directory_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.ls", forbidden)
    with pytest.raises(ConfigError, match=r"forbidden.*permissions"):
        listed(tmp_path)


def test_directory_whose_name_is_not_utf8(tmp_path: Path) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"r\xe4v")
    os.mkdir(folder)
    with open(os.path.join(folder, b"a.jpg"), "wb") as file:
        file.write(b"x")
    with pytest.raises(ConfigError, match="not UTF-8"):
        listed(tmp_path)


@pytest.mark.parametrize("file", ["s.tar", "a/1.jpg", "m.csv", "t.parquet"])
def test_fingerprint_follows_the_content(tmp_path: Path, file: str) -> None:
    touch(tmp_path, file)
    if file == "m.csv":
        (tmp_path / file).write_text("image\n")
    source = tmp_path / file if file != "a/1.jpg" else tmp_path
    (first,) = listed(source)
    assert listed(source) == [first]
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes() + b"\n")
    assert listed(source)[0].fingerprint != first.fingerprint
    stat = (tmp_path / file).stat()
    (second,) = listed(source)
    os.utime(tmp_path / file, (stat.st_atime, stat.st_mtime + 10))
    assert listed(source)[0].fingerprint != second.fingerprint


def test_another_image_changes_the_directory(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "notes.txt")
    (before,) = listed(tmp_path)
    touch(tmp_path, "other.txt")
    assert listed(tmp_path) == [before]
    touch(tmp_path, "2.jpg")
    assert listed(tmp_path)[0].fingerprint != before.fingerprint


def test_memory_filesystem(tmp_path: Path) -> None:
    truth = make_shards("memory://bucket/set", images_per_shard=2, shards=3)
    for uri in ("memory://bucket/set", "memory://bucket/set/*.tar", "memory://bucket/set/shard-{000000..000002}.tar"):
        assert names(uri) == [("tar", f"shard-{number:06d}.tar", None) for number in range(3)]
    source = SourceConfig(uri="memory://bucket/set")
    found = [sample.sample for shard in list_shards(source) for sample, _ in read_samples(shard, source)]
    assert found == [row.sample for row in truth]


def test_directory_that_lists_itself_is_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    make_shards("memory://marked/set", images_per_shard=1, shards=1)
    listing = MemoryFileSystem.ls

    def with_marker(self: MemoryFileSystem, path: str, **options: Any) -> Any:
        return [{"name": f"{path}/", "size": 0, "type": "directory"}, *listing(self, path, **options)]

    monkeypatch.setattr(MemoryFileSystem, "ls", with_marker)
    assert names("memory://marked/set") == [("tar", "shard-000000.tar", None)]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_web(tmp_path: Path, web: str) -> None:
    make_shards(str(tmp_path / "tars"), images_per_shard=2, shards=2)
    make_shards(str(tmp_path / "photos"), images_per_shard=2, shards=2, format="images")
    for uri in (f"{web}/tars/shard-{{000000..000001}}.tar?token=secret", f"{web}/tars/"):
        source = SourceConfig(uri=uri)
        shards = list_shards(source)
        assert [shard.name for shard in shards] == ["shard-000000.tar", "shard-000001.tar"]
        samples = [sample for shard in shards for sample, _ in read_samples(shard, source)]
        assert samples[3].sample == "shard-000001.tar/000001"
        assert not any("secret" in sample.uri for sample in samples)
    source = SourceConfig(uri=f"{web}/photos/")
    assert [sample.sample for shard in list_shards(source) for sample, _ in read_samples(shard, source)] == [
        "class-0/000000.jpg", "class-0/000001.jpg", "class-1/000000.jpg", "class-1/000001.jpg",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="no such file"):
        listed(f"{web}/tars/gone.tar")


def test_web_manifest(tmp_path: Path, web: str) -> None:
    (tmp_path / "a b.jpg").write_bytes(b"image")
    (tmp_path / "m.csv").write_text(f"url\na b.jpg\n{web}/gone.jpg?token=secret\n")
    source = SourceConfig(uri=f"{web}/m.csv")
    (_, good), (sample, bad) = read_samples(list_shards(source)[0], source)
    assert good == b"image"
    assert isinstance(bad, SampleError) and bad.error_type == "NotFound"
    assert "secret" not in f"{bad} {sample.uri} {sample.sample}"

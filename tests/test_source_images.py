"""Directories of images, and reading through I/O errors of any format."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from birder_ray.config import SourceConfig
from birder_ray.errors import RunFailed, SampleError
from birder_ray.retries import ATTEMPTS
from birder_ray.source import count_samples, images, list_shards, read_samples
from birder_ray.source.fetch import prefetch
from birder_ray.testing import make_images, make_shards


def test_samples_labels_and_bytes_are_those_written(tmp_path: Path) -> None:
    truth = make_shards(str(tmp_path), images_per_shard=5, shards=2, format="images")
    source = SourceConfig(uri=str(tmp_path))
    shards = list_shards(source)
    found = [
        (sample.sample, shard.name, sample.index, sample.label, data)
        for shard in shards
        for sample, data in read_samples(shard, source)
    ]
    expected = make_images(5, 0) + make_images(5, 1)
    assert found == [(*row, image) for row, image in zip(truth, expected, strict=True)]
    assert [shard.count for shard in shards] == [count_samples(shard, source, 99) for shard in shards] == [5, 5]


def test_names_in_byte_order_and_no_label_in_the_root(tmp_path: Path) -> None:
    for name in ("b.jpg", "a 1.PNG", "Z.jpeg", "ä.webp", ".hidden.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    source = SourceConfig(uri=str(tmp_path))
    (shard,) = list_shards(source)
    items = list(read_samples(shard, source))
    assert [sample.sample for sample, _ in items] == ["Z.jpeg", "a 1.PNG", "b.jpg", "ä.webp"]
    assert [data for _, data in items] == [sample.sample.encode() for sample, _ in items]
    assert {sample.label for sample, _ in items} == {None}


def test_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    with open(os.path.join(os.fsencode(tmp_path), b"r\xe4v.jpg"), "wb") as file:
        file.write(b"x")
    source = SourceConfig(uri=str(tmp_path))
    ((sample, data),) = read_samples(list_shards(source)[0], source)
    assert (sample.sample, data) == ("r\\udce4v.jpg", b"x")


def test_images_fail_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "b.jpg").touch()
    (tmp_path / "c.jpg").symlink_to("nowhere")
    (tmp_path / "d.jpg").symlink_to("a.jpg")
    source = SourceConfig(uri=str(tmp_path))
    (shard,) = list_shards(source)
    found = [data.error_type if isinstance(data, SampleError) else data for _, data in read_samples(shard, source)]
    assert found == [b"a", "EmptyFile", "NotFound", b"a"]


def test_resume_gives_the_tail_and_fetches_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_shards(str(tmp_path), images_per_shard=9, shards=1, format="images")
    source = SourceConfig(uri=str(tmp_path))
    (shard,) = list_shards(source)
    full = list(read_samples(shard, source))
    fetched: list[str] = []
    original = fsspec.filesystem("file").cat_file
    local = "fsspec.implementations.local.LocalFileSystem.cat_file"
    monkeypatch.setattr(local, lambda self, path: fetched.append(path) or original(path))
    assert list(read_samples(shard, source, start=4)) == full[4:]
    assert list(read_samples(shard, source, 2, lambda index: index in (1, 3, 8))) == [full[3], full[8]]
    assert len(fetched) == 5 + 2


def test_prefetch_is_ordered_bounded_and_gives_what_came_before_an_error() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number
        raise OSError("listing broke")

    results = prefetch(lambda number: number * 10, items(), workers=2)
    assert next(results) == 0
    assert len(taken) == 4
    rest: list[int] = []
    with pytest.raises(OSError, match="listing broke"):
        rest.extend(results)
    assert taken == list(range(20))


class Flaky(MemoryFileSystem):
    """Memory whose files fail with `error`, once at each position in `breaks`; every open is noted."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    breaks: ClassVar[list[int]] = []
    error: ClassVar[Exception] = OSError("connection lost")
    opened: ClassVar[int] = 0

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super()._open(path, mode, **options)
        if mode == "rb":
            Flaky.opened += 1
            file = Leaky(file)
        return file

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        fail(0)
        return super().cat_file(path, start, end, **options)


class Leaky:
    def __init__(self, file: Any):
        self._file = file

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read(size)
        fail(self._file.tell())
        return data

    read1 = read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "Leaky":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def fail(position: int) -> None:
    if Flaky.breaks and position >= Flaky.breaks[0]:
        Flaky.breaks.pop(0)
        raise Flaky.error


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> type[Flaky]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(Flaky, "store", {})
    monkeypatch.setattr(Flaky, "breaks", [])
    monkeypatch.setattr(Flaky, "error", OSError("connection lost"))
    monkeypatch.setattr(Flaky, "opened", 0)
    return Flaky


@pytest.mark.parametrize("format_", ["tar", "parquet", "manifest", "images"])
def test_transient_errors_are_read_through(flaky: type[Flaky], format_: Any) -> None:
    make_shards("flaky://data", images_per_shard=60, shards=1, format=format_)
    source = SourceConfig(uri="flaky://data/*.csv" if format_ == "manifest" else "flaky://data")
    (shard,) = list_shards(source)
    full = list(read_samples(shard, source))
    assert len(full) == 60 and all(isinstance(data, bytes) for _, data in full)
    size = flaky.store[fsspec.filesystem("flaky")._strip_protocol(shard.uri)].size if format_ != "images" else 0
    flaky.opened = 0
    flaky.breaks = [size // 3, size // 2, size // 2, size * 3 // 4]
    assert list(read_samples(shard, source)) == full
    assert flaky.breaks == []
    assert flaky.opened == (0 if format_ == "images" else 5)


@pytest.mark.parametrize(
    ("error", "error_type", "opened"),
    [
        (OSError("connection lost"), "ReadFailed", ATTEMPTS),
        (FileNotFoundError("gone"), "NotFound", 1),
        (PermissionError("forbidden"), "Forbidden", 1),
    ],
)
def test_lasting_errors_of_storage_end_the_run(
    flaky: type[Flaky], error: OSError, error_type: str, opened: int
) -> None:
    make_shards("flaky://data", images_per_shard=9, shards=1)
    source = SourceConfig(uri="flaky://data")
    (shard,) = list_shards(source)
    flaky.breaks, flaky.error = [0] * 99, error
    with pytest.raises(RunFailed, match=rf"shard-000000.tar: .*\({error_type}\).*run again to resume"):
        list(read_samples(shard, source))
    assert flaky.opened == opened


def test_a_directory_that_changes_after_it_was_listed_ends_the_run(tmp_path: Path) -> None:
    make_shards(str(tmp_path), images_per_shard=3, shards=1, format="images")
    source = SourceConfig(uri=str(tmp_path))
    (shard,) = list_shards(source)
    assert len(list(read_samples(shard, source))) == 3
    (tmp_path / "class-0" / "000001.jpg").unlink()
    (changed,) = list_shards(source)
    assert changed.fingerprint != shard.fingerprint
    images._images.cache_clear()
    with pytest.raises(RunFailed, match="changed since they were listed"):
        list(read_samples(shard, source))

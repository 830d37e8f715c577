"""Folders on a local disk, in memory and on S3 behave alike: whole writes, one winner, no leftovers."""

import errno
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from birder_ray import retries
from birder_ray.errors import ConfigError
from birder_ray.folder import Folder
from birder_ray.retries import is_transient, retry
from birder_ray.storage import filesystem, is_local, join, open_binary, redact

S3 = pytest.mark.s3


@pytest.fixture(params=["local", "memory", pytest.param("moto", marks=S3), pytest.param("seaweed", marks=S3)])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An empty folder, two levels deep, that does not exist yet."""
    if request.param == "local":
        return Folder(str(tmp_path / "a" / "b"))
    if request.param == "memory":
        return Folder(f"memory://{tmp_path.name}/a/b")
    server = request.getfixturevalue("s3_moto" if request.param == "moto" else "seaweed")
    return Folder(f"{server.url}/a/b", server.options)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", waited.append)
    return waited


def everything_in(path: Path) -> list[str]:
    return sorted(str(found.relative_to(path)) for found in path.rglob("*") if found.is_file())


# reading and writing


def test_what_was_written_is_read_back_and_replaced(folder: Folder) -> None:
    for data in (b"first", b"", b"second, longer" * 1000):
        folder.write("predictions/unit-1.parquet", data)
        assert folder.read("predictions/unit-1.parquet") == data
    assert folder.exists("predictions/unit-1.parquet")
    assert not folder.exists("predictions/unit-2.parquet")


def test_json_keeps_its_order_and_its_letters(folder: Folder) -> None:
    value = {"b": [1, None], "a": "Kråkfågel 🐦"}
    folder.write_json("manifest.json", value)
    assert list(folder.read_json("manifest.json").items()) == list(value.items())
    assert "Kråkfågel 🐦".encode() in folder.read("manifest.json")


def test_a_missing_file_says_so(folder: Folder) -> None:
    for read in (folder.read, folder.read_json):
        with pytest.raises(FileNotFoundError):
            read("none.json")
    folder.write("there.json", b"{}")
    with pytest.raises(FileNotFoundError):
        folder.read("none.json")


def test_broken_json_is_a_value_error(folder: Folder) -> None:
    folder.write("broken.json", b'{"a":')
    with pytest.raises(json.JSONDecodeError):
        folder.read_json("broken.json")


def test_names_lists_files_with_sizes_and_nothing_else(folder: Folder) -> None:
    assert folder.names("_commits") == set()
    folder.write("_commits/u1.json", b"12345")
    folder.write("_commits/u2.json", b"")
    folder.write("_commits/deeper/u3.json", b"1")
    folder.write("_commits-of-another/u4.json", b"1")
    folder.write("_commits/u5.json.0123.tmp", b"of a crash")
    assert folder.names("_commits") == {"u1.json", "u2.json"}


def test_names_sees_what_another_process_wrote_since(folder: Folder) -> None:
    folder.write("t/one", b"1")
    assert set(folder.names("t")) == {"one"}
    Folder(folder.url, folder.options).write("t/two", b"2")
    assert set(folder.names("t")) == {"one", "two"}


@S3
def test_names_leaves_out_the_directory_markers_of_other_tools(s3_moto: Any) -> None:
    folder = Folder(s3_moto.url, s3_moto.options)
    folder.fs.call_s3("put_object", Bucket=s3_moto.bucket, Key="t/", Body=b"")
    folder.write("t/one", b"1")
    assert folder.names("t") == {"one"}


def test_names_of_more_files_than_one_page_of_a_listing(folder: Folder) -> None:
    if folder.options:
        folder.fs.pipe({folder.at(f"many/{index}"): b"x" for index in range(1005)})
    else:
        for index in range(1005):
            folder.write(f"many/{index}", b"x")
    assert len(folder.names("many")) == 1005


def test_deleting_twice_is_deleting_once(folder: Folder) -> None:
    folder.write("_lock.json", b"{}")
    folder.delete("_lock.json")
    folder.delete("_lock.json")
    folder.delete("never/was")
    assert not folder.exists("_lock.json")


# exclusive creation


def test_create_writes_once(folder: Folder) -> None:
    assert folder.create("_lock.json", b"mine") is True
    assert folder.create("_lock.json", b"yours") is False
    assert folder.read("_lock.json") == b"mine"
    folder.delete("_lock.json")
    assert folder.create("_lock.json", b"yours") is True


def test_of_eight_at_once_exactly_one_creates(folder: Folder) -> None:
    barrier = threading.Barrier(8)

    def race(who: int, name: str) -> bool:
        barrier.wait(timeout=30)
        return folder.create(name, str(who).encode())

    with ThreadPoolExecutor(8) as pool:
        for name in ("lock-1", "lock-2", "lock-3"):
            won = list(pool.map(race, range(8), [name] * 8))
            assert sum(won) == 1
            assert folder.read(name) == str(won.index(True)).encode()
    assert set(folder.names("")) == {"lock-1", "lock-2", "lock-3"}


def test_a_create_whose_answer_was_lost_still_counts_as_won(
    monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    folder = Folder("memory://answer-lost")
    write, answers = folder.fs.pipe_file, [TimeoutError("the answer did not come"), None]

    def unlucky(*arguments: Any, **options: Any) -> None:
        write(*arguments, **options)
        if error := answers.pop(0):
            raise error

    monkeypatch.setattr(folder.fs, "pipe_file", unlucky)
    assert folder.create("_lock.json", b"mine") is True


def test_create_leaves_no_temporary_file(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.create("_lock.json", b"mine")
    folder.create("_lock.json", b"yours")
    assert everything_in(tmp_path) == ["_lock.json"]


# a write that fails


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    folder = Folder(str(tmp_path))
    folder.write("t/part", b"old")

    def disk_full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, disk_full)
    for name in ("t/part", "t/new"):
        with pytest.raises(OSError, match="No space left"):
            folder.write(name, b"new")
    monkeypatch.undo()
    assert folder.read("t/part") == b"old"
    assert everything_in(tmp_path) == ["t/part"]


def test_a_failed_create_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(str(tmp_path))

    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "not yours")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(PermissionError):
        folder.create("_lock.json", b"mine")
    assert everything_in(tmp_path) == []


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    folder, seen, stop = Folder(str(tmp_path)), set(), threading.Event()
    contents = [letter * 2_000_000 for letter in (b"a", b"b")]
    folder.write("part", contents[0])

    def read() -> None:
        while not stop.is_set():
            seen.add(folder.read("part"))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(30):
        folder.write("part", contents[turn % 2])
    stop.set()
    reader.join()
    assert seen <= set(contents)


def test_concurrent_writers_of_one_name_leave_one_whole_content(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    contents = [str(who).encode() * 100_000 for who in range(8)]
    threads = [threading.Thread(target=folder.write, args=("part", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folder.read("part") in contents
    assert everything_in(tmp_path) == ["part"]


# retries


class FakeClientError(Exception):
    """Has what a botocore ClientError has."""

    def __init__(self, status: int, code: str | None = None):
        super().__init__(f"status {status}")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code or f"Error{status}"}}


FakeClientError.__name__ = "ClientError"

TRANSIENT = [
    TimeoutError(),
    ConnectionResetError(),
    BrokenPipeError(),
    OSError(errno.EIO, "I/O error"),
    OSError(errno.EBUSY, "SlowDown"),
    FakeClientError(500),
    FakeClientError(503),
    FakeClientError(429),
    FakeClientError(408),
    FakeClientError(400, "RequestTimeout"),
    FakeClientError(400, "IncompleteBody"),
    aiohttp.ClientResponseError(None, (), status=503),  # type: ignore[arg-type]
]
PERMANENT = [
    FileNotFoundError(),
    PermissionError(),
    IsADirectoryError(),
    FileExistsError(),
    OSError(errno.ENOSPC, "full"),
    OSError(errno.ENOSYS, "NotImplemented"),
    OSError(errno.EINVAL, "InvalidBucketName"),
    FakeClientError(400),
    FakeClientError(403),
    FakeClientError(404),
    aiohttp.ClientResponseError(None, (), status=404),  # type: ignore[arg-type]
    ValueError(),
    KeyError(),
    MemoryError(),
]


def failing(errors: list[BaseException]) -> Callable[[], str]:
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return call


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_a_transient_error_is_tried_again(error: Exception, waits: list[float]) -> None:
    assert is_transient(error)
    assert retry(failing([error, error])) == "done"
    assert len(waits) == 2
    assert 0.25 <= waits[0] <= 0.75
    assert 0.5 <= waits[1] <= 1.5


@pytest.mark.parametrize("error", PERMANENT, ids=repr)
def test_a_permanent_error_is_raised_at_once(error: Exception, waits: list[float]) -> None:
    assert not is_transient(error)
    with pytest.raises(type(error)):
        retry(failing([error]))
    assert waits == []


def test_retrying_ends(waits: list[float]) -> None:
    with pytest.raises(TimeoutError, match="third"):
        retry(failing([TimeoutError("first"), TimeoutError("second"), TimeoutError("third")]), attempts=3)
    assert len(waits) == 2


def test_what_an_inner_retry_gave_up_on_is_not_tried_again_outside(waits: list[float]) -> None:
    with pytest.raises(TimeoutError):
        retry(lambda: retry(failing([TimeoutError()] * 99), attempts=3))
    assert len(waits) == 2


def test_a_retry_has_a_deadline(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries.time, "monotonic", lambda: sum(waits))
    with pytest.raises(TimeoutError):
        retry(failing([TimeoutError()] * 99), attempts=99)
    assert 60 < sum(waits) <= retries.DEADLINE_S


def test_interrupting_is_not_an_error_to_retry(waits: list[float]) -> None:
    with pytest.raises(KeyboardInterrupt):
        retry(failing([KeyboardInterrupt()]))
    assert waits == []


@S3
def test_a_wrong_secret_is_refused_without_waiting(seaweed: Any, waits: list[float]) -> None:
    with pytest.raises(PermissionError):
        Folder(seaweed.url, {**seaweed.options, "secret": "wrong"}).read("x")
    assert waits == []


@S3
def test_a_missing_bucket_is_a_missing_file(s3_moto: Any) -> None:
    with pytest.raises(FileNotFoundError):
        Folder(f"{s3_moto.url}-other/x", s3_moto.options).write("part", b"1")


# URLs


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("photos/a?b.jpg", "photos/a?b.jpg"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("s3://bucket/mail@example/a.tar", "s3://bucket/mail@example/a.tar"),
        ("s3://key:secret@bucket/a.tar", "s3://bucket/a.tar"),
        ("https://user:password@host/a.tar", "https://host/a.tar"),
        ("https://host/a.tar?X-Amz-Signature=abc/def", "https://host/a.tar"),
        ("https://host?signature=abc", "https://host"),
        ("simplecache::https://user:password@host/a.tar?signature=abc", "simplecache::https://host/a.tar"),
        ("HTTPS://user:password@host/x?signature=1", "HTTPS://host/x"),
        ("zip://a.jpg::https://user:password@host/b.zip?signature=1", "zip://a.jpg::https://host/b.zip"),
        ("s3://key:se/cret@bucket/x", "s3://bucket/x"),
        ("https://host:8080/mail@example.jpg", "https://host:8080/mail@example.jpg"),
    ],
)
def test_no_credentials_are_shown(url: str, shown: str) -> None:
    assert redact(url) == shown


@pytest.mark.parametrize(
    ("root", "joined"),
    [
        ("a", "a/b/c"),
        ("a/", "a/b/c"),
        ("/", "/b/c"),
        ("s3://bucket", "s3://bucket/b/c"),
        ("s3://bucket/x/", "s3://bucket/x/b/c"),
        ("memory://", "memory://b/c"),
        ("file:///", "file:///b/c"),
    ],
)
def test_join(root: str, joined: str) -> None:
    assert join(root, "b", "c") == joined


@pytest.mark.parametrize(
    ("url", "local"),
    [("a", True), ("/a", True), ("~/a", True), ("file:///a", True), ("s3://b/k", False), ("memory://x", False)],
)
def test_is_local(url: str, local: bool) -> None:
    assert is_local(url) is local


def test_an_unknown_protocol_is_a_configuration_error_without_its_credentials() -> None:
    with pytest.raises(ConfigError, match="gopher://host/x: Protocol not known") as raised:
        filesystem("gopher://me:secret@host/x")
    assert "secret" not in str(raised.value)


def test_reading_any_url(folder: Folder) -> None:
    folder.write("shard.tar", b"0123456789")
    url = join(folder.url, "shard.tar")
    with open_binary(url, folder.options) as file:
        file.seek(4)
        assert file.read(2) == b"45"

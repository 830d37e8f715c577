"""WebDataset tars: groups, labels, and damage wherever it strikes."""

import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from birder_ray.config import SourceConfig
from birder_ray.errors import SampleError, ShardDamaged
from birder_ray.source import Item, count_samples, list_shards, read_samples
from birder_ray.testing import make_images, make_shards

Members = Sequence[tuple[str, bytes]]


def packed(members: Members, **options: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def read(folder: Path, data: bytes, name: str = "s.tar", **config: str) -> tuple[list[Item], ShardDamaged | None]:
    (folder / name).write_bytes(data)
    source = SourceConfig(uri=str(folder / name), **config)
    (shard,) = list_shards(source)
    items: list[Item] = []
    try:
        items.extend(read_samples(shard, source))
    except ShardDamaged as error:
        return items, error
    return items, None


def collect(folder: Path, members: Members, **config: str) -> list[tuple[str, str | None]]:
    items, error = read(folder, packed(members), **config)
    assert error is None
    assert [sample.index for sample, _ in items] == list(range(len(items)))
    return [(sample.sample, sample.label) for sample, _ in items]


def test_samples_labels_and_bytes_are_those_written(tmp_path: Path) -> None:
    truth = make_shards(str(tmp_path), images_per_shard=5, shards=2)
    source = SourceConfig(uri=str(tmp_path))
    found = [
        (sample.sample, shard.name, sample.index, sample.label, data)
        for shard in list_shards(source)
        for sample, data in read_samples(shard, source)
    ]
    images = make_images(5, 0) + make_images(5, 1)
    assert found == [(*row, image) for row, image in zip(truth, images, strict=True)]


@pytest.mark.parametrize(
    ("files", "column", "label"),
    [
        ({"cls": b" 7\n", "json": b'{"label": "fox"}', "txt": b"a photo"}, None, "7"),
        ({"json": b'{"label": "fox", "cls": 3}', "txt": b"a photo"}, None, "fox"),
        ({"json": b'{"cls": 3}', "txt": b"a photo"}, None, "3"),
        ({"json": b'{"species": "r\xc3\xa4v"}', "cls": b"7"}, "species", "räv"),
        ({"json": b'{"species": null}', "cls": b"7"}, "species", None),
        ({"json": b"not json", "txt": "räv".encode()}, None, "räv"),
        ({"json": b'["fox"]'}, None, None),
        ({}, None, None),
    ],
)
@pytest.mark.parametrize("image_first", [True, False])
def test_label(tmp_path: Path, files: dict[str, bytes], column: str | None, label: str, image_first: bool) -> None:
    image, labels = ("a.jpg", b"image"), [(f"a.{suffix}", data) for suffix, data in files.items()]
    members = [image, *labels] if image_first else [*labels, image]
    config = {"label_column": column} if column else {}
    assert collect(tmp_path, [*members, ("b.jpg", b"image")], **config) == [("s.tar/a", label), ("s.tar/b", None)]


def test_keys_are_paths_up_to_the_first_dot_of_the_file_name(tmp_path: Path) -> None:
    members = [("./v1.0/räv 1.JPG", b"1"), ("./v1.0/räv 1.cls", b"x"), ("../up.webp", b"2"), ("/abs.png", b"3")]
    assert collect(tmp_path, members) == [
        ("s.tar/v1.0/räv 1", "x"), ("s.tar/../up", None), ("s.tar//abs", None),
    ]  # fmt: skip


def test_ids_stay_unique(tmp_path: Path) -> None:
    members = [("a.jpg", b"1"), ("a.jpg", b"2"), ("b.jpg", b"3"), ("a.png", b"4"), ("a#3.jpg", b"5")]
    names = [name for name, _ in collect(tmp_path, members)]
    assert names == ["s.tar/a", "s.tar/a#1", "s.tar/b", "s.tar/a#3", "s.tar/a#3#4"]


def test_photos_with_dots_in_their_names_are_not_lost_and_masks_are_no_photos(tmp_path: Path) -> None:
    members = [("IMG.1.jpg", b"1"), ("IMG.2.jpg", b"2"), ("x.jpg", b"3"), ("x.mask.png", b"4")]
    assert [name for name, _ in collect(tmp_path, members)] == ["s.tar/IMG.1", "s.tar/IMG.2", "s.tar/x"]


def test_what_is_no_sample_is_passed_over(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind in [("d", tarfile.DIRTYPE), ("link.jpg", tarfile.SYMTYPE), ("a.jpg", tarfile.REGTYPE)]:
            member = tarfile.TarInfo(name)
            member.type = kind
            tar.addfile(member)
        nested = packed([("n.jpg", b"nested")])
        for name in ("inner.tar", "._b.jpg", "__MACOSX/b.jpg", ".c/b.jpg", "noextension", "orphan.cls"):
            member = tarfile.TarInfo(name)
            member.size = len(nested)
            tar.addfile(member, io.BytesIO(nested))
    ((sample, data),), error = read(tmp_path, file.getvalue())
    assert (sample.sample, error) == ("s.tar/a", None)
    assert isinstance(data, SampleError) and data.error_type == "EmptyFile"


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_tar_flavour(tmp_path: Path, format_: int) -> None:
    name = "/".join(["ä" * 30] * 3)
    ((sample, _),), error = read(tmp_path, packed([(f"{name}.jpg", b"1")], format=format_))
    assert (sample.sample, error) == (f"s.tar/{name}", None)


@pytest.mark.parametrize(
    ("data", "error_type"),
    [(packed([]), None), (b"", "EmptyFile"), (b"x" * 5000, "DamagedTar"), (b"x", "TruncatedTar")],
)
def test_tar_without_members(tmp_path: Path, data: bytes, error_type: str | None) -> None:
    items, error = read(tmp_path, data)
    assert items == []
    assert (error and error.error_type) == error_type


CONTENT = packed([(f"{i:03d}.{kind}", b"%d" % i * 700) for i in range(12) for kind in ("jpg", "cls")])
END = 24 * 512 + sum(-(-len(b"%d" % i * 700) // 512) * 512 * 2 for i in range(12))
"""Where the last member of CONTENT ends and the end-of-archive mark begins."""


def whole(cut: int, suffix: str) -> int:
    """Images or labels of CONTENT that lie in its first `cut` bytes."""
    with tarfile.open(fileobj=io.BytesIO(CONTENT)) as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(suffix)]
    return sum(member.offset_data + member.size <= cut for member in members)


@pytest.mark.parametrize("cut", [*range(1, END, END // 30), END - 1, END])
def test_tar_cut_anywhere_keeps_what_was_whole_and_says_so(tmp_path: Path, cut: int) -> None:
    items, error = read(tmp_path, CONTENT[:cut])
    assert error is not None and error.error_type == "TruncatedTar"
    assert len(items) == whole(cut, "jpg")
    labels = [sample.label for sample, _ in items if sample.label is not None]
    assert labels == [str(i) * 700 for i in range(whole(cut, "cls"))]


def test_cut_inside_the_end_mark_loses_nothing(tmp_path: Path) -> None:
    items, error = read(tmp_path, CONTENT[: END + 600])
    assert (len(items), error) == (12, None)


def test_cut_inside_a_label_leaves_its_sample_without(tmp_path: Path) -> None:
    data = packed([("a.jpg", b"1" * 600), ("b.jpg", b"2" * 600), ("b.cls", b"x" * 600)])
    items, error = read(tmp_path, data[: 2 * (512 + 1024) + 512 + 300])
    assert [(sample.sample, sample.label) for sample, _ in items] == [("s.tar/a", None), ("s.tar/b", None)]
    assert error is not None and error.error_type == "TruncatedTar"


def test_garbled_header_is_damage_not_the_end(tmp_path: Path) -> None:
    member = 512 + 1024
    data = bytearray(packed([(f"{i}.jpg", b"x" * 600) for i in range(10)]))
    data[4 * member + 100] ^= 0xFF
    items, error = read(tmp_path, bytes(data))
    assert [sample.index for sample, _ in items] == [0, 1, 2, 3]
    assert error is not None and error.error_type == "DamagedTar" and f"byte {4 * member}" in str(error)


def test_zeroed_header_is_damage_not_the_end(tmp_path: Path) -> None:
    member = 512 + 1024
    data = bytearray(packed([(f"{i}.jpg", b"x" * 600) for i in range(10)]))
    data[4 * member : 4 * member + 512] = bytes(512)
    items, error = read(tmp_path, bytes(data))
    assert len(items) == 4
    assert error is not None and error.error_type == "DamagedTar"


def test_zeros_after_a_header_for_the_next_member(tmp_path: Path) -> None:
    data = bytearray(packed([("ä" * 60 + ".jpg", b"x")], format=tarfile.PAX_FORMAT))
    data[1024:] = bytes(len(data) - 1024)
    items, error = read(tmp_path, bytes(data))
    assert items == []
    assert error is not None and error.error_type == "DamagedTar"


@pytest.mark.parametrize("name", ["s.tar.gz", "s.tgz"])
def test_gzip(tmp_path: Path, name: str) -> None:
    half = len(CONTENT) // 2
    data = gzip.compress(CONTENT[:half]) + gzip.compress(CONTENT[half:])  # as bgzip and pigz may leave it
    items, error = read(tmp_path, data, name)
    assert ([sample.label for sample, _ in items], error) == ([str(i) * 700 for i in range(12)], None)
    _, error = read(tmp_path, data[:-40], name)
    assert error is not None and error.error_type == "TruncatedTar"
    for damaged in (data[:-6] + b"oops!!", data[:12] + b"\xff" * 50 + data[62:], CONTENT):
        _, error = read(tmp_path, damaged, name)
        assert error is not None and error.error_type == "DamagedTar"


def test_resume_gives_the_tail_of_a_full_read(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(packed([(f"{i % 4}.jpg", b"%d" % i) for i in range(20)]))
    source = SourceConfig(uri=str(tmp_path))
    (shard,) = list_shards(source)
    full = list(read_samples(shard, source))
    assert list(read_samples(shard, source, start=7)) == full[7:]
    assert list(read_samples(shard, source, 3, lambda index: index % 5 == 0)) == [full[5], full[10], full[15]]


def test_count_stops_at_the_limit_or_at_damage(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(CONTENT[: END // 2])
    source = SourceConfig(uri=str(tmp_path))
    (shard,) = list_shards(source)
    assert [count_samples(shard, source, at_most) for at_most in (3, 100)] == [3, whole(END // 2, "jpg")]


def test_uri_names_the_member_but_no_secret(tmp_path: Path) -> None:
    ((sample, _),), _ = read(tmp_path, packed([("a/b.jpg", b"1"), ("a/b.json", json.dumps({}).encode())]))
    assert sample.uri == f"{tmp_path}/s.tar#a/b.jpg"


def _header(kind: bytes, size: int) -> bytearray:
    header = tarfile.TarInfo("a.jpg")
    header.size, header.type = size, kind
    return bytearray(header.tobuf(tarfile.GNU_FORMAT))


def _checked(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _sparse() -> bytes:
    """512 bytes stored, 3 GiB read."""
    header = _header(tarfile.GNUTYPE_SPARSE, 512)
    header[386:410], header[483:495] = b"%011o\0%011o\0" % (0, 512), b"%011o\0" % (3 << 30)
    return _checked(header) + b"x" * 512


def _endless(name: str) -> bytes:
    """Of 2 EiB, by its header."""
    header = _header(tarfile.REGTYPE, 0)
    header[: len(name)], header[124:136] = name.encode(), b"\x80" + (1 << 61).to_bytes(11, "big")
    return _checked(header)


def _negative() -> bytes:
    header = _header(tarfile.REGTYPE, 0)
    header[124:136] = b"\xff" * 11 + b"\x00"
    return _checked(header)


@pytest.mark.parametrize(
    ("member", "told"),
    [
        (_sparse(), "TooLarge"),
        (bytes(_header(tarfile.GNUTYPE_LONGNAME, 2 << 30)), "DamagedTar"),
        (bytes(_header(tarfile.XHDTYPE, 2 << 30)), "DamagedTar"),
        (bytes(_header(tarfile.REGTYPE, 2 << 30)), "TooLarge"),
        (_endless("a.jpg"), "TooLarge"),
        (_endless("a.bin"), "TruncatedTar"),
        (_negative(), "DamagedTar"),
    ],
    ids=["sparse", "long name", "pax", "member", "endless", "endless and unused", "negative"],
)
def test_archives_made_to_fill_the_memory(tmp_path: Path, member: bytes, told: str) -> None:
    """None of these is read, nor stepped over in silence: the sample before stands, and what is wrong is said."""
    before = packed([("first.jpg", b"1")])[: 2 * tarfile.BLOCKSIZE]
    items, error = read(tmp_path, before + member + bytes(10240))
    assert items[0][1] == b"1"
    found = [data.error_type for _, data in items if isinstance(data, SampleError)]
    assert told in [*found, error.error_type if error else None]
    assert error is not None or told == "TooLarge"
    assert all(isinstance(data, SampleError) or len(data) < 10 for _, data in items)

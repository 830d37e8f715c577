"""What is mutated: whole files of every format, from real photos where they are present, else drawn by Pillow."""

import io
import random
import tarfile
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SHARED = Path(__file__).resolve().parents[3] / "shared"
IMAGE_KINDS = ("jpeg", "png", "webp", "tiff", "gif")
SHARD_KINDS = ("tar", "parquet", "manifest")
KINDS = IMAGE_KINDS + SHARD_KINDS
ROWS = 6
"""Samples in a whole tar, Parquet file or manifest."""


@cache
def seeds(kind: str) -> tuple[bytes, ...]:
    """Undamaged files of `kind`, always the same ones in the same order."""
    if kind == "tar":
        return tuple(_tar(form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    if kind == "parquet":
        return tuple(_parquet(**options) for options in _PARQUETS)
    if kind == "manifest":
        return tuple(_manifest(mark) for mark in (",", ',"fox, red",'))
    images = _photos()
    files = [_encoded(image, kind, **options) for image in images[:3] for options in _OPTIONS[kind]]
    return (*files, *_originals()) if kind == "jpeg" else tuple(files)


_OPTIONS: dict[str, tuple[dict, ...]] = {
    "jpeg": ({}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}, {"restart_marker_blocks": 3, "quality": 50}),
    "png": ({}, {"mode": "P"}, {"mode": "RGBA"}, {"mode": "1"}, {"mode": "I;16"}, {"icc_profile": bytes(3000)}),
    "webp": ({}, {"lossless": True}, {"mode": "RGBA"}, {"save_all": True, "frames": 2}),
    "tiff": (
        {}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"compression": "tiff_adobe_deflate"},
        {"compression": "group4", "mode": "1"}, {"mode": "P"}, {"save_all": True, "frames": 3},
    ),
    "gif": ({}, {"save_all": True, "frames": 3}),
}  # fmt: skip
_PARQUETS: tuple[dict, ...] = (
    {"compression": "none"}, {"compression": "snappy", "use_dictionary": False},
    {"compression": "zstd", "nested": True},
    {"compression": "gzip", "data_page_version": "2.0", "row_group_size": 2},
)  # fmt: skip


@cache
def _photos() -> tuple[Image.Image, ...]:
    paths = sorted((SHARED / "photos").glob("*.JPEG"))[:ROWS]
    images = [Image.open(path).convert("RGB") for path in paths] or [_drawn(number) for number in range(ROWS)]
    for image in images:
        image.thumbnail((90, 90))
    return tuple(images)


@cache
def _originals() -> tuple[bytes, ...]:
    """Real files as their cameras and programs wrote them, but for the largest."""
    paths = [*sorted((SHARED / "awkward").glob("*.jpg")), *sorted((SHARED / "photos").glob("*.JPEG"))[:20]]
    return tuple(path.read_bytes() for path in paths if path.stat().st_size < 80_000)


def _drawn(number: int) -> Image.Image:
    noise = Image.frombytes("L", (90, 70), random.Random(number).randbytes(6300))
    return Image.merge("RGB", (noise, Image.linear_gradient("L").resize((90, 70)), noise.rotate(180)))


def _encoded(image: Image.Image, kind: str, mode: str = "RGB", frames: int = 1, **options) -> bytes:
    packed = io.BytesIO()
    more = [image.rotate(90 * turn) for turn in range(1, frames)]
    if frames > 1:
        options["append_images"] = more
    (image if mode == "RGB" else image.convert("L").convert(mode)).save(packed, kind, **options)
    return packed.getvalue()


def _images() -> list[bytes]:
    kinds = ("jpeg", "png", "webp", "jpeg", "tiff", "png")
    return [_encoded(image, kind) for image, kind in zip(_photos(), kinds, strict=True)]


def _tar(form: int) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as tar:
        for number, data in enumerate(_images()):
            long = "wüste/" * 20 if number == 2 and form != tarfile.USTAR_FORMAT else ""
            for suffix, content in ((".jpg", data), (".cls", str(number).encode()), (".json", b'{"label": "fox"}')):
                member = tarfile.TarInfo(f"{long}{number:03d}{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _parquet(nested: bool = False, row_group_size: int | None = None, **options) -> bytes:
    images: list = _images()
    images = [{"bytes": data, "path": f"{number}.jpg"} for number, data in enumerate(images)] if nested else images
    table = pa.table({"image": images, "label": [f"füchse {number}" for number in range(ROWS)]})
    packed = io.BytesIO()
    pq.write_table(table, packed, row_group_size=row_group_size, **options)
    return packed.getvalue()


def _manifest(between: str) -> bytes:
    """The images are made up: what a row of a damaged manifest leads to does not matter."""
    commas = between.replace('"fox, red"', "").count(",")
    header = ",".join(["url", "species", "id"][: commas + 1])
    rows = [f"data:,photo-{number}{between}{number}" for number in range(ROWS)]
    return "\r\n".join([header, *rows]).encode() + b"\r\n"

"""Damage, by the seed: general kinds, and such as get past a format's checksums to the code behind them."""

import random
import struct
import zlib

from tests.fuzz.corpus import seeds

_EXTREMES = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 60_000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutant(kind: str, seed: int, number: int) -> bytes:
    """The `number`-th mutant of `kind`; the same for the same arguments and corpus."""
    draw = random.Random(f"{kind} {seed} {number}")
    data = bytearray(draw.choice(seeds(kind)))
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        data = bytearray(draw.choice(_GENERAL + _OWN.get(kind, []) * 3)(data, draw, kind))
        if not data:
            break
    if draw.random() < 0.75:
        _MEND.get(kind, lambda data: None)(data)
    return bytes(data)


def _flip(data, draw, kind):
    for _ in range(draw.choice((1, 2, 10, 100))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return data


def _flip_early(data, draw, kind):
    data[draw.randrange(min(len(data), 256))] = draw.randrange(256)
    return data


def _cut(data, draw, kind):
    return data[: draw.randrange(len(data))]


def _lose(data, draw, kind):
    at = draw.randrange(len(data))
    return data[:at] + data[at + draw.choice((1, 4, 64, 512, 3000)) :]


def _double(data, draw, kind):
    at, size = draw.randrange(len(data)), draw.choice((1, 4, 64, 512, 3000))
    return data[:at] + data[at : at + size] * draw.choice((2, 2, 50)) + data[at + size :]


def _splice(data, draw, kind):
    other = draw.choice(seeds(draw.choice(("jpeg", "png", "webp", "tiff", kind))))
    at, start = draw.randrange(len(data)), draw.randrange(len(other))
    return data[:at] + other[start : start + draw.choice((16, 512, 100_000))] + data[at:]


def _length(data, draw, kind):
    """A number of 1 to 4 bytes becomes an extreme one; likelier near the start or the end, where headers are."""
    size, order = draw.choice((1, 2, 4, 4)), draw.choice(("big", "little"))
    span = draw.choice((64, 600, len(data)))
    at = draw.randrange(min(span, len(data)))
    at = at if draw.random() < 0.7 else len(data) - 1 - at
    value = draw.choice(_EXTREMES) & (1 << 8 * size) - 1
    data[at : at + size] = value.to_bytes(size, order)
    return data


def _zero(data, draw, kind):
    at, size = draw.randrange(len(data)), draw.choice((4, 512, 2000))
    data[at : at + size] = bytes([draw.choice((0, 255))]) * len(data[at : at + size])
    return data


def _jpeg_segment(data, draw, kind):
    """A segment's length, a byte of its head, or all of it once more."""
    marks = [at for at in range(len(data) - 10) if data[at] == 0xFF and 0xC0 <= data[at + 1] < 0xFF]
    if not marks:
        return data
    at = draw.choice(marks)
    how = draw.randrange(4)
    if how == 0:
        data[at + 2 : at + 4] = draw.choice(_EXTREMES).to_bytes(4, "big")[-2:]
    elif how == 1:
        data[at + draw.randrange(1, 10)] = draw.randrange(256)
    elif how == 2:
        data[at + 5 : at + 9] = struct.pack(">HH", *(draw.choice(_EXTREMES) & 0xFFFF for _ in range(2)))
    else:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        data = data[:end] + data[at:end] * draw.choice((1, 30)) + data[end:]
    return data


def _png_chunks(data) -> list[tuple[int, int]]:
    """Where chunks start and what they say of the length of their data."""
    at, found = 8, []
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append((at, min(size, len(data) - at - 12)))
        at += size + 12
    return found


def _png_chunk(data, draw, kind):
    chunks = _png_chunks(data)
    if not chunks:
        return data
    at, size = draw.choice(chunks)
    how = draw.randrange(5)
    if how == 0:
        data[at : at + 4] = draw.choice(_EXTREMES).to_bytes(4, "big")
    elif how == 1:
        data[at + 4 : at + 8] = draw.choice((b"IDAT", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"IEND", b"fcTL", b"eXIf"))
    elif how == 2 and size:
        for _ in range(draw.choice((1, 4, 40))):
            data[at + 8 + draw.randrange(size)] = draw.randrange(256)
    elif how == 3:
        data = data[:at] + data[at : at + size + 12] * draw.choice((2, 40)) + data[at + size + 12 :]
    elif len(data) > 29:
        data[16 + draw.randrange(13)] = draw.randrange(256)  # width, height, depth, colour, ...
    return data


def _png_mend(data) -> None:
    for at, size in _png_chunks(data):
        data[at + size + 8 : at + size + 12] = zlib.crc32(data[at + 4 : at + 8 + size]).to_bytes(4, "big")


def _tiff_entry(data, draw, kind):
    """A tag's number, type, count or value."""
    order = "little" if data[:2] == b"II" else "big"
    at = int.from_bytes(data[4:8], order)
    entries = int.from_bytes(data[at : at + 2], order)
    if not 0 < entries < 1000 or at + 2 + 12 * entries > len(data):
        return data
    entry = at + 2 + 12 * draw.randrange(entries)
    offset, size = draw.choice(((0, 2), (2, 2), (4, 4), (8, 4), (8, 2)))
    value = draw.choice((*_EXTREMES, draw.randrange(1 << 16))) & (1 << 8 * size) - 1
    data[entry + offset : entry + offset + size] = value.to_bytes(size, order)
    return data


_FIELDS = ((0, 100), (100, 8), (124, 12), (124, 12), (136, 12), (148, 8), (156, 1), (156, 1), (257, 8), (345, 155))


def _tar_field(data, draw, kind):
    headers = _tar_headers(data)
    if not headers:
        return data
    at = draw.choice(headers)
    offset, size = draw.choice(_FIELDS)
    value = draw.choice((
        draw.randbytes(size), bytes(size), b"7" * (size - 1) + b"\0", b"\x80" + draw.randbytes(size - 1),
        b"\xff" * size, b"../../../etc/x.jpg", b"%0*o\0" % (size - 1, draw.choice(_EXTREMES)),
        draw.choice((b"L", b"K", b"x", b"g", b"S", b"1", b"2", b"5", b"V", b"7")),
    ))  # fmt: skip
    data[at + offset : at + offset + size] = value[:size].ljust(size, b"\0")
    return data


def _tar_headers(data) -> list[int]:
    return [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]


def _tar_mend(data) -> None:
    for at in _tar_headers(data):
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


def _parquet_footer(data, draw, kind):
    """Bytes of the footer, which is Thrift without a checksum, or of the first page's header."""
    size = int.from_bytes(data[-8:-4], "little")
    start = max(0, len(data) - 8 - size) if draw.random() < 0.8 else 4
    for _ in range(draw.choice((1, 1, 2, 6))):
        at = start + draw.randrange(max(1, min(size, 900)))
        if at < len(data):
            data[at] = draw.choice((draw.randrange(256), data[at] ^ 1, data[at] ^ 0x80))
    return data


def _webp_chunk(data, draw, kind):
    at = 12
    starts = []
    while at + 8 < len(data):
        starts.append(at)
        at += 8 + (int.from_bytes(data[at + 4 : at + 8], "little") + 1) // 2 * 2
    if not starts:
        return data
    at = draw.choice(starts)
    if draw.random() < 0.5:
        data[at + 4 : at + 8] = draw.choice(_EXTREMES).to_bytes(4, "little")
    else:
        data[min(at + 8 + draw.randrange(24), len(data) - 1)] = draw.randrange(256)
    return data


_GENERAL = [_flip, _flip_early, _cut, _lose, _double, _splice, _length, _zero]
_OWN = {
    "jpeg": [_jpeg_segment], "png": [_png_chunk], "tiff": [_tiff_entry], "webp": [_webp_chunk], "tar": [_tar_field],
    "parquet": [_parquet_footer],
}  # fmt: skip
_MEND = {"png": _png_mend, "tar": _tar_mend}

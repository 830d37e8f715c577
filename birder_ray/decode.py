"""Encoded bytes → resized uint8 pixels, equal bit for bit to birder's."""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from itertools import dropwhile, takewhile
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from birder_ray.chunk import InputSpec
from birder_ray.errors import SampleError
from birder_ray.source.base import FORMATS, MAX_PIXELS

_TORCHVISION_FORMATS = {"JPEG", "MPO", "PNG", "WEBP", "GIF"}
_PNG_BLOCK = 1 << 20
_PNG_FEED = 1 << 14  # what is left of it is copied at every call
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_CPP_LOCATION = re.compile(r"^.*?\.cpp:\d+, ")
_CUT_SHORT = re.compile(r"truncated|incomplete|not enough image data", re.IGNORECASE)


class Decoder:
    """Decodes, resizes and crops single images.

    Args:
        spec: the input wanted.
    """

    def __init__(self, spec: InputSpec):
        self.spec = spec
        self._base = (int(spec.size[0] / spec.center_crop), int(spec.size[1] / spec.center_crop))

    def image(self, data: bytes) -> torch.Tensor:
        """The network's view of one encoded image: C,H,W uint8 or uint16.

        Raises:
            SampleError: `EmptyFile`, `UndecodableImage`, `TruncatedImage` or `DecompressionBomb`.
        """
        if not data:
            raise SampleError("EmptyFile", "the file has no bytes")
        try:
            image = self.fitted(self._decode(data))
            pixels: torch.Tensor = F.pil_to_tensor(image) if isinstance(image, Image.Image) else image
            return pixels
        except (SampleError, MemoryError):
            raise
        except Exception as error:
            raise _sample_error(error) from error

    def fitted(self, image: Any) -> Any:
        """A PIL image or C,H,W tensor, resized and cropped. Raises SampleError `DecompressionBomb`."""
        height, width = F.get_size(image)
        target = self._cover(height, width) if self.spec.simple_crop else self._base
        if target[0] * target[1] > MAX_PIXELS:
            raise SampleError("DecompressionBomb", f"{width} x {height} px: too elongated to be cropped simply")
        if height * target[1] > MAX_PIXELS:  # torch resizes the rows first, then the columns
            raise SampleError("DecompressionBomb", f"{width} x {height} px: too tall to be resized")
        image = F.resize(image, list(target), interpolation=InterpolationMode.BICUBIC, antialias=True)
        return F.center_crop(image, list(self.spec.size))

    def _decode(self, data: bytes) -> Any:
        """A PIL image, or a C,H,W tensor."""
        # Refuses more than MAX_PIXELS, before anything is decoded
        header = Image.open(io.BytesIO(data), formats=FORMATS)
        mode = "L" if self.spec.channels == 1 else "RGB"
        if self.spec.decoder == "pil":
            return header.convert(mode)
        if not _torchvision_reads(header, mode):
            return F.pil_to_tensor(header.convert(mode))
        if header.format == "PNG":  # a damaged one kills the process inside torchvision's decoder
            header.verify()  # checksums and the end mark
            _check_png(data)
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decode_image(encoded, mode=ImageReadMode.GRAY if mode == "L" else ImageReadMode.RGB)

    def _cover(self, height: int, width: int) -> tuple[int, int]:
        base_height, base_width = self._base
        return max(base_height, base_width * height // width), max(base_width, base_height * width // height)


def _torchvision_reads(header: Image.Image, mode: str) -> bool:
    if header.format in ("GIF", "WEBP") and mode == "L":  # torchvision gives them three channels all the same
        return False
    if header.format in ("GIF", "WEBP") and getattr(header, "is_animated", False):
        return False
    return header.format in _TORCHVISION_FORMATS


def _check_png(data: bytes) -> None:
    """Raises where libpng would fail amid the pixels: its error handler then jumps into a frame that has returned.

    It fails unless the first run of IDAT chunks unpacks, with a window no larger than it says itself, to every row of
    the image, each with a known filter. Pillow takes a stream that ends too early for black rows.
    """
    chunks = list(_png_chunks(data))
    if not chunks or chunks[0][0] != b"IHDR":
        raise SampleError("UndecodableImage", "the PNG does not begin with its header")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1][:13])
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    packed = takewhile(lambda chunk: chunk[0] == b"IDAT", dropwhile(lambda chunk: chunk[0] != b"IDAT", chunks))
    unpacked = _Unpacked(b"".join(content for _, content in packed))
    for x, y, every_x, every_y in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // every_x), -(-(height - y) // every_y)
        line = 1 + -(-columns * bits // 8)
        while columns > 0 and rows > 0:
            size = min(rows, max(1, unpacked.at_once // line)) * line
            block = unpacked.take(size)
            if len(block) < size:
                raise SampleError("TruncatedImage", f"{rows - len(block) // line} of {height} rows are missing")
            if max(block[::line]) > 4:
                raise SampleError("UndecodableImage", "unknown filter of a row")
            rows -= size // line
    more = unpacked.take(_PNG_BLOCK)  # the checksum; surplus pixels do no harm
    if len(more) < _PNG_BLOCK and not unpacked.stream.eof:
        raise SampleError("TruncatedImage", "the pixels have no end mark")


class _Unpacked:
    """A zlib stream as libpng unpacks it. `at_once`: bytes to take that make no difference: less than a row where the
    stream says that its window is smaller than 32 KiB, as zlib does not look at what it has just written."""

    def __init__(self, packed: bytes):
        self.stream = zlib.decompressobj(wbits=0)
        self.at_once = _PNG_BLOCK if packed[:1] and packed[0] >> 4 == 7 else 1
        self._packed = packed
        self._at = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end. Raises zlib.error."""
        taken = b""
        feed = self.stream.unconsumed_tail
        while feed or self._at < len(self._packed):
            if not feed:
                feed = self._packed[self._at : self._at + _PNG_FEED]
                self._at += len(feed)
            taken += self.stream.decompress(feed, size - len(taken))
            if len(taken) == size or self.stream.eof:
                break
            feed = b""
        return taken


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    at, view = 8, memoryview(data)
    while at + 8 <= len(data):
        (size,) = struct.unpack(">I", view[at : at + 4])
        yield bytes(view[at + 4 : at + 8]), view[at + 8 : at + 8 + size]
        at += size + 12


def _sample_error(error: Exception) -> SampleError:
    message = _CPP_LOCATION.sub("", " ".join(str(error).split()))
    if isinstance(error, Image.DecompressionBombError):
        return SampleError("DecompressionBomb", f"more than {MAX_PIXELS} pixels: {message}")
    if isinstance(error, UnidentifiedImageError):
        return SampleError("UndecodableImage", "not an image of a known format, or its header is damaged")
    if "allocate memory" in message:
        raise MemoryError(message) from error
    if _CUT_SHORT.search(message):
        return SampleError("TruncatedImage", message)
    return SampleError("UndecodableImage", message or type(error).__name__)

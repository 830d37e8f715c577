"""The preprocessing step: encoded bytes → resized uint8 pixels, equal bit for bit to birder's. Knows nothing of Ray."""

import io
import re
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from birder_ray.chunk import Chunk, ErrorRow, Sample
from birder_ray.errors import SampleError
from birder_ray.schema import DECODE

MAX_PIXELS = 178_956_970
"""Pillow's limit for an image; here, of an image as resized too."""

_TORCHVISION_FORMATS = {"JPEG", "MPO", "PNG", "WEBP", "GIF"}
_CPP_LOCATION = re.compile(r"^.*?\.cpp:\d+, ")
_CUT_SHORT = re.compile(r"truncated|incomplete|not enough image data", re.IGNORECASE)


@dataclass(frozen=True)
class InputSpec:
    """How an image becomes the input of a network, as in birder's `inference_preset`.

    Args:
        size: height and width in pixels.
        center_crop: fraction of the resized image that the crop keeps.
        simple_crop: resize until `size` is covered, keeping the aspect ratio, then crop.
        decoder: `torchvision` as `birder-predict` does, `pil` as the model cards' `infer_image` does.
        channels: 3 (RGB) or 1 (grey).
    """

    size: tuple[int, int]
    center_crop: float = 1.0
    simple_crop: bool = False
    decoder: Literal["torchvision", "pil"] = "torchvision"
    channels: int = 3


class Preprocess:
    """Decodes, resizes and crops the images of chunks.

    Args:
        spec: the input wanted.
        threads: torch's CPU threads, process-wide; None leaves them as they are.
    """

    def __init__(self, spec: InputSpec, threads: int | None = None):
        if threads is not None:
            torch.set_num_threads(threads)
        self.spec = spec
        self._base = (int(spec.size[0] / spec.center_crop), int(spec.size[1] / spec.center_crop))

    def __call__(self, chunk: Chunk) -> Chunk:
        """Replace `data` by `images`: N,H,W,C uint8, or, if any image has 16 bits per channel, float32 in 0..1.

        A sample that cannot be decoded becomes an error row.
        """
        start = time.perf_counter()
        assert chunk.data is not None, "preprocess follows read"
        samples: list[Sample] = []
        errors: list[ErrorRow] = []
        images: list[torch.Tensor] = []
        for sample, data in zip(chunk.samples, chunk.data, strict=True):
            try:
                images.append(self.image(data))
                samples.append(sample)
            except SampleError as error:
                errors.append(sample.failed(DECODE, error))
        return chunk.after(DECODE, time.perf_counter() - start, samples, errors, images=self._stack(images))

    def image(self, data: bytes) -> torch.Tensor:
        """The network's view of one encoded image: C,H,W uint8 or uint16.

        Raises:
            SampleError: `EmptyFile`, `UndecodableImage`, `TruncatedImage` or `DecompressionBomb`.
        """
        if not data:
            raise SampleError("EmptyFile", "the file has no bytes")
        try:
            image = self._decode(data)
            height, width = F.get_size(image)
            target = self._cover(height, width) if self.spec.simple_crop else self._base
            if target[0] * target[1] > MAX_PIXELS:
                raise SampleError("DecompressionBomb", f"{width} x {height} px: too elongated to be cropped simply")
            image = F.resize(image, list(target), interpolation=InterpolationMode.BICUBIC, antialias=True)
            image = F.center_crop(image, list(self.spec.size))
            pixels: torch.Tensor = F.pil_to_tensor(image) if isinstance(image, Image.Image) else image
            return pixels
        except (SampleError, MemoryError):
            raise
        except Exception as error:
            raise _sample_error(error) from error

    def _decode(self, data: bytes) -> Any:
        """A PIL image, or a C,H,W tensor."""
        header = Image.open(io.BytesIO(data))  # refuses more than MAX_PIXELS, before anything is decoded
        mode = "L" if self.spec.channels == 1 else "RGB"
        if self.spec.decoder == "pil":
            return header.convert(mode)
        if not _torchvision_reads(header, mode):
            return F.pil_to_tensor(header.convert(mode))
        if header.format == "PNG":
            # A damaged PNG kills the process inside torchvision's decoder: let Pillow find the damage first.
            header.load()
            Image.open(io.BytesIO(data)).verify()
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decode_image(encoded, mode=ImageReadMode.GRAY if mode == "L" else ImageReadMode.RGB)

    def _cover(self, height: int, width: int) -> tuple[int, int]:
        base_height, base_width = self._base
        return max(base_height, base_width * height // width), max(base_width, base_height * width // height)

    def _stack(self, images: list[torch.Tensor]) -> np.ndarray:
        if not images:
            return np.empty((0, *self.spec.size, self.spec.channels), np.uint8)
        if any(image.dtype != torch.uint8 for image in images):
            images = [F.to_dtype(image, torch.float32, scale=True) for image in images]
        stacked: np.ndarray = torch.stack([image.permute(1, 2, 0) for image in images]).numpy()
        return stacked


def _torchvision_reads(header: Image.Image, mode: str) -> bool:
    if header.format == "WEBP" and mode == "L":
        return False
    if header.format in ("GIF", "WEBP") and getattr(header, "is_animated", False):
        return False
    return header.format in _TORCHVISION_FORMATS


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

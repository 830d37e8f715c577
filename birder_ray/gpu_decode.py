"""Decoding on the GPU: nvJPEG decodes and the GPU resizes; what it cannot do is decoded on the CPU.

Its pixels are not bit for bit those of the CPU's decoder, so it is part of a run's recipe.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as F

from birder_ray.chunk import Chunk, ErrorRow, InputSpec, Sample
from birder_ray.decode import Decoder
from birder_ray.device import lost
from birder_ray.errors import SampleError
from birder_ray.schema import DECODE

_END_OF_IMAGE = b"\xff\xd9"


def suits_gpu(data: bytes) -> bool:
    """Whether nvJPEG is given an image: a JPEG in colour or grey that is there to its end. Of one that is cut short it
    would make up the rest, where the CPU's decoder says so; and it knows no CMYK."""
    if not data.endswith(_END_OF_IMAGE):
        return False
    try:
        return Image.open(io.BytesIO(data), formats=("JPEG",)).mode in ("RGB", "L")
    except Exception:  # of many kinds; the CPU's decoder says what is wrong
        return False


class GpuDecoder:
    """Makes pixels on the device of a chunk's encoded images.

    Args:
        spec: the input wanted. device: of the network; on a CPU the same calls decode there.
    """

    def __init__(self, spec: InputSpec, device: torch.device):
        self.device = device
        self._cpu = Decoder(spec)
        self._mode = ImageReadMode.GRAY if spec.channels == 1 else ImageReadMode.RGB
        self._empty = torch.empty((0, *spec.size, spec.channels), dtype=torch.uint8, device=device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, chunk: Chunk) -> tuple[torch.Tensor, list[Sample], list[ErrorRow]]:
        """(N, H, W, C) pixels on the device of the N samples that can be decoded, these, and errors of the others.

        Args:
            chunk: with `data`, empty for the images that are in `images` already.
        """
        assert chunk.data is not None and chunk.images is not None, "gpu_decode follows preprocess"
        with self._beside():
            decoded = iter(self._decoded([data for data in chunk.data if data]))
            ready = iter(torch.from_numpy(chunk.images.copy()).to(self.device).permute(0, 3, 1, 2))
            floats = chunk.images.dtype != "uint8"  # one of 16 bits is among them
            pixels: list[torch.Tensor] = []
            samples: list[Sample] = []
            errors: list[ErrorRow] = []
            for sample, data in zip(chunk.samples, chunk.data, strict=True):
                image = next(decoded) if data else next(ready)
                if isinstance(image, SampleError):
                    errors.append(sample.failed(DECODE, image))
                    continue
                samples.append(sample)
                pixels.append(F.to_dtype(image, torch.float32, scale=True) if floats and data else image)
            stacked = torch.stack(pixels).permute(0, 2, 3, 1).contiguous() if pixels else self._empty
        return self._handed_over(stacked), samples, errors

    def _decoded(self, encoded: Sequence[bytes]) -> Iterator[torch.Tensor | SampleError]:
        """C,H,W uint8 on the device, of each."""
        if not encoded:
            return
        try:
            data = [torch.frombuffer(bytearray(each), dtype=torch.uint8) for each in encoded]
            images = decode_jpeg(data, mode=self._mode, device=self.device)
        except RuntimeError as error:
            if lost(error):
                raise
            if len(encoded) == 1:
                yield self._by_cpu(encoded[0])
            else:  # one of them is the reason, or all of them together: its memory
                for each in encoded:
                    yield from self._decoded([each])
            return
        for image in images:
            try:
                yield self._cpu.fitted(image)
            except SampleError as error:
                yield error

    def _by_cpu(self, data: bytes) -> torch.Tensor | SampleError:
        try:
            return self._cpu.image(data).to(self.device)
        except SampleError as error:
            return error

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """On a stream of its own, so that other batches are computed meanwhile."""
        if self._stream is None:
            yield
        else:
            with torch.cuda.stream(self._stream):
                yield

    def _handed_over(self, pixels: torch.Tensor) -> torch.Tensor:
        if self._stream is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(self._stream.record_event())
            pixels.record_stream(computing)
        return pixels

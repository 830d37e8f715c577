"""The preprocessing step: a chunk's encoded images → pixels. Knows nothing of Ray."""

import time

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from birder_ray.chunk import Chunk, ErrorRow, InputSpec, Sample
from birder_ray.decode import Decoder
from birder_ray.errors import SampleError
from birder_ray.gpu_decode import suits_gpu
from birder_ray.schema import DECODE


class Preprocess:
    """Decodes, resizes and crops the images of chunks.

    Args:
        spec: the input wanted.
        threads: torch's CPU threads, process-wide; None leaves them as they are.
        decode_on: gpu: JPEGs that suit one stay encoded, for the inference step to decode.
    """

    def __init__(self, spec: InputSpec, threads: int | None = None, decode_on: str = "cpu"):
        if threads is not None:
            torch.set_num_threads(threads)
        self.spec = spec
        self.decode_on = decode_on
        self.image = Decoder(spec).image

    def __call__(self, chunk: Chunk) -> Chunk:
        """Replace `data` by `images`: N,H,W,C uint8, or, if any image has 16 bits per channel, float32 in 0..1.

        Where some are left to the inference step, `data` keeps theirs.

        A sample that cannot be decoded becomes an error row.
        """
        start = time.perf_counter()
        assert chunk.data is not None, "preprocess follows read"
        samples: list[Sample] = []
        errors: list[ErrorRow] = []
        images: list[torch.Tensor] = []
        left: list[bytes] = []
        for sample, data in zip(chunk.samples, chunk.data, strict=True):
            try:
                left.append(data if self.decode_on == "gpu" and suits_gpu(data) else b"")
                if not left[-1]:
                    images.append(self.image(data))
                samples.append(sample)
            except SampleError as error:
                errors.append(sample.failed(DECODE, error))
                left.pop()
        payload = {"images": self._stack(images), "data": left if any(left) else None}
        return chunk.after(DECODE, time.perf_counter() - start, samples, errors, **payload)

    def _stack(self, images: list[torch.Tensor]) -> np.ndarray:
        if not images:
            return np.empty((0, *self.spec.size, self.spec.channels), np.uint8)
        if any(image.dtype != torch.uint8 for image in images):
            images = [F.to_dtype(image, torch.float32, scale=True) for image in images]
        stacked: np.ndarray = torch.stack([image.permute(1, 2, 0) for image in images]).numpy()
        return stacked

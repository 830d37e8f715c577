"""To the device and back: pixels go up, and results come down, while other batches are computed."""

from collections.abc import Callable

import numpy as np
import torch

from birder_ray.scoring import Results
from birder_ray.tables import Columns

Pending = Callable[[], Columns]
"""Results on their way: waits for them."""

_DTYPES = {"uint8": torch.uint8, "float32": torch.float32}


class Transfers:
    """Copies for one device; for a GPU from and to pinned memory, uploads on a stream of their own.

    May be used by several threads, if all compute on the device's current stream.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._uploads = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def up(self, pixels: np.ndarray) -> torch.Tensor:
        """A copy of `pixels` on the device; what is launched there next waits for it, this thread does not."""
        host = torch.empty(pixels.shape, dtype=_DTYPES[pixels.dtype.name], pin_memory=self._uploads is not None)
        host.numpy()[...] = pixels
        if self._uploads is None:
            return host
        with torch.cuda.stream(self._uploads):
            copy = host.to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_event(self._uploads.record_event())
        copy.record_stream(computing)  # else its memory could be given to the next upload too early
        return copy

    def down(self, results: Results) -> Pending:
        """Begins to copy results back; what it returns waits for them."""
        if self._uploads is None:
            return lambda: {name: values.numpy() for name, values in results.items()}
        host = {name: torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for name, x in results.items()}
        for name, values in results.items():
            host[name].copy_(values, non_blocking=True)
        # Blocking: the thread sleeps while it waits, and its core decodes
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self.device))

        def wait() -> Columns:
            done.synchronize()
            return {name: values.numpy() for name, values in host.items()}

        return wait

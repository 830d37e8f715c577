"""What scores: a GPU, or the cores of a processor, and how to deal with its memory."""

import ctypes
import re
from contextlib import suppress
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""

_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory")
_LOST = re.compile(r"CUDA error|CUDNN_STATUS_EXECUTION_FAILED|CUBLAS_STATUS_EXECUTION_FAILED")


def hardware(device: torch.device) -> list[str]:
    """The very GPU, or processor, that code is made for and rates are measured on."""
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device), torch.version.cuda or ""]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = {line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "flags", "Features"))}
    return [torch.backends.cpu.get_cpu_capability(), *sorted(told)]


def settle(device: torch.device) -> None:
    """Wait for all that was launched: a GPU computes on after a call has returned."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether the device's memory does not hold what was asked of it."""
    return isinstance(error, torch.OutOfMemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


def lost(error: RuntimeError) -> bool:
    """Whether this process can no longer use its GPU, whatever it tries: an illegal access, a failed assertion or a
    hardware fault ends what CUDA holds for it."""
    return bool(_LOST.search(str(error))) and not out_of_memory(error)


def keep_memory() -> None:
    """Let glibc keep freed memory: given back, the activations of every batch are faulted in anew, page by page, which
    takes a quarter of the time of a forward pass. Other C libraries are left alone."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)

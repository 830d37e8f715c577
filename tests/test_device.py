"""What a device's errors mean, and that an actor without a working GPU makes room for one that has it."""

import subprocess
import sys

import pytest
import torch

from birder_ray.device import hardware, lost, out_of_memory, settle


@pytest.mark.parametrize(
    ("error", "is_memory", "is_lost"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True, False),
        (RuntimeError("CUDA error: out of memory"), True, False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False, True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), False, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
    ],
)
def test_what_an_error_means(error, is_memory, is_lost):
    assert (out_of_memory(error), lost(error)) == (is_memory, is_lost)


def test_the_processor_is_named():
    cpu = torch.device("cpu")
    settle(cpu)
    assert hardware(cpu) == hardware(cpu) and all(hardware(cpu))


@pytest.mark.parametrize(("message", "code"), [("CUDA error: device-side assert triggered", 1), ("mat1 and mat2", 0)])
def test_an_actor_that_lost_its_gpu_ends(message, code):
    program = f"""
from birder_ray import runtime
from birder_ray.device import lost
def fail(chunk):
    raise RuntimeError({message!r})
actor = runtime._InferActor.__new__(runtime._InferActor)
actor.infer, actor.lost = fail, lost
try:
    actor._score(None)
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (code, "" if code else message)

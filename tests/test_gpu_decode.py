"""Decoding where the network is: the same calls on a CPU give the same pixels, and every image is accounted for."""

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from birder_ray.chunk import Chunk, InputSpec, Sample
from birder_ray.config import ComputeConfig, ModelConfig, OutputsConfig, RunConfig
from birder_ray.errors import ConfigError
from birder_ray.gpu_decode import GpuDecoder, suits_gpu
from birder_ray.guard import AttemptBook, guarded
from birder_ray.infer import Infer
from birder_ray.manifest import difference, option_facts
from birder_ray.preprocess import Preprocess
from birder_ray.sizes import Hardware, choose_sizes
from birder_ray.testing import make_images

SPEC = InputSpec((64, 64))


def encoded(mode: str, form: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 90, 4), np.uint8)
    image = Image.fromarray(pixels[..., :3]).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def deep_png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 65536, (80, 90), np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


JPEGS = make_images(4)
SCRAMBLED = JPEGS[0][: len(JPEGS[0]) // 2] + b"\xff\xd8\xff\x00" * 40 + b"\xff\xd9"
IMAGES = {
    "jpegs": JPEGS,
    "none to the GPU": [encoded("RGB", "PNG"), encoded("CMYK", "JPEG")],
    "mixed": [JPEGS[0], encoded("RGB", "PNG"), encoded("L", "JPEG"), encoded("CMYK", "JPEG"), JPEGS[1]],
    "16 bits among them": [JPEGS[0], deep_png(), JPEGS[1]],
    "bad ones": [b"", JPEGS[0], JPEGS[1][:200], b"no image", SCRAMBLED, encoded("RGB", "PNG")[:300], JPEGS[2]],
    "all bad": [b"", b"no image", JPEGS[0][:100] + b"\xff\xd9"],
}


def chunk(data: list[bytes]) -> Chunk:
    samples = [Sample(f"s{i}", i, None, f"file:///s{i}") for i in range(len(data))]
    return Chunk("unit", "shard", 0, True, True, samples, [], data=data)


def left(data: list[bytes]) -> Chunk:
    out = Preprocess(SPEC, decode_on="gpu")(chunk(data))
    return Chunk.from_table(out.to_table())


@pytest.fixture(scope="module")
def infer(model) -> Infer:
    told = ComputeConfig(engine="eager")
    return Infer(ModelConfig(name=model), OutputsConfig.all(), told, device="cpu", batch_size=2)


def tables(done: Chunk) -> dict[str, pa.Table]:
    return {name: pa.ipc.open_stream(data).read_all() for name, data in done.tables.items()}


@pytest.mark.parametrize(
    ("data", "suits"),
    [
        (JPEGS[0], True),
        (encoded("L", "JPEG"), True),
        (encoded("CMYK", "JPEG"), False),
        (encoded("RGB", "PNG"), False),
        (JPEGS[0][:-2], False),
        (b"", False),
        (b"\xff\xd9", False),
    ],
)
def test_what_is_left_to_a_gpu(data, suits):
    assert suits_gpu(data) is suits


@pytest.mark.parametrize("data", IMAGES.values(), ids=IMAGES.keys())
def test_the_outcome_is_that_of_the_cpus_decoder(infer, data):
    ours, theirs = infer(left(data)), infer(Preprocess(SPEC)(chunk(data)))
    assert ours.samples == theirs.samples
    assert sorted(map(repr, ours.errors)) == sorted(map(repr, theirs.errors))
    assert len(ours.samples) + len(ours.errors) == len(data)
    assert tables(ours) == tables(theirs)
    assert ours.seconds["decode"] > 0


def test_pixels_stay_encoded_until_then():
    out = left(IMAGES["mixed"])
    assert [bool(data) for data in out.data] == [True, False, True, False, True]
    assert len(out.images) == 2
    assert left(IMAGES["none to the GPU"]).data is None


def test_one_that_the_gpu_refuses_does_not_take_the_others_along(infer, monkeypatch):
    from birder_ray import gpu_decode

    calls, original = [], gpu_decode.decode_jpeg

    def picky(data, **options):
        calls.append(len(data))
        if any(bytes(each.numpy()) == JPEGS[1] for each in data):
            raise RuntimeError("nvjpeg: unsupported")
        return original(data, **options)

    monkeypatch.setattr(gpu_decode, "decode_jpeg", picky)
    pixels, samples, errors = GpuDecoder(SPEC, torch.device("cpu"))(left(JPEGS))
    assert (len(samples), errors, calls) == (4, [], [4, 1, 1, 1, 1])
    assert np.array_equal(pixels.numpy(), Preprocess(SPEC)(chunk(JPEGS)).images)


def test_suspects_are_tried_one_by_one(infer):
    book = AttemptBook()
    suspicious = left(IMAGES["mixed"])
    book.begin(("infer", "unit", 0))  # and died
    sizes = []

    def stage(each: Chunk) -> Chunk:
        sizes.append((len(each.samples), len(each.images), sum(map(bool, each.data))))
        return infer(each)

    done = guarded("infer", stage, book, suspicious)
    assert sizes == [(1, 0, 1), (1, 1, 0), (1, 0, 1), (1, 1, 0), (1, 0, 1), (5, 2, 3)]
    assert tables(done) == tables(infer(suspicious))


def test_it_is_part_of_the_recipe(model):
    config = RunConfig(source="in", model=model, destination="out")
    there = RunConfig(source="in", model=model, destination="out", compute={"decode_on": "gpu"})
    assert "decode_on" not in option_facts(config), "destinations of before keep their recipe"
    assert difference(option_facts(there), option_facts(config)) == 'decode_on null → "gpu"'
    assert difference(option_facts(config), option_facts(there)) == 'decode_on "gpu" → null'


def test_it_needs_a_gpu():
    with pytest.raises(ConfigError, match=r"compute\.decode_on is gpu, but no GPU is used"):
        choose_sizes(Hardware(16, 0, 16, 0, 1e11), ComputeConfig(decode_on="gpu"), 1)
    assert choose_sizes(Hardware(16, 1, 16, 1, 1e11), ComputeConfig(decode_on="gpu"), 1).gpus_per_actor == 1


def test_picking_keeps_images_with_their_samples():
    whole = left(IMAGES["mixed"])
    for positions in ([], [0], [1], [3, 4], [0, 1, 2, 3, 4]):
        picked = whole.pick(positions)
        assert [sample.index for sample in picked.samples] == positions
        rows = [row for row, position in enumerate((1, 3)) if position in positions]
        assert np.array_equal(picked.images, whole.images[rows])
    assert np.array_equal(replace(whole, data=None, images=np.arange(5)).pick([1, 3]).images, [1, 3])

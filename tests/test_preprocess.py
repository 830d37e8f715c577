"""Pixels are birder's own, bit for bit; what cannot be decoded becomes an error row and hurts nothing else."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from birder.data.datasets.directory import get_image_loader
from birder.data.transforms.classification import inference_preset
from PIL import Image
from torchvision.transforms.v2 import functional as F

from birder_ray.chunk import Chunk, InputSpec, Sample
from birder_ray.preprocess import Preprocess

SIZE = (24, 32)
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (50, 41, 3), np.uint8)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(mode: str = "RGB", size: tuple[int, int] = (41, 50)) -> Image.Image:
    return Image.fromarray(PIXELS).resize(size).convert(mode)


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def deep(mode: str) -> bytes:
    """A 16-bit PNG; Pillow writes only grey ones, so a colour one is put together by hand."""
    if mode == "grey":
        return encode(Image.fromarray(RANDOM.integers(0, 65536, (50, 41), np.uint16)), "PNG")
    pixels = RANDOM.integers(0, 65536, (50, 41, 3), np.uint16).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", 41, 50, 16, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_part(*part) for part in parts)


def png_part(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


IMAGES = {
    "jpeg": encode(photo(), "JPEG"),
    "jpeg-progressive": encode(photo(), "JPEG", progressive=True),
    "jpeg-grey": encode(photo("L"), "JPEG"),
    "jpeg-cmyk": encode(photo("CMYK"), "JPEG"),
    "jpeg-exif-rotated": encode(photo(), "JPEG", exif=rotated()),
    "mpo": encode(photo(), "MPO", save_all=True, append_images=[photo()]),
    "png": encode(photo(), "PNG"),
    "png-alpha": encode(photo("RGBA"), "PNG"),
    "png-grey": encode(photo("L"), "PNG"),
    "png-grey-alpha": encode(photo("LA"), "PNG"),
    "png-palette": encode(photo("P"), "PNG", transparency=3),
    "png-1-bit": encode(photo("1"), "PNG"),
    "png-16-bit-grey": deep("grey"),
    "png-16-bit": deep("colour"),
    "webp": encode(photo(), "WEBP"),
    "webp-alpha": encode(photo("RGBA"), "WEBP", lossless=True),
    "gif": encode(photo("P"), "GIF"),
    "one-pixel": encode(photo(size=(1, 1)), "PNG"),
    "wide": encode(photo(size=(200, 7)), "JPEG"),
    "tall": encode(photo(size=(7, 200)), "JPEG"),
    "exact": encode(photo(size=SIZE[::-1]), "JPEG"),
}
SPECS = {
    "plain": InputSpec(SIZE),
    "square": InputSpec((32, 32), center_crop=0.875),
    "crop": InputSpec(SIZE, center_crop=0.9),
    "simple": InputSpec(SIZE, simple_crop=True),
    "simple-crop": InputSpec((32, 32), center_crop=0.875, simple_crop=True),
}


def chunk(*data: bytes) -> Chunk:
    samples = [Sample(f"s{i}", i, None, f"file:///s{i}") for i in range(len(data))]
    return Chunk("unit", "shard", 0, True, True, samples, [], data=list(data))


def with_options(spec: InputSpec, **options) -> InputSpec:
    return InputSpec(**{**vars(spec), **options})


def birder_input(data: bytes, spec: InputSpec, folder) -> torch.Tensor:
    """What birder feeds to the network, before normalisation: float32 in 0..1."""
    path = folder / "image"
    path.write_bytes(data)
    image = get_image_loader("tv" if spec.decoder == "torchvision" else "pil", spec.channels)(str(path))
    neutral = {"mean": [0.0] * spec.channels, "std": [1.0] * spec.channels}
    return inference_preset(spec.size, neutral, spec.center_crop, spec.simple_crop)(image)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("decoder", ["torchvision", "pil"])
@pytest.mark.parametrize("channels", [3, 1])
def test_pixels_are_birders(name, spec, decoder, channels, tmp_path):
    if channels == 1 and decoder == "torchvision" and ("webp" in name or name == "gif"):
        pytest.skip("torchvision does not turn WebP and GIF grey, so birder has no answer")
    spec = with_options(spec, decoder=decoder, channels=channels)
    out = Preprocess(spec, threads=1)(chunk(IMAGES[name]))
    assert out.images is not None and out.errors == [] and out.images.flags.c_contiguous
    ours = F.to_dtype(torch.from_numpy(out.images[0]).permute(2, 0, 1), torch.float32, scale=True)
    assert torch.equal(ours, birder_input(IMAGES[name], spec, tmp_path))


def test_real_awkward_photos(awkward, tmp_path):
    for path in awkward:
        for decoder in ("torchvision", "pil"):
            spec = InputSpec((64, 64), decoder=decoder)
            out = Preprocess(spec)(chunk(path.read_bytes()))
            if "truncated" in path.name:
                assert [error.error_type for error in out.errors] == ["TruncatedImage"]
                continue
            ours = F.to_dtype(torch.from_numpy(out.images[0]).permute(2, 0, 1), torch.float32, scale=True)
            assert torch.equal(ours, birder_input(path.read_bytes(), spec, tmp_path)), path.name


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "AVIF"])
def test_formats_that_only_pillow_knows(kind):
    image = encode(photo(), kind)
    out = Preprocess(InputSpec(SIZE))(chunk(image))
    pixels = F.pil_to_tensor(Image.open(io.BytesIO(image)).convert("RGB"))
    expected = F.resize(pixels, list(SIZE), F.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(torch.from_numpy(out.images[0]).permute(2, 0, 1), expected)


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_an_animation_is_its_first_frame(kind):
    animated = encode(photo(), kind, save_all=True, append_images=[photo().rotate(90)], lossless=True)
    first = F.pil_to_tensor(Image.open(io.BytesIO(animated)).convert("RGB"))
    out = Preprocess(InputSpec((50, 41)))(chunk(animated))
    assert torch.equal(torch.from_numpy(out.images[0]).permute(2, 0, 1), first)


@pytest.mark.parametrize("name", ["webp", "gif"])
def test_formats_that_torchvision_does_not_turn_grey(name):
    spec = InputSpec(SIZE, channels=1)
    out = Preprocess(spec)(chunk(IMAGES[name], IMAGES["jpeg"]))
    assert out.images.shape == (2, *SIZE, 1)


def test_one_deep_image_makes_the_chunk_float():
    alone = Preprocess(InputSpec(SIZE))(chunk(IMAGES["jpeg"])).images
    mixed = Preprocess(InputSpec(SIZE))(chunk(IMAGES["png-16-bit"], IMAGES["jpeg"])).images
    assert alone.dtype == np.uint8 and mixed.dtype == np.float32
    scaled = F.to_dtype(torch.from_numpy(alone[0]), torch.float32, scale=True)
    assert torch.equal(torch.from_numpy(mixed[1]), scaled)
    assert mixed[0].min() >= 0 and mixed[0].max() <= 1


def damaged_png(change) -> bytes:
    """A PNG with its compressed pixels changed, and a checksum that says nothing of it."""
    png = IMAGES["png"]
    start = png.index(b"IDAT")
    end = start + 4 + struct.unpack(">I", png[start - 4 : start])[0]
    return png[: start - 4] + png_part(b"IDAT", change(png[start + 4 : end])) + png[end + 4 :]


def bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_part(b"IHDR", header) + png_part(b"IDAT", b"") + png_part(b"IEND", b"")


BAD = {
    "empty": (b"", "EmptyFile"),
    "text": (b"<html>404</html>" * 9, "UndecodableImage"),
    "zeros": (bytes(1000), "UndecodableImage"),
    "jpeg-cut": (IMAGES["jpeg"][: len(IMAGES["jpeg"]) // 2], "TruncatedImage"),
    "jpeg-header": (IMAGES["jpeg"][:20], "UndecodableImage"),
    "png-cut": (IMAGES["png"][: len(IMAGES["png"]) // 2], "TruncatedImage"),
    "png-flipped": (IMAGES["png"][:900] + b"\xff" + IMAGES["png"][901:], "UndecodableImage"),
    # Each of these kills the process in torchvision 0.29's decoder
    "png-checksum": (damaged_png(lambda data: data[:-4] + b"0000"), "UndecodableImage"),
    "png-broken": (damaged_png(lambda data: data[:9] + b"\xff" * 20 + data[29:]), "UndecodableImage"),
    "png-short": (damaged_png(lambda data: data[: len(data) // 2]), "TruncatedImage"),
    "png-filter": (damaged_png(lambda data: zlib.compress(b"\x09" + zlib.decompress(data)[1:])), "UndecodableImage"),
    "webp-cut": (IMAGES["webp"][: len(IMAGES["webp"]) // 2], "UndecodableImage"),
    "gif-cut": (IMAGES["gif"][:100], "UndecodableImage"),
    "bomb": (bomb(), "DecompressionBomb"),
}


@pytest.mark.parametrize("decoder", ["torchvision", "pil"])
def test_bad_images_are_quarantined_one_by_one(decoder):
    good = IMAGES["jpeg"]
    data = [item for image, _ in BAD.values() for item in (image, good)]
    out = Preprocess(InputSpec(SIZE, decoder=decoder))(chunk(*data))
    assert [sample.index for sample in out.samples] == list(range(1, len(data), 2))
    assert len(out.images) == len(BAD)
    found = {name: error.error_type for name, error in zip(BAD, out.errors, strict=True)}
    assert found == {name: kind for name, (_, kind) in BAD.items()}
    for error in out.errors:
        assert error.step == "decode" and error.uri and error.message
        assert "\n" not in error.message and ".cpp" not in error.message


def test_a_sliver_cannot_blow_up_memory():
    sliver = encode(Image.new("L", (60_000, 1)), "PNG")
    out = Preprocess(InputSpec((256, 256), simple_crop=True))(chunk(sliver))
    assert [error.error_type for error in out.errors] == ["DecompressionBomb"]
    assert len(Preprocess(InputSpec((256, 256)))(chunk(sliver)).images) == 1


@pytest.mark.parametrize("data", [(), (b"",)], ids=["no samples", "no good ones"])
def test_nothing_left(data):
    out = Preprocess(InputSpec(SIZE))(chunk(*data))
    assert out.images.shape == (0, *SIZE, 3) and out.images.dtype == np.uint8
    assert out.data is None and "decode" in out.seconds


def test_no_memory_is_not_the_samples_fault(monkeypatch):
    def full(*_args, **_options):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("birder_ray.decode.decode_image", full)
    with pytest.raises(MemoryError):
        Preprocess(InputSpec(SIZE))(chunk(IMAGES["jpeg"]))

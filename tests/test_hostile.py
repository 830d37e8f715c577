"""Input made to do harm, and secrets: what a stranger's file, name or server may not do, and what nobody may read."""

import io
import json
import pickle
import random
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from birder_ray import manifest as manifests
from birder_ray.chunk import Chunk, InputSpec, Sample
from birder_ray.config import RunConfig, SourceConfig
from birder_ray.console import Console, fail, results
from birder_ray.errors import BirderRayError, ConfigError, SampleError, ShardDamaged, plain
from birder_ray.preprocess import Preprocess
from birder_ray.source import list_shards, read_samples
from birder_ray.source.resolve import Resolver
from birder_ray.source.web import is_public
from birder_ray.weights import read_header

SECRETS = ("hunter2", "wJalrXUtnFEMI", "0123abcd4567", "sEcReT")


def encode(image: Image.Image, kind: str, **options) -> bytes:
    packed = io.BytesIO()
    image.save(packed, kind, **options)
    return packed.getvalue()


def png(width: int, height: int, *extra: bytes, pixels: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (part(b"IHDR", header), *extra, part(b"IDAT", zlib.compress(pixels, 9)), part(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def part(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def jpeg_that_says(width: int, height: int) -> bytes:
    data = bytearray(encode(Image.new("RGB", (8, 8)), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def tall_tiff(height: int) -> bytes:
    """One pixel wide: torch would make rows of the whole output width first."""
    return encode(Image.new("L", (1, height)), "TIFF", compression="tiff_adobe_deflate")


GOOD = encode(Image.new("RGB", (20, 20), (9, 99, 9)), "JPEG")
BOMB = zlib.compress(bytes(80 << 20), 9)


def decoded(data: bytes, **options) -> str:
    """`scored`, or the error type, of `data` between two good images, which must not feel it."""
    samples = [Sample(f"s{i}", i, None, "") for i in range(3)]
    chunk = Chunk("u", "s", 0, True, True, samples, [], data=[GOOD, data, GOOD])
    out = Preprocess(InputSpec((32, 32), **options), threads=1)(chunk)
    assert [sample.index for sample in out.samples if sample.index != 1] == [0, 2]
    return out.errors[0].error_type if out.errors else "scored"


@pytest.mark.parametrize("decoder", ["torchvision", "pil"])
@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (jpeg_that_says(65535, 65535), "DecompressionBomb"),
        (jpeg_that_says(1, 60_000), {"TruncatedImage", "UndecodableImage", "scored"}),
        (png(2**31 - 1, 2**31 - 1), "DecompressionBomb"),
        (png(100_000, 1, pixels=bytes(100_001)), "scored"),
        (png(1, 100_000, pixels=bytes(200_000)), "scored"),
        (png(9, 9, part(b"iCCP", b"x\0\0" + BOMB), pixels=bytes(90)), "UndecodableImage"),
        (png(9, 9, part(b"zTXt", b"x\0\0" + BOMB), pixels=bytes(90)), "UndecodableImage"),
        (png(9, 9, part(b"iTXt", b"x\0\1\0\0\0" + BOMB), pixels=bytes(90)), "UndecodableImage"),
        (png(9, 9, *[part(b"tEXt", b"x\0" + bytes(500))] * 9000, pixels=bytes(90)), "scored"),
        (png(9, 9, pixels=bytes(80 << 20)), {"scored", "UndecodableImage"}),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "UndecodableImage"),
    ],
    ids=["65535", "1x60000", "2^31", "100000x1", "1x100000", "iCCP", "zTXt", "iTXt", "tEXt", "extra-pixels", "eps"],
)
def test_images_that_are_bombs(data, outcome, decoder):
    assert decoded(data, decoder=decoder) in ({outcome} if isinstance(outcome, str) else outcome)


def test_a_tall_sliver_is_not_made_wide(monkeypatch):
    """torch makes rows of the whole output width first: 80 GB for a TIFF of 1 x 100,000,000 pixels, of 100 kB."""
    monkeypatch.setattr("birder_ray.decode.MAX_PIXELS", 10**6)
    assert decoded(tall_tiff(10**6 // 32)) == "scored"
    assert decoded(tall_tiff(10**6 // 32 + 1)) == "DecompressionBomb"
    assert decoded(encode(Image.new("L", (10**6 // 32 + 1, 1)), "TIFF")) == "scored"


def interlaced(packed: bytes, width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", packed) + part(b"IEND", b"")


def narrow(pixels: bytes) -> bytes:
    """Packed with distances of up to 32 KiB, and a header that speaks of a window of 256 bytes."""
    packed = zlib.compress(pixels, 9)
    head = 0x08 << 8
    return (head + 31 - head % 31).to_bytes(2, "big") + packed[2:]


ROWS = (b"\0" + random.Random(0).randbytes(2000)) * 40


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (png(90, 3903, pixels=bytes(91 * 1807)), "TruncatedImage"),
        (png(90, 50, pixels=bytes(91 * 50 - 1)), "TruncatedImage"),
        (png(90, 50, pixels=bytes(91 * 50)), "scored"),
        (png(2000, 40, pixels=ROWS), "scored"),
        (png(2000, 40)[:33] + part(b"IDAT", narrow(ROWS)) + part(b"IEND", b""), "UndecodableImage"),
        (interlaced(zlib.compress(bytes(1 + 1)), 1, 1), "scored"),
        (interlaced(zlib.compress(bytes(15 + 64)), 8, 8), "scored"),
        (interlaced(zlib.compress(bytes(15 + 63)), 8, 8), "TruncatedImage"),
        (interlaced(zlib.compress(bytes(15 + 50) + b"\5" + bytes(13)), 8, 8), {"UndecodableImage", "scored"}),
        (png(4, 4, part(b"IDAT", b""), part(b"tIME", bytes(7)), pixels=bytes(20)), "TruncatedImage"),
        (png(4, 4, part(b"IDAT", b""), pixels=bytes(20)), "scored"),
    ],
    ids=["early-end", "byte", "whole", "wide", "window", "adam7-1", "adam7", "adam7-cut", "filter", "split", "none"],
)  # fmt: skip
def test_png_that_killed_the_process(data, outcome):
    """The first is mutant 615 of the fuzzer, the fifth a relative: libpng failed amid the pixels."""
    assert decoded(data) in ({outcome} if isinstance(outcome, str) else outcome)


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG"])
def test_of_many_frames_only_the_first_is_decoded(kind, monkeypatch):
    frames = [Image.new("RGB", (20, 20), (0, 0, n % 256)) for n in range(300)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    sought = []
    for plugin in ("Tiff", "Gif", "WebP", "Png"):
        monkeypatch.setattr(f"PIL.{plugin}ImagePlugin.{plugin}ImageFile.seek", lambda self, frame: sought.append(frame))
    assert decoded(data) == "scored"
    assert max(sought, default=0) == 0  # Pillow's GIF goes back to where it was after it looked for a second one


# --- manifests


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hits: list[str]


@pytest.fixture
def web() -> Iterator[_Server]:
    """`/to?URL` (in hex) redirects there, `/endless` never stops, the rest are photos; `hits`: what was asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.hits.append(self.path)
            if self.path.startswith("/to?"):
                self.send_response(302)
                self.send_header("Location", bytes.fromhex(self.path[4:]).decode())
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            body = b"url\nx.jpg\n" if self.path.endswith(".csv") else GOOD
            try:
                while True:
                    self.wfile.write(body)
                    if self.path != "/endless":
                        return
                    body = bytes(1 << 20)
            except OSError:
                return

        def log_message(self, *_arguments: object) -> None:
            return

    server = _Server(("127.0.0.1", 0), Handler)
    server.hits = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def fetched(place) -> bytes | str:
    """What comes of a resolved URI, as the errors table would tell it."""
    from birder_ray.source.fetch import fetch

    result = place if isinstance(place, SampleError) else fetch(*place)
    return result if isinstance(result, bytes) else str(result)


@pytest.mark.parametrize(
    "target", ["http://{other}/secret", "http://localhost:{port}/secret", "http://[::1]:{port}/secret",
               "http://[::ffff:127.0.0.1]:{port}/secret", "http://2130706433:{port}/secret",
               "http://169.254.169.254/latest/meta-data", "file:///etc/hostname"],
)  # fmt: skip
def test_a_redirect_into_the_own_network_is_not_followed(web, target, tmp_path):
    port = web.server_address[1]
    target = target.format(port=port, other=f"127.0.0.2:{port}")
    message = fetched(Resolver(str(tmp_path / "m.csv"), {})(f"http://127.0.0.1:{port}/to?{target.encode().hex()}"))
    assert isinstance(message, str)
    assert web.hits == [f"/to?{target.encode().hex()}"]
    if not target.startswith("file"):
        assert "not on the internet" in message or "2130706433" in message  # which aiohttp itself refuses


def test_a_redirect_to_where_the_user_pointed_is_followed(web, tmp_path):
    host = f"http://127.0.0.1:{web.server_address[1]}"
    assert fetched(Resolver(str(tmp_path / "m.csv"), {})(f"{host}/to?{(host + '/a.jpg').encode().hex()}")) == GOOD
    assert fetched(Resolver(f"{host}/m.csv", {})(f"to?{b'/a.jpg'.hex()}")) == GOOD  # a manifest's own server
    elsewhere = f"http://localhost:{web.server_address[1]}/a.jpg"
    assert "not on the internet" in fetched(Resolver(f"{host}/m.csv", {})(f"to?{elsewhere.encode().hex()}"))
    assert fetched(Resolver(f"{host}/m.csv", {}, allow_local=True)(f"to?{elsewhere.encode().hex()}")) == GOOD


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:{port}/a", "http://localhost:{port}/a", "http://0.0.0.0:{port}/a",
            "http://169.254.169.254/latest/meta-data", "http://[fd00:ec2::254]/latest"],
)  # fmt: skip
def test_a_remote_manifest_does_not_reach_the_own_network(web, uri):
    message = fetched(Resolver("https://example.org/m.csv", {})(uri.format(port=web.server_address[1])))
    assert ("not on the internet" in message or "[" in uri) and web.hits == []


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "192.168.1.1", "172.16.0.1", "169.254.169.254", "0.0.0.0",
                                     "100.64.0.1", "::1", "fe80::1%eth0", "fd00::1", "::ffff:10.0.0.1", "224.0.0.1",
                                     "2002:7f00:1::"])  # fmt: skip
def test_addresses_that_are_not_on_the_internet(address):
    assert not is_public(address)
    assert is_public("8.8.8.8") and is_public("2606:4700::1111")


def test_a_server_that_never_stops_sending(web, tmp_path, monkeypatch):
    monkeypatch.setattr("birder_ray.source.web.MAX_BYTES", 3 << 20)
    message = fetched(Resolver(str(tmp_path / "m.csv"), {})(f"http://127.0.0.1:{web.server_address[1]}/endless"))
    assert "more than 3 MiB" in message


LOCAL = [
    "/etc/passwd", "~/x", "file:///etc/passwd", "FILE:///etc/passwd", "local:///etc/passwd", "file:/etc/passwd",
    "file:etc/passwd", "local:/etc/passwd", "file://localhost/etc/passwd", "\tfile:///etc/passwd", "fi\nle:///etc/passwd",
    "data:,x", "memory://x", "ftp://localhost/x", "sftp://localhost/x", "dir:///etc", "simplecache::file:///etc/passwd",
    "zip://a::/etc/passwd", "reference://::file:///etc/passwd", "//etc/passwd", "\\\\host\\x", "C:\\x",
]  # fmt: skip


@pytest.mark.parametrize("manifest", ["https://example.org/a/m.csv", "s3://bucket/a/m.csv"])
@pytest.mark.parametrize("uri", LOCAL)
def test_a_remote_manifest_names_no_local_file(manifest, uri):
    place = Resolver(manifest, {})(uri)
    if isinstance(place, SampleError):
        assert place.error_type in ("LocalUriRefused", "BadUri")
    else:  # taken for the name of a file beside the manifest
        assert set(place[0].protocol) & {"s3", "http", "https"}
        assert place[1].startswith(("https://example.org/", "bucket/"))


def test_local_files_may_be_allowed(tmp_path):
    (tmp_path / "a.jpg").write_bytes(GOOD)
    fsspec.filesystem("memory").pipe("/far/m.csv", f"url\n{tmp_path}/a.jpg\nfile://{tmp_path}/a.jpg\n".encode())
    for allowed in (False, True):
        source = SourceConfig(uri="memory://far/m.csv", allow_local_uris=allowed)
        found = [data for _, data in read_samples(list_shards(source)[0], source)]
        if allowed:
            assert found == [GOOD, GOOD]
        else:
            assert {error.error_type for error in found} == {"LocalUriRefused"}


def test_a_manifest_without_line_ends(tmp_path):
    import gzip

    (tmp_path / "m.csv.gz").write_bytes(gzip.compress(b"url\n" + b"a" * (50 << 20)))
    source = SourceConfig(uri=str(tmp_path / "m.csv.gz"))
    with pytest.raises(ShardDamaged, match="a line of more than"):
        list(read_samples(list_shards(source)[0], source))


def test_parquet_text_that_is_no_text(tmp_path):
    broken = pa.array([b"\xff\xfe", b"\x1b[31m"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"image": [GOOD, GOOD], "label": broken}), tmp_path / "i.parquet")
    source = SourceConfig(uri=str(tmp_path / "i.parquet"))
    items = list(read_samples(list_shards(source)[0], source))
    assert [sample.label for sample, _ in items] == ["��", "\x1b[31m"]
    pq.write_table(pa.table({"url": broken}), tmp_path / "m.parquet")
    source = SourceConfig(uri=str(tmp_path / "m.parquet"))
    assert len(list(read_samples(list_shards(source)[0], source))) == 2


def test_a_footer_that_promises_too_much(tmp_path, monkeypatch):
    pq.write_table(pa.table({"image": [GOOD] * 10}), tmp_path / "i.parquet")
    monkeypatch.setattr("birder_ray.source.parquet._ROWS_PER_BYTE", 1e-3)
    source = SourceConfig(uri=str(tmp_path / "i.parquet"), format="parquet")
    (shard,) = list_shards(source)
    assert shard.count is None
    with pytest.raises(ShardDamaged, match="the footer speaks of 10 rows"):
        list(read_samples(shard, source))


def test_row_groups_that_hold_less_than_the_footer_says(tmp_path, monkeypatch):
    """Mutants 32 and 596 of the fuzzer: Arrow stops without a word, and the run would have failed for ever."""
    pq.write_table(pa.table({"image": [GOOD] * 10}), tmp_path / "i.parquet", row_group_size=5)
    source = SourceConfig(uri=str(tmp_path / "i.parquet"), format="parquet")
    (shard,) = list_shards(source)
    whole = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: (b.slice(2) for b in whole(*a, **k)))
    with pytest.raises(ShardDamaged, match="the rows of group 0 end at 3, not at 5"):
        list(read_samples(shard, source))


# --- checkpoints

SHAPES = {"inputs": [{"data_shape": [0, 3, 32, 32]}], "outputs": [{"data_shape": [0, 2]}]}


class Code:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_checkpoint_is_never_run(tmp_path, form, protocol):
    from birder_ray.backbone import Backbone, Weights

    path, ran = tmp_path / "hgnet_v2_b0_x.pt", tmp_path / "ran"
    content = {"signature": SHAPES, "class_to_idx": {}, "state": Code(ran), "task": "image_classification"}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol))
    else:
        torch.save(content, path, pickle_protocol=max(2, protocol), _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ConfigError):
        read_header(path)
    weights = Weights(str(path), "", "x", "hgnet_v2_b0", None, (32, 32), 3, ("a", "b"))
    with pytest.raises(Exception):  # noqa: B017  # whoever skips the header
        Backbone(weights, reduce=lambda level: {})
    assert not ran.exists()


@pytest.mark.parametrize(
    ("inputs", "classes", "names"),
    [
        ([0, 3, 32, 32], 10**12, {}),
        ([0, 3, 10**9, 32], 2, {}),
        ([0, 3, -1, 32], 2, {}),
        ([0, 3, "32", 32], 2, {}),
        ([0, 3, 32, 32], 2, {"a": 5}),
        ([0, 3, 32, 32], 2, {"a": -1}),
        ([0, 3, 32, 32], 2, {"a": "0"}),
        ([0, 3, 32, 32], 2, 7),
    ],
)
def test_a_checkpoint_that_promises_too_much(tmp_path, inputs, classes, names):
    signature = {"inputs": [{"data_shape": inputs}], "outputs": [{"data_shape": [0, classes]}]}
    torch.save({"signature": signature, "class_to_idx": names}, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="not a birder checkpoint, or damaged"):
        read_header(tmp_path / "x.pt")


# --- words


NASTY = "<b onload='x'>\"q\" [red]r[/red] \x1b[31mred\x1b]0;t\x07\r\nerror: fake \x00\x7f\x9b1m \u202egpj \udcff end"


def test_every_message_is_one_plain_line():
    for made in (ConfigError(NASTY), SampleError("X", NASTY), ShardDamaged("X", NASTY)):
        assert str(made).isprintable() and str(made).isascii()
        assert str(made).encode() and "<b onload='x'>" in str(made) and "[red]r[/red]" in str(made)
    assert len(plain("x" * 10**6)) == 2000
    assert str(pickle.loads(pickle.dumps(SampleError("X", "why")))) == "why"
    assert pickle.loads(pickle.dumps(ShardDamaged("X", "why"))).error_type == "X"


def test_the_console_shows_names_as_they_are(capsys):
    fail(ConfigError(NASTY))
    Console().notice(NASTY)
    from rich.markup import escape

    results.print(escape(NASTY.replace("\udcff", "")))
    out, err = capsys.readouterr()
    assert err.count("\n") == 2 and err.count("[red]r[/red]") == 2
    for text in (out, err):
        assert not set(text) & set("\x1b\x07\x00\x7f\x9b\u202e\r")


LEAKS = [
    "https://me:hunter2@host/a.jpg", "https://host/a.jpg?X-Amz-Signature=0123abcd4567&X-Amz-Credential=sEcReT",
    "HTTPS://me:hunter2@host/x?sig=0123abcd4567", "s3://key:wJalrXUtnFEMI/sEcReT@bucket/x",
    "{'key': 'sEcReT', 'secret': 'wJalrXUtnFEMI', 'client_kwargs': {'password': 'hunter2'}}",
    "secret=wJalrXUtnFEMI&token=sEcReT", "aws_secret_access_key=wJalrXUtnFEMI", 'account_key="sEcReT=="',
    "Authorization: Bearer sEcReT", "headers {'Authorization': 'Basic hunter2'}", "X-Amz-Security-Token=sEcReT",
    "simplecache::https://me:hunter2@host/x?token=sEcReT", "url=URL('https://host/a?X-Goog-Signature=0123abcd4567')",
    "could not open zip://a.jpg::https://me:hunter2@host/b.zip?sig=0123abcd4567",
]  # fmt: skip


@pytest.mark.parametrize("text", LEAKS)
def test_messages_hold_no_secrets(text):
    for message in (plain(text), str(BirderRayError(f"a: {text}; and so on")), plain(plain(text))):
        assert not [secret for secret in SECRETS if secret in message]


@pytest.mark.parametrize(
    "text",
    ["https://host:8080/a@2x.png: gone", "s3://bucket/a@b.jpg#member.jpg",
     "m.csv: no column key (id_column); the columns are token, key",
     "source.options.secret: no such option", "--set: write it as KEY=VALUE, e.g. --set model.size=384", "1:2@3"],
)  # fmt: skip
def test_messages_without_secrets_stay_as_they_are(text):
    assert plain(text) == text


def test_manifest_json_holds_no_secrets():
    options = {"key": "sEcReT", "secret": "wJalrXUtnFEMI", "client_kwargs": {"password": "hunter2"}}
    config = RunConfig(
        source={"uri": ["https://me:hunter2@host/a.tar?sig=0123abcd4567"], "options": options},
        model={"name": "https://me:hunter2@host/net.pt?sig=0123abcd4567", "weights_mirror": "https://me:hunter2@host/"},
        destination="s3://me:hunter2@bucket/x",
        destination_options=options,
    )
    text = json.dumps(manifests.told(config))
    assert not [secret for secret in SECRETS if secret in text]


def test_pipeline_files_that_are_not_there_leak_nothing(tmp_path):
    for path in ("https://me:hunter2@127.0.0.1:9/p.yaml?sig=0123abcd4567", "memory://me:hunter2@x/p.yaml"):
        with pytest.raises(ConfigError) as caught:
            RunConfig.from_yaml(path)
        assert not [secret for secret in SECRETS if secret in str(caught.value)]
    (tmp_path / "p.yaml").write_text("source: [" * 5000)
    with pytest.raises(ConfigError, match="not a YAML file"):
        RunConfig.from_yaml(str(tmp_path / "p.yaml"))

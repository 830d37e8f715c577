"""plan --probe: real steps on a bit of a real source; what it predicts follows from what they took."""

import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from birder_ray import probe as module
from birder_ray.config import RunConfig
from birder_ray.console import show_probe
from birder_ray.decode import Decoder
from birder_ray.errors import ConfigError
from birder_ray.infer import Infer
from birder_ray.plan import Work
from birder_ray.preprocess import Preprocess
from birder_ray.preview import preview
from birder_ray.probe import Pace, Probe, probe
from birder_ray.sizes import Hardware, choose_sizes
from birder_ray.source.base import Shard
from birder_ray.testing import make_images, make_shards
from tests.command import birder_ray
from tests.inprocess import score


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(module, "_FORWARDS", 2)


@pytest.fixture
def tars(tmp_path) -> str:
    make_shards(str(tmp_path / "tars"), 20, 4)
    return str(tmp_path / "tars")


def _config(source: str, model: str, tmp_path: Path, **fields) -> RunConfig:
    return RunConfig(source=source, model=model, destination=str(tmp_path / "out"), **fields)


def _probe(config: RunConfig) -> Probe:
    found = probe(config, preview(config))
    assert found is not None
    return found


def test_rates_are_measured_and_nothing_is_written(tars, model, tmp_path):
    found = _probe(_config(tars, model, tmp_path, compute={"batch_size": 8}))
    assert (found.engine, found.batch_size, found.error_types) == ("eager", 8, {})
    assert [pace.images for pace in found.paces.values()] == [80, 80, 16]
    assert all(pace.seconds > 0 and pace.core_seconds > 0 for pace in found.paces.values())
    size = sum(len(image) for shard in range(4) for image in make_images(20, shard))
    assert found.paces["read"].bytes == size and found.bytes_per_image == size / 80
    assert 0 < found.images_per_s <= min(1 / cost for cost in found.costs.values())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("slow", ["read", "decode", "infer"])
def test_the_step_that_is_slow_is_the_bottleneck(tars, model, tmp_path, monkeypatch, slow):
    def slowly(call):
        def after_a_nap(*arguments):
            time.sleep(0.5)
            return call(*arguments)

        return after_a_nap

    if slow == "read":
        monkeypatch.setattr(module, "read_chunks", slowly(module.read_chunks))
    else:
        step = {"decode": Preprocess, "infer": Infer}[slow]
        monkeypatch.setattr(step, "__call__", slowly(step.__call__))
    one_of_each = {"preprocess_actors": 1, "inference_actors": 1}
    found = _probe(_config(f"{tars}/shard-000000.tar", model, tmp_path, compute=one_of_each))
    assert found.bottleneck == slow
    pace = found.paces[slow]
    assert pace.images_per_s <= 40  # 20 images took at least half a second
    assert found.images_per_s <= found.sizes.workers[slow] * pace.images_per_s * 1.001


@pytest.mark.parametrize("step", [Preprocess, Infer])
def test_the_first_call_is_not_timed(tars, model, tmp_path, monkeypatch, step):
    call, calls = step.__call__, []

    def slow_at_first(*arguments):
        calls.append(arguments)
        time.sleep(5 if len(calls) == 1 else 0)
        return call(*arguments)

    monkeypatch.setattr(step, "__call__", slow_at_first)
    found = _probe(_config(f"{tars}/shard-000000.tar", model, tmp_path))
    assert len(calls) == 3 and max(pace.seconds for pace in found.paces.values()) < 5


@pytest.mark.parametrize("engine", ["auto", "compiled"])
def test_nothing_is_compiled(tars, model, tmp_path, monkeypatch, engine):
    monkeypatch.setenv("BIRDER_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("birder_ray.engine._compile_elsewhere", lambda *_: pytest.fail("compiled"))
    assert _probe(_config(tars, model, tmp_path, compute={"engine": engine})).engine == "eager"
    assert not list((tmp_path / "cache").rglob("*.lock"))


def test_what_is_bad_is_counted(model, tmp_path):
    photos = tmp_path / "photos"
    make_shards(str(photos), 20, 1, "images")
    (photos / "class-0" / "000001.jpg").write_bytes(b"no image")
    (photos / "class-0" / "000002.jpg").write_bytes(b"")
    whole = (photos / "class-0" / "000003.jpg").read_bytes()
    (photos / "class-0" / "000003.jpg").write_bytes(whole[: len(whole) // 2])
    make_shards(str(tmp_path / "tars"), 20, 1)
    tar = tmp_path / "tars" / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    found = _probe(_config([str(photos), str(tar)], model, tmp_path))
    assert found.error_types == {"UndecodableImage": 1, "EmptyFile": 1, "TruncatedImage": 1, "TruncatedTar": 1}
    assert found.images_per_s > 0


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_nothing_that_can_be_scored_is_one_plain_line(model, tmp_path, content):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(content)
    with pytest.raises(ConfigError, match=r"nothing in the source can be scored \(\w+\)"):
        _probe(_config(str(photos), model, tmp_path))


def test_an_empty_source_is_one_plain_line(model, tmp_path):
    tarfile.open(tmp_path / "empty.tar", "w").close()
    with pytest.raises(ConfigError, match="there are no images"):
        _probe(_config(str(tmp_path / "empty.tar"), model, tmp_path))


def test_unknown_totals_follow_from_the_bytes(tars, model, tmp_path):
    config = _config(tars, model, tmp_path)
    found = _probe(config)
    assert found.estimated and 80 <= (found.images or 0) < 160  # small images: tar headers count
    limited = _probe(RunConfig(source={"uri": tars, "limit": 30}, model=model, destination=str(tmp_path / "out")))
    assert (limited.images, limited.estimated) == (30, False)
    unknown = probe(config, replace(preview(config), bytes=None))
    assert unknown is not None and unknown.images is None


def test_the_bytes_of_a_manifest_are_not_those_of_its_images(model, tmp_path, monkeypatch):
    make_shards(str(tmp_path / "m"), 5, 1, "manifest")
    monkeypatch.setattr("birder_ray.source.listing._COUNTED_CSV_BYTES", 0)
    found = _probe(_config(str(tmp_path / "m" / "*.csv"), model, tmp_path))
    assert found.images is None


def test_what_a_gpu_is_to_decode_is_timed_with_the_network(tars, model, tmp_path, monkeypatch):
    def without_a_gpu(hardware, compute, *job):
        return choose_sizes(hardware, compute.model_copy(update={"decode_on": "cpu"}), *job)

    monkeypatch.setattr(module, "choose_sizes", without_a_gpu)
    monkeypatch.setattr(Decoder, "image", lambda *_: pytest.fail("decoded on the CPU"))
    found = _probe(_config(tars, model, tmp_path, compute={"decode_on": "gpu"}))
    assert [pace.images for pace in found.paces.values()] == [80, 80, 32]
    assert found.error_types == {}


def test_where_it_looks():
    def places(n: int) -> list[str]:
        return [work.prefix for work in module._apart([Work(Shard("", "", "tar", ""), str(i), 1) for i in range(n)])]

    assert places(1) == ["0"]
    assert places(2) == ["0", "1"]
    assert places(7) == ["0", "3", "6", "1", "2", "4", "5"]


def test_it_reads_no_further_than_it_must(tmp_path, model, monkeypatch):
    make_shards(str(tmp_path / "tars"), 60, 5)
    config = _config(str(tmp_path / "tars"), model, tmp_path)
    assert _probe(config).paces["read"].images == 256
    for name, limit in (("_SECONDS", 0.0), ("_BYTES", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, limit)
            assert _probe(config).paces["read"].images == 16


def test_a_shard_that_is_partly_done_is_read_from_its_start(tars, model, tmp_path):
    config = _config(tars, model, tmp_path, compute={"unit_rows": 8})
    score(config)
    for shard in range(4):
        next((tmp_path / "out" / "_commits").glob(f"shard-{shard:06d}*-000002.json")).unlink()
    found = _probe(config)
    assert found.paces["read"].images == 80


def test_when_all_is_done_there_is_nothing_to_measure(tars, model, tmp_path):
    config = _config(tars, model, tmp_path)
    score(config)
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "out").rglob("*"))
    assert probe(config, preview(config)) is None
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "out").rglob("*"))


def _made(hardware: Hardware, compute: dict, decode: Pace, infer: Pace) -> Probe:
    sizes = choose_sizes(hardware, RunConfig(source="s", model="m", destination="d", compute=compute).compute, 100)
    paces = {"read": Pace(1000, 1, 0.1, 0.1), "decode": decode, "infer": infer}
    return Probe(paces, 1.0, {}, "eager", 16, hardware, sizes, None, False)


def test_without_a_gpu_the_steps_share_the_cores():
    found = _made(Hardware(8, 0, 8, 0, inf), {}, Pace(100, 1, 0.2, 0.2), Pace(100, 1, 5.0, 5.0))
    assert found.bottleneck == "infer" and found.decoders_per_gpu is None
    per_image = 0.0001 + 0.002 + 0.05 + 0.035 / found.sizes.chunk_rows
    assert found.images_per_s == pytest.approx(8 / per_image)


def test_waiting_takes_no_core():
    found = _made(Hardware(8, 0, 8, 0, inf), {}, Pace(100, 1, 50.0, 0.1), Pace(100, 1, 5.0, 5.0))
    assert found.bottleneck == "decode"
    assert found.images_per_s == pytest.approx(found.sizes.preprocess_actors * 2)


@pytest.mark.parametrize(("share", "gpus", "rate"), [("auto", 1, 1), (0.5, 1, 1), (1, 2, 2), (2, 2, 1)])
def test_a_gpu_waits_for_as_many_decoders_as_it_takes(share, gpus, rate):
    machine = Hardware(64, gpus, 64, gpus, inf)
    found = _made(machine, {"gpus_per_actor": share}, Pace(100, 1, 0.2, 0.2), Pace(2000, 1, 1.0, 0.2))
    assert found.decoders_per_gpu == pytest.approx(4 / (share if share == 2 else 1))
    assert (found.bottleneck, found.images_per_s) == ("infer", pytest.approx(2000 * rate))
    few = Hardware(4, gpus, 4, gpus, inf)
    slower = _made(few, {"gpus_per_actor": share}, Pace(100, 1, 0.5, 0.5), Pace(2000, 1, 1.0, 0.2))
    assert slower.bottleneck == "decode" and slower.images_per_s <= 200 * slower.sizes.preprocess_actors


def test_the_command_line_tells(tars, model, tmp_path, monkeypatch, capsys):
    photo = Path(tmp_path, "bad.jpg")
    photo.write_bytes(make_images(1)[0][:-700])
    code, out, _ = birder_ray(
        monkeypatch, capsys, "plan", tars, str(photo), "--model", model, "-o", str(tmp_path / "out"), "--probe"
    )
    assert code == 0
    lines = [line for line in out.splitlines() if "other programs" not in line]
    labels = [line[:9].rstrip() for line in lines]
    assert labels == ["source", "units", "actors", "probe", "read", "decode", "infer", "predict", "whole"]
    told = dict(zip(labels, lines, strict=True))
    assert "81 images" in told["probe"] and "1 would be quarantined (TruncatedImage 1)" in told["probe"]
    assert "MB/s" in told["read"] and "eager" in told["infer"] and "bottleneck" in told["predict"]
    assert "images" in told["whole"] and told["whole"].count("about") == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("core_s", "told"), [(1.0, False), (0.5, True)])
def test_a_machine_that_is_busy_with_something_else_is_told(capsys, core_s, told):
    hardware = Hardware(8, 1, 8, 1, inf)
    show_probe(_made(hardware, {}, Pace(100, 1, 1.0, core_s), Pace(100, 1, 5.0, 5.0)))
    out = capsys.readouterr().out
    assert ("other programs kept the cores busy" in out) == told
    assert "0.2 cores that decode keep one GPU busy" in out and "no telling how long" in out


def test_a_pipeline_file_does_as_well(tars, model, tmp_path, monkeypatch, capsys):
    config = _config(tars, model, tmp_path)
    score(config)
    file = tmp_path / "job.yaml"
    file.write_text(f"source: {tars}\nmodel: {model}\ndestination: {tmp_path / 'out'}\n")
    code, out, _ = birder_ray(monkeypatch, capsys, "plan", str(file), "--probe")
    assert code == 0 and out.splitlines()[-1] == "probe    nothing is left to do, so nothing was measured"
    code, out, _ = birder_ray(
        monkeypatch, capsys, "plan", str(file), "--probe", "--set", f"destination={tmp_path}/other", "--set",
        "source.limit=20",
    )  # fmt: skip
    last = out.splitlines()[-1]
    assert code == 0 and last.startswith("whole ") and last.endswith("for 20 images")


def test_no_gpu_where_one_is_asked_for(tars, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    code, _, err = birder_ray(
        monkeypatch, capsys, "plan", tars, "--model", model, "-o", str(tmp_path / "out"), "--probe",
        "--gpus-per-actor", "1",
    )  # fmt: skip
    assert code == 2 and err.startswith("error: compute.gpus_per_actor") and err.count("\n") == 1


def test_plan_alone_needs_neither_torch_nor_ray(tars, tmp_path):
    script = (
        "import sys; from birder_ray.cli import main\n"
        "try:\n    main()\nfinally:\n    assert not {'ray', 'torch'} & set(sys.modules), 'heavy'"
    )
    command = ["plan", tars, "--model", "m", "-o", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

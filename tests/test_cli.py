"""What a user types and reads: one plain line for a mistake, the right exit code, no traceback, no noise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from birder_ray.cli import app
from birder_ray.commit import Ledger
from birder_ray.folder import Folder
from birder_ray.record import record_name
from birder_ray.testing import make_shards, tiny_checkpoint
from tests.built import build
from tests.command import birder_ray


@pytest.fixture
def photos_dir(tmp_path) -> str:
    make_shards(str(tmp_path / "photos"), 3, 1, "images")
    return str(tmp_path / "photos")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["score", "PHOTOS"], "give --model and --output"),
        (["score", "PHOTOS", "--model", "m"], "give --model and --output"),
        (["score", "PHOTOS", "--model", "m", "-o", "out", "--top-k", "none"], "outputs.predictions.top_k"),
        (["score", "PHOTOS", "--model", "m", "-o", "out", "--size", "big"], "model.size"),
        (["score", "PHOTOS", "--model", "m", "-o", "out", "--outputs", "pixels"], "outputs.pixels: no such option"),
        (["score", "PHOTOS", "--model", "m", "-o", "out", "--outputs", "embeddings", "--top-k", "3"], "leaves out"),
        (["score", "PHOTOS", "--model", "m", "-o", "out", "--source-option", "anon"], "KEY=VALUE"),
        (["plan", "PHOTOS/nowhere", "--model", "m", "-o", "out"], "nowhere"),
        (["run", "nowhere.yaml"], "nowhere.yaml: no such pipeline file"),
        (["status", "PHOTOS"], "no manifest.json"),
        (["verify", "PHOTOS"], "no manifest.json"),
        (["score"], "SOURCE"),
        (["scroe"], "scroe"),
        (["score", "PHOTOS", "--modle", "m"], "--modle"),
    ],
)
def test_a_mistake_is_one_plain_line_and_exit_code_2(monkeypatch, capsys, photos_dir, tmp_path, arguments, line):
    monkeypatch.chdir(tmp_path)
    told = [argument.replace("PHOTOS", photos_dir) for argument in arguments]
    code, out, err = birder_ray(monkeypatch, capsys, *told)
    assert (code, out) == (2, "")
    assert line in err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_a_failed_check_is_exit_code_1(monkeypatch, capsys, tmp_path):
    folder = Folder(str(tmp_path))
    build(folder, {"a.tar": 5})
    assert birder_ray(monkeypatch, capsys, "verify", str(tmp_path))[0] == 0
    next((tmp_path / "embeddings").iterdir()).unlink()
    code, out, err = birder_ray(monkeypatch, capsys, "verify", str(tmp_path))
    assert (code, out) == (1, "")
    assert "missing" in err


def test_status_and_plan_tell_how_far_a_run_is(monkeypatch, capsys, tmp_path, photos_dir):
    folder = Folder(str(tmp_path / "out"))
    build(folder, {"a.tar": 25}, finish=False)
    for unit in Ledger(folder).units():
        record = folder.read_json(record_name(unit))
        seconds = {step: spent for step, spent in record["seconds"].items() if step not in ("wait", "transfer")}
        folder.write_json(record_name(unit), record | {"seconds": seconds})
    code, out, _ = birder_ray(monkeypatch, capsys, "status", str(tmp_path / "out"))
    assert code == 0
    assert "unfinished" in out and "1 of 1 done" in out and "24 scored, 2 quarantined" in out
    assert "slowest" in out and "pass between" not in out, "earlier records do not say how long chunks waited"
    code, out, _ = birder_ray(monkeypatch, capsys, "plan", photos_dir, "--model", "m", "-o", str(tmp_path / "new"))
    assert code == 0
    assert "1 shards" in out and "3 images" in out and "0 done, 1 to do" in out
    assert not (tmp_path / "new").exists(), "plan writes nothing"


@pytest.mark.parametrize(
    ("step", "advice"), [("read", "storage"), ("decode", "CPU cores"), ("infer", "GPUs"), ("write", "destination")]
)
def test_status_says_which_step_took_the_most_and_what_would_help(monkeypatch, capsys, tmp_path, step, advice):
    folder = Folder(str(tmp_path))
    build(folder, {"a.tar": 10})
    (unit,) = Ledger(folder).units()
    seconds = {"read": 0.1, "decode": 0.1, "infer": 0.1, "write": 0.1} | {step: 0.2, "wait": 4.0, "transfer": 0.5}
    folder.write_json(record_name(unit), folder.read_json(record_name(unit)) | {"seconds": seconds})
    folder.delete("_SUCCESS")
    code, out, _ = birder_ray(monkeypatch, capsys, "status", str(tmp_path))
    assert code == 0
    slowest, change = out.splitlines()[-2:]
    assert slowest == f"slowest  {step}: 18.2 of 45.5 ms of work per image; 409.1 ms pass between the steps"
    assert advice in change


def test_status_before_the_first_commit_names_no_step(monkeypatch, capsys, tmp_path):
    folder = Folder(str(tmp_path))
    build(folder, {"a.tar": 5}, finish=False)
    Ledger(folder).erase(*Ledger(folder).units())
    code, out, _ = birder_ray(monkeypatch, capsys, "status", str(tmp_path))
    assert code == 0 and out.splitlines()[-1] == "seconds  0"


def test_help_names_every_option_of_the_contract():
    text = CliRunner().invoke(app, ["score", "--help"]).output
    contract = (
        "--model --output --network --size --center-crop --simple-crop --tta --dtype --amp --compile "
        "--decoder --top-k --outputs --logits --levels --pooling --embedding-dtype --label-column --limit "
        "--unit-rows --max-error-rate --overwrite --ray-address --format --batch-size --preprocess-actors "
        "--inference-actors --weights-mirror --retry-errors --anonymous --endpoint-url "
    )
    for option in contract.split():
        assert option in text, option
    assert "Undefined" not in text


@pytest.mark.ray
def test_score_says_what_it_did_and_nothing_else(tmp_path):
    make_shards(str(tmp_path / "tars"), 6, 2)
    (tmp_path / "tars" / "bad.tar").write_bytes(b"no tar" * 200)
    model = str(tmp_path / "hgnet_v2_b0_tiny.pt")
    tiny_checkpoint(model)
    command = [str(Path(sys.executable).with_name("birder-ray")), "score", str(tmp_path / "tars"), "--model", model]
    environment = {**os.environ, "RAY_TMPDIR": f"/tmp/brc-{os.getpid()}"}
    Path(environment["RAY_TMPDIR"]).mkdir(exist_ok=True)
    told = {"env": environment, "capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": 300}
    done = subprocess.run([*command, "-o", str(tmp_path / "out")], check=False, **told)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "images/s" not in line] == []  # a slow machine's progress
    for words in ("images", "12 (12 now)", "1 (DamagedTar 1)", "images/s", "birder-ray verify", "errors/*.parquet"):
        assert words in done.stdout, words
    refused = subprocess.run([*command, "-o", str(tmp_path / "out"), "--center-crop", "0.5"], check=False, **told)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1
    assert "--overwrite" in refused.stderr


def test_the_module_runs_without_ray_or_torch_where_it_can(tmp_path):
    build(Folder(str(tmp_path)), {"a.tar": 5})
    script = (
        "import sys; from birder_ray.cli import main; sys.argv[1:] = sys.argv[1:]\n"
        "try:\n    main()\nfinally:\n    assert not {'ray', 'torch'} & set(sys.modules), 'heavy'"
    )
    for command in ("status", "verify"):
        done = subprocess.run(
            [sys.executable, "-c", script, command, str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

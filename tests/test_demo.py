import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from birder_ray import demo
from birder_ray.config import RunConfig
from birder_ray.errors import ConfigError

PHOTOS = 8


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunConfig]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, RunConfig(**demo.prepare(str(folder)))


def members(shard: str) -> dict[str, bytes]:
    """Every member that can be read, up to where the shard is cut."""
    found = {}
    with tarfile.open(shard) as tar:
        try:
            for member in tar:
                found[member.name] = tar.extractfile(member).read()
        except tarfile.ReadError:
            pass
    return found


def opens(data: bytes) -> bool:
    try:
        Image.open(io.BytesIO(data)).load()
    except OSError:
        return False
    return True


def test_the_shards_hold_every_photo_one_damaged_jpeg_and_one_cut(prepared: tuple[Path, RunConfig]) -> None:
    *whole, cut = [members(shard) for shard in prepared[1].source.uri]
    assert [len(shard) for shard in whole] == [27, 27]
    assert 15 < len(cut) < 26
    everything = {name: data for shard in (*whole, cut) for name, data in shard.items()}
    assert len({name.rpartition("-")[0] for name in everything}) == PHOTOS
    damaged = [name for shard in whole for name, data in shard.items() if not opens(data)]
    assert damaged == [f"{demo.DAMAGED}.jpg"]


def test_preparing_again_changes_nothing(prepared: tuple[Path, RunConfig]) -> None:
    folder, config = prepared
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert RunConfig(**demo.prepare(str(folder))) == config
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_shards_are_the_same_everywhere(prepared: tuple[Path, RunConfig], tmp_path: Path) -> None:
    again = RunConfig(**demo.prepare(str(tmp_path)))
    for first, second in zip(prepared[1].source.uri, again.source.uri, strict=True):
        assert Path(first).read_bytes() == Path(second).read_bytes()


def test_the_checkpoint_sees_a_cat(prepared: tuple[Path, RunConfig]) -> None:
    import birder
    import torch
    from birder.inference.classification import infer_image
    from birder.model_registry import registry

    saved = torch.load(prepared[1].model.name, weights_only=True)
    net = registry.net_factory(demo.NETWORK, len(saved["class_to_idx"]))
    net.load_state_dict(saved["state"])
    net.eval()
    transform = birder.classification_transform((224, 224), saved["rgb_stats"], center_crop=0.875, simple_crop=True)
    cat = next(data for shard in prepared[1].source.uri for name, data in members(shard).items() if name == "cat-0.jpg")
    with torch.inference_mode():
        probabilities, _ = infer_image(net, Image.open(io.BytesIO(cat)), transform)
    assert list(saved["class_to_idx"])[int(probabilities[0].argmax())] == "Egyptian cat"


def test_show_prints_the_vote_of_the_views_and_the_quarantine(tmp_path: Path) -> None:
    predictions = [
        ("cat-0", "tabby", 0.5),
        ("cat-1", "tabby", 0.7),
        ("cat-2", "lynx", 0.9),
        ("temple-0", "palace", 0.4),
    ]
    samples, names, probabilities = zip(*predictions, strict=True)
    parts = {
        "predictions": {
            "sample": [f"demo-000000.tar/{sample}" for sample in samples],
            "prediction": names,
            "probability": probabilities,
        },
        "errors": {"sample": ["demo-000001.tar/coffee-3"], "step": ["decode"], "message": ["cut short"]},
    }
    for table, columns in parts.items():
        (tmp_path / table).mkdir()
        pq.write_table(pa.table(columns), tmp_path / table / "unit.parquet")
    console = Console(record=True, width=160, file=io.StringIO())
    demo.show(str(tmp_path), console)
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "│ cat │ tabby │ 2 of 3 │ 0.60 │" in lines
    assert any("coffee-3" in line and "decode" in line and "cut short" in line for line in lines)
    assert "4 views of 2 photos" in lines


def test_a_missing_package_is_named_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"no_such_package: pip install 'birder-ray\[demo\]'"):
        demo._demo_package("no_such_package")


@pytest.mark.ray
@pytest.mark.slow
def test_the_command_runs_end_to_end_and_again(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("birder-ray"))]
    first = subprocess.run([*command, "demo", str(tmp_path)], capture_output=True, text=True, check=False, timeout=240)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Egyptian cat" in first.stdout
    assert demo.DAMAGED in first.stdout
    scores = str(tmp_path / "scores")
    verify = subprocess.run([*command, "verify", scores], capture_output=True, text=True, check=False, timeout=60)
    assert verify.returncode == 0, verify.stdout + verify.stderr
    parts = {path: path.stat().st_mtime_ns for path in Path(scores, "predictions").iterdir()}
    again = subprocess.run([*command, "demo", str(tmp_path)], capture_output=True, text=True, check=False, timeout=240)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in Path(scores, "predictions").iterdir()} == parts

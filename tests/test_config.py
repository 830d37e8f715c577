"""RunConfig: what it accepts, and that a mistake is one plain line that names the field."""

from pathlib import Path
from typing import Any

import pytest

from birder_ray.config import RunConfig
from birder_ray.errors import ConfigError

MINIMAL: dict[str, Any] = {"source": "photos/", "model": "hgnet", "destination": "scores/"}


def config(**fields: Any) -> RunConfig:
    return RunConfig(**{**MINIMAL, **fields})


def message_of(**fields: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        config(**fields)
    message = str(raised.value)
    assert "\n" not in message
    assert "pydantic" not in message
    return message


@pytest.fixture
def pipeline(tmp_path: Path) -> str:
    path = tmp_path / "pipeline.yaml"
    path.write_text("source: photos/\nmodel: hgnet\ndestination: scores/\n")
    return str(path)


def test_the_short_forms() -> None:
    short = config(source=["a", "b"], outputs=None)
    assert short.source.uri == ("a", "b")
    assert short.model.name == "hgnet"
    assert short.outputs.tables == ("predictions", "embeddings", "features")
    assert config().source.uri == ("photos/",)


@pytest.mark.parametrize(
    ("given", "height_width"),
    [
        (384, (384, 384)),
        ("384", (384, 384)),
        ("384x512", (384, 512)),
        ("384X512", (384, 512)),
        ([384, 512], (384, 512)),
    ],
)
def test_sizes_are_height_and_width(given: Any, height_width: tuple[int, int]) -> None:
    assert config(model={"name": "m", "size": given}).model.size == height_width


@pytest.mark.parametrize("given", ["big", "384x", "x", "3x4x5", 0, -1, True, [384], [384, 512, 3], [384, 0], 38.5])
def test_a_wrong_size_is_refused_with_an_example(given: Any) -> None:
    message = message_of(model={"name": "m", "size": given})
    assert message.startswith("model.size")
    assert "384" in message


@pytest.mark.parametrize(
    ("outputs", "tables"),
    [
        ({"embeddings": {}}, ("embeddings",)),
        ({"embeddings": None}, ("embeddings",)),
        ({"features": None, "predictions": {"top_k": 1}}, ("predictions", "features")),
    ],
)
def test_a_named_table_is_written_and_one_left_out_is_not(outputs: dict[str, Any], tables: tuple[str, ...]) -> None:
    assert config(outputs=outputs).outputs.tables == tables


def test_one_level_or_pooling_may_stand_alone() -> None:
    features = config(outputs={"features": {"levels": "stage4", "pooling": "gem"}}).outputs.features
    assert features is not None
    assert (features.levels, features.pooling) == (("stage4",), ("gem",))
    everything = config(outputs={"features": {"levels": "all"}}).outputs.features
    assert everything is not None
    assert everything.levels == "all"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model": {"name": "m", "sze": 3}}, "model.sze: no such option"),
        ({"modle": "m"}, "modle: no such option"),
        ({"compute": {"batch-size": 3}}, "compute.batch-size: no such option"),
        ({"model": {}}, "model.name: must be given"),
        ({"outputs": {"prediction": {}}}, "outputs.prediction: no such option"),
    ],
)
def test_unknown_and_missing_fields(fields: dict[str, Any], expected: str) -> None:
    assert message_of(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"compute": {"dtype": "int8"}}, "compute.dtype: "),
        ({"compute": {"batch_size": "many"}}, "compute.batch_size: "),
        ({"compute": {"batch_size": 0}}, "compute.batch_size: "),
        ({"compute": {"inference_actors": -1}}, "compute.inference_actors: "),
        ({"compute": {"gpus_per_actor": -0.5}}, "compute.gpus_per_actor: "),
        ({"compute": {"unit_rows": 0}}, "compute.unit_rows: "),
        ({"model": {"name": "m", "center_crop": 0}}, "model.center_crop: "),
        ({"model": {"name": "m", "center_crop": float("nan")}}, "model.center_crop: "),
        ({"model": {"name": "m", "decoder": "cv2"}}, "model.decoder: "),
        ({"outputs": {}}, "outputs: "),
        ({"outputs": {"features": {"pooling": []}}}, "outputs.features.pooling: "),
        ({"outputs": {"features": {"pooling": ["mean", "mean"]}}}, "outputs.features.pooling: "),
        ({"outputs": {"features": {"pooling": ["median"]}}}, "outputs.features.pooling"),
        ({"outputs": {"features": {"levels": []}}}, "outputs.features.levels: "),
        ({"outputs": {"features": {"levels": ["stage1", "stage1"]}}}, "outputs.features.levels: "),
        ({"source": []}, "source.uri: "),
        ({"source": ""}, "source.uri"),
        ({"source": {"uri": "a", "limit": 0}}, "source.limit: "),
        ({"source": {"uri": "a", "format": "zip"}}, "source.format: "),
        ({"destination": ""}, "destination: "),
        ({"destination": None}, "destination: "),
        ({"run": {"max_error_rate": 2}}, "run.max_error_rate: "),
    ],
)
def test_a_wrong_value_names_its_field_as_the_user_wrote_it(fields: dict[str, Any], where: str) -> None:
    assert message_of(**fields).startswith(where)


def test_a_wrong_value_of_the_options_is_not_repeated() -> None:
    message = message_of(source={"uri": "a", "options": "key=me secret=hush"})
    assert message.startswith("source.options: ")
    assert "hush" not in message


def test_a_block_left_empty_in_the_file_means_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text("source: photos/\nmodel: hgnet\ndestination: scores/\ncompute:\nrun:\noutputs:\n")
    assert RunConfig.from_yaml(str(path)) == config()


def test_the_configuration_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config().destination = "elsewhere"


@pytest.mark.parametrize(
    ("override", "field", "expected"),
    [
        ("model.size=384", ("model", "size"), (384, 384)),
        ("model.size=384x512", ("model", "size"), (384, 512)),
        ("model.center_crop=0.875", ("model", "center_crop"), 0.875),
        ("model.simple_crop=true", ("model", "simple_crop"), True),
        ("model=other", ("model", "name"), "other"),
        ("source=elsewhere/", ("source", "uri"), ("elsewhere/",)),
        ("source.uri=[a, b]", ("source", "uri"), ("a", "b")),
        ("source.format=tar", ("source", "uri"), ("photos/",)),
        ("source.options.anon=true", ("source", "options"), {"anon": True}),
        ("destination=s3://bucket/a=b", ("destination",), "s3://bucket/a=b"),
        ("compute.batch_size=8", ("compute", "batch_size"), 8),
        ("compute.gpus_per_actor=0.5", ("compute", "gpus_per_actor"), 0.5),
        ("outputs.predictions.top_k=3", ("outputs", "tables"), ("predictions",)),
    ],
)
def test_an_override_replaces_one_field(pipeline: str, override: str, field: tuple[str, ...], expected: Any) -> None:
    found: Any = RunConfig.from_yaml(pipeline, (override,))
    for name in field:
        found = getattr(found, name)
    assert found == expected


def test_the_last_override_wins_and_the_others_stand(pipeline: str) -> None:
    run = RunConfig.from_yaml(pipeline, ("model.size=100", "compute.unit_rows=7", "model.size=200"))
    assert (run.model.name, run.model.size, run.compute.unit_rows) == ("hgnet", (200, 200), 7)


@pytest.mark.parametrize("override", ["model.size", "=3", "model.size=[1", "..=1", "model.=1"])
def test_an_override_that_cannot_be_read_is_named(pipeline: str, override: str) -> None:
    with pytest.raises(ConfigError) as raised:
        RunConfig.from_yaml(pipeline, (override,))
    assert override.partition("=")[0] in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content", [b"", b"- a\n- b\n", b"source: [1", b"\xff\xfe\x00", b"source: !!python/object:os.system x\n"]
)
def test_a_file_that_is_no_pipeline_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        RunConfig.from_yaml(str(path))
    assert "broken.yaml" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_key_that_is_a_number_is_no_option(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text("source: photos/\nmodel: hgnet\ndestination: scores/\n1: x\n")
    with pytest.raises(ConfigError, match=r"^1: no such option$"):
        RunConfig.from_yaml(str(path))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such pipeline file"):
        RunConfig.from_yaml(str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match=str(tmp_path)):
        RunConfig.from_yaml(str(tmp_path))


def test_a_pipeline_file_may_lie_on_any_url() -> None:
    import fsspec

    with fsspec.open("memory://pipelines/one.yaml", "w") as file:
        file.write("source: photos/\nmodel: hgnet\ndestination: scores/\n")
    assert RunConfig.from_yaml("memory://pipelines/one.yaml") == config()

"""The pipeline files that ship with the project load, and between them explain every field there is."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from birder_ray.config import RunConfig

FOLDER = Path(__file__).resolve().parents[1] / "pipelines"
FILES = sorted(FOLDER.glob("*.yaml"))
REFERENCE = FOLDER / "danube_delta.yaml"

FIELD = re.compile(r"^( *)(# )?([a-z_]+):( |$)")


def block_of(annotation: Any) -> type[BaseModel] | None:
    """The configuration block behind a field's type, `Block | None` too."""
    kinds = [annotation, *get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def fields_of(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        block = block_of(field.annotation)
        found += [f"{prefix}{name}", *(fields_of(block, f"{prefix}{name}.") if block else [])]
    return found


def explained(path: Path) -> dict[str, str]:
    """Dotted name of every field in a file, commented out or not, and the prose directly above it.

    Fields on neighbouring lines share the prose above the first.
    """
    found: dict[str, str] = {}
    parents: dict[int, str] = {}
    prose: list[str] = []
    after_field = False
    for line in path.read_text().splitlines():
        field = FIELD.match(line)
        if field:
            indent = len(field[1])
            parents = {depth: name for depth, name in parents.items() if depth < indent} | {indent: field[3]}
            found[".".join(parents.values())] = " ".join(prose)
        else:
            is_prose = line.strip().startswith("#")
            prose = [*(prose if not after_field else []), line.strip(" #")] if is_prose else []
        after_field = field is not None
    return found


def test_there_are_pipelines() -> None:
    assert {path.stem for path in FILES} >= {"danube_delta", "inat21", "inat21_256px_at_384", "inat_open_data"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_loads(path: Path) -> None:
    config = RunConfig.from_yaml(str(path))
    assert config.outputs.tables
    assert config.destination.startswith("s3://my-bucket/")


@pytest.mark.parametrize("field", fields_of(RunConfig))
def test_every_field_is_in_the_reference_file_and_explained(field: str) -> None:
    found = explained(REFERENCE)
    assert field in found, f"{REFERENCE.name} does not name {field}: add it, with a comment above it"
    block, _, _ = field.rpartition(".")
    if block or field in ("destination", "destination_options"):
        assert len(found[field]) > 10, f"{field} has no comment above it"


def test_the_reference_file_names_nothing_that_does_not_exist() -> None:
    assert set(explained(REFERENCE)) <= set(fields_of(RunConfig))


def test_what_is_commented_out_shows_the_default_or_an_example_of_the_right_type() -> None:
    """Taking the comment signs away leaves a file that loads, with the same defaults but for the examples."""
    text = "\n".join(FIELD.sub(r"\1\3:\4", line) for line in REFERENCE.read_text().splitlines())
    everything = RunConfig(**yaml.safe_load(text))
    given = RunConfig.from_yaml(str(REFERENCE))
    examples = {"image_column", "id_column", "label_column", "limit", "network", "weights_mirror", "ray_address"}
    for block in ("source", "model", "compute", "run"):
        shown, default = getattr(everything, block).model_dump(), getattr(given, block).model_dump()
        assert {name for name in shown if shown[name] != default[name]} <= examples | {"options"}
    assert everything.outputs == given.outputs

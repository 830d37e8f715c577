"""The README's snippets run on a real destination; its commands and options exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from birder_ray.cli import app
from birder_ray.folder import Folder
from tests.built import build

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = dict(re.findall(r"<!-- test: (\w+) -->\n```python\n(.*?)```", README, re.DOTALL))


def test_there_is_one_per_tool():
    assert set(SNIPPETS) == {"duckdb", "polars", "pandas"}


@pytest.mark.parametrize("name", sorted(SNIPPETS))
def test_snippets_run_as_they_stand(tmp_path, name):
    build(Folder(str(tmp_path / "scores")), {"a.tar": 25, "cut.tar": 12})
    done = subprocess.run(
        [sys.executable, "-c", SNIPPETS[name]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {"duckdb": "photos", "polars": "embedding", "pandas": "TruncatedTar"}[name] in done.stdout


def test_every_command_it_names_exists():
    named = set(re.findall(r"^\| `(\w+)", README, re.MULTILINE))
    listed = set(re.findall(r"^  (\w+)  ", CliRunner().invoke(app, ["--help"]).output, re.MULTILINE))
    assert named == listed


def test_every_option_it_names_exists():
    text = "".join(CliRunner().invoke(app, [name, "--help"]).output for name in app.commands)
    for option in set(re.findall(r"`?(--[a-z][a-z-]+)", README)):
        assert option in text, option


@pytest.mark.parametrize(
    "document", [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md"], ids=lambda path: path.name
)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
        assert (document.parent / target).exists(), target

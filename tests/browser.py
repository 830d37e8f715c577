"""A page as Chromium makes it, without a window."""

import shutil
import subprocess
from pathlib import Path

import pytest


def browsed(file: Path, *flags: str) -> str:
    """The elements of a page when its scripts have run; nothing may have gone wrong in them. Skips without Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--dump-dom",
        "--virtual-time-budget=10000", f"--user-data-dir={file.parent / 'profile'}", *flags, file.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert "<html" in done.stdout.partition("<head>")[0]
    return done.stdout

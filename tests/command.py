"""The command line, called in this process."""

import sys

from birder_ray.cli import main


def birder_ray(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `birder-ray ARGUMENTS...`."""
    monkeypatch.setattr(sys, "argv", ["birder-ray", *arguments])
    code = 0
    try:
        main()
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    out, err = capsys.readouterr()
    return code, out, err

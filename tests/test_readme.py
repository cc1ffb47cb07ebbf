"""The README is true: its first block of Python runs as printed, and its commands and options exist."""

import re
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from vaespec.cli.app import app

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_first_block_of_python_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, *_ = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(first, names)
    assert np.asarray(names["posterior"].mean).shape == (2, 16, 32, 32)
    assert np.asarray(names["images"]).shape == (2, 3, 256, 256)
    assert (tmp_path / "my-vae" / "config.json").exists()


def test_the_commands_and_their_options_exist():
    lines = [line.split("#")[0] for line in README.splitlines() if line.startswith("vaespec ")]
    commands = [command.split() for line in lines for command in line.split("&&")]
    assert len(commands) >= 6
    for _, command, *arguments in commands:
        page = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        assert "Usage" in page
        assert [option for option in arguments if option.startswith("--") and option not in page] == []

"""Every test of the command line starts in an empty folder with a link to narrow weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from support.workplace import NARROW, saved
from typer.main import get_command


@pytest.fixture(scope="package", autouse=True)
def _commands_are_built_once():
    """Typer's runner builds the commands anew for each run, which takes longer than most commands do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", cache(get_command), raising=False)
        yield


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    return saved(NARROW, tmp_path_factory.mktemp("narrow"))


@pytest.fixture(scope="session")
def weights_without_attention(tmp_path_factory) -> Path:
    """For the demo's photograph, whose 4096 tokens of attention would take most of the time."""
    return saved(NARROW.replace(mid_block_add_attention=False), tmp_path_factory.mktemp("without-attention"))


@pytest.fixture(autouse=True)
def _workplace(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    Path("weights").symlink_to(weights)

"""Every test of the command line starts in an empty folder with a narrow model."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.workplace import NARROW, saved


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    return saved(NARROW, tmp_path_factory.mktemp("narrow"))


@pytest.fixture(autouse=True)
def _workplace(tmp_path, monkeypatch, weights):
    """Every test starts in an empty folder, but for a link to the narrow weights."""
    monkeypatch.chdir(tmp_path)
    Path("weights").symlink_to(weights)

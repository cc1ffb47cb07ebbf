"""Damaged inputs and killed work, at random: see tests/support/damage.py and tests/support/kills.py.

benchmarks/attacks.py asks the same of a hundred thousand inputs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.kills import WORKS
from support.weight_files import WRITERS


def tally_of(module: str, *arguments: str | int) -> dict[str, Any]:
    """Runs a module of support/ in a process of its own; returns what it counted."""
    command = [sys.executable, "-m", f"support.{module}", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, timeout=3600)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


def require_harmless(kind: str, count: int) -> None:
    """Every input is accepted or refused in one line, in 10 s and bounded memory, and the damage is real."""
    tally = tally_of("damage", kind, count)
    assert tally["accepted"] + tally["refused"] == count
    assert tally["refused"] > count // 4
    assert tally["grown_mb"] < 200


@pytest.mark.parametrize("container", WRITERS)
def test_a_damaged_weight_file_is_read_or_refused_in_twice_its_size(container):
    require_harmless(container, 100)


@pytest.mark.parametrize("container", [container for container in WRITERS if container != "shards"])
def test_a_damaged_file_of_a_model_is_loaded_or_refused(container):
    require_harmless(f"model:{container}", 40)


def test_a_damaged_picture_is_read_or_refused():
    require_harmless("pictures", 400)


def test_an_odd_config_describes_a_model_or_is_refused():
    require_harmless("configs", 1000)


@pytest.mark.parametrize("work", WORKS)
def test_killed_work_leaves_the_old_or_the_new_result(work):
    """A folder of weights may also be refused; a mixture never loads."""
    tally = tally_of("kills", work, 4)
    assert sum(tally.values()) == 4
    assert work == "save_pretrained" or tally["refused"] == 0
    assert tally["new"] < 4

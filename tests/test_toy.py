"""A stranger's backend: a package that vaespec does not know, built, installed and found as any other."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vaespec.ops import KERNELS

TOY = Path(__file__).parent.parent / "examples" / "vaespec-toy"


def printed(*arguments: str, **where) -> str:
    """What `python *arguments` prints."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, encoding="utf-8", **where)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Runs Python in a new process that has the toy's wheel installed, away from the checkout."""
    wheels, target, elsewhere = (tmp_path_factory.mktemp(name) for name in ("wheels", "target", "elsewhere"))
    printed("-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(TOY))
    (wheel,) = wheels.glob("*.whl")
    printed("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    env = os.environ | {"PYTHONPATH": str(target), "PYTHONWARNINGS": "error"}
    return lambda *arguments: printed(*arguments, cwd=elsewhere, env=env)


LISTING = """
import dataclasses, json, sys, vaespec
rows = {info.name: dataclasses.asdict(info) for info in vaespec.backends()}
print(json.dumps({**rows["toy"], "imported": "array_api_strict" in sys.modules}))
"""


def test_it_is_listed_as_another_distributions_without_importing_its_framework(toy):
    row = json.loads(toy("-c", LISTING))
    assert (row["distribution"], row["framework"], row["problem"]) == ("vaespec-toy", "array-api-strict", None)
    assert (row["devices"], row["dtypes"]) == (["cpu"], ["float32", "float64"])
    assert row["ops"] == dict.fromkeys(KERNELS, "fallback")
    assert row["imported"] is False


COMPARISON = """
import numpy as np, vaespec
numpy, toy = (vaespec.load("tiny", backend=name, dtype="float64") for name in ("numpy", "toy"))
for direction, shape in ("encode_latents", (2, 3, 24, 32)), ("decode_latents", (2, 16, 3, 4)):
    x = np.random.default_rng(0).uniform(-1, 1, shape)
    expected, actual = (vae.to_numpy(getattr(vae, direction)(x)) for vae in (numpy, toy))
    print(direction, actual.dtype, np.linalg.norm(actual - expected) / np.linalg.norm(expected))
"""


def test_it_encodes_and_decodes_as_numpy_does_in_float64(toy):
    lines = [line.split() for line in toy("-c", COMPARISON).splitlines()]
    assert [line[:2] for line in lines] == [["encode_latents", "float64"], ["decode_latents", "float64"]]
    assert max(float(error) for *_, error in lines) <= 1e-13


def test_the_command_line_shows_it_with_every_operation_a_fallback(toy):
    lines = toy("-c", "from vaespec.cli import main; main()", "backends").splitlines()
    (row,) = (re.split(r"\s{2,}", line) for line in lines if line.startswith("toy "))
    name, usable, framework, *_, fallback = row
    assert (name, usable, fallback) == ("toy", "yes", " ".join(KERNELS))
    assert framework.startswith("array-api-strict ")
    assert "from vaespec-toy: toy" in lines


def test_it_is_two_files_of_at_most_80_lines():
    files = [path for path in TOY.iterdir() if path.suffix in (".py", ".toml")]
    assert {path.name for path in files} == {"pyproject.toml", "vaespec_toy.py"}
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= 80

"""A backend in a package that vaespec does not know: it is built, installed, found and used like ours."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.depth import first

from vaespec.ops import KERNELS

OWN = ("conv2d", "upsample_nearest2x")
TOY = Path(__file__).parent.parent / "examples" / "vaespec-toy"


def printed(*arguments: str, **options) -> str:
    """The output of `python *arguments`."""
    process = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, encoding="utf-8", **options)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A function that runs Python in a new process with the toy's wheel installed, outside the checkout."""
    wheels, target, elsewhere = (tmp_path_factory.mktemp(name) for name in ("wheels", "target", "elsewhere"))
    printed("-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(TOY))
    (wheel,) = wheels.glob("*.whl")
    printed("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    path = os.pathsep.join([str(target), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": path, "PYTHONWARNINGS": "error"}
    return lambda *arguments: printed(*arguments, cwd=elsewhere, env=env)


LISTING = """
import dataclasses, json, sys, vaespec
rows = {info.name: dataclasses.asdict(info) for info in vaespec.backends()}
print(json.dumps({**rows["toy"], "imported": "array_api_strict" in sys.modules}))
"""


def test_the_toy_is_listed_with_its_own_distribution_without_importing_its_framework(toy):
    row = json.loads(toy("-c", LISTING))
    assert (row["distribution"], row["framework"], row["problem"]) == ("vaespec-toy", "array-api-strict", None)
    assert (row["devices"], row["dtypes"]) == (["cpu"], ["float32", "float64"])
    assert row["ops"] == dict.fromkeys(KERNELS, "fallback") | dict.fromkeys(OWN, "native")
    assert row["imported"] is False


COMPARISON = """
import numpy as np, vaespec
numpy, toy = (vaespec.load("tiny", backend=name, dtype="float64") for name in ("numpy", "toy"))
for direction, shape in ("encode_latents", (2, 3, 24, 32)), ("decode_latents", (2, 16, 3, 4)):
    x = np.random.default_rng(0).uniform(-1, 1, shape)
    expected, actual = (vae.to_numpy(getattr(vae, direction)(x)) for vae in (numpy, toy))
    print(direction, actual.dtype, np.linalg.norm(actual - expected) / np.linalg.norm(expected))
"""


def test_the_toy_encodes_and_decodes_as_numpy_does_in_float64(toy):
    lines = [line.split() for line in toy("-c", COMPARISON).splitlines()]
    assert [line[:2] for line in lines] == [["encode_latents", "float64"], ["decode_latents", "float64"]]
    assert max(float(error) for *_, error in lines) <= 1e-13


def test_the_command_line_shows_which_operations_are_fallbacks(toy):
    lines = toy("-c", "from vaespec.cli import main; main()", "backends").splitlines()
    (row,) = (re.split(r"\s{2,}", line) for line in lines if line.startswith("toy "))
    name, usable, framework, *_, fallback = row
    assert (name, usable, fallback) == ("toy", "yes", " ".join(op for op in KERNELS if op not in OWN))
    assert framework.startswith("array-api-strict ")
    assert "from vaespec-toy: toy" in lines


CONFORMANCE = ("conformance", "--backend", "toy", "--profile", "quick")
VERDICTS = {"ops.conv2d": "toy: partial. 2 of 2 checks passed, ", "": "toy: conformant. All "}
"""For one check, and for all."""


@pytest.mark.parametrize("check", first(1, VERDICTS))
def test_the_toy_is_conformant_on_the_command_line(toy, check):
    options = ("--check", check) if check else ()
    *_, grades, verdict = toy("-c", "from vaespec.cli import main; main()", *CONFORMANCE, *options).splitlines()
    assert re.fullmatch(r"grades: float32 [AB], float64 [AB]", grades)
    assert verdict.startswith(VERDICTS[check])


PYTEST = ("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider")


def test_one_check_of_the_toy_runs_under_pytest(toy):
    options = ("--vaespec-backend", "toy", "--vaespec-profile", "quick", "--vaespec-check", "ops.conv2d")
    assert VERDICTS["ops.conv2d"] in toy(*PYTEST, "--pyargs", "vaespec_conformance", *options)


def test_the_toys_own_tests_are_the_suite(toy):
    output = toy(*PYTEST, "-k", "ops.conv2d", str(TOY / "test_vaespec_toy.py"))
    assert output.splitlines()[-1].startswith("2 passed")


def test_the_toy_is_three_files_of_at_most_100_lines():
    files = [path for path in TOY.iterdir() if path.suffix in (".py", ".toml")]
    assert {path.name for path in files} == {"pyproject.toml", "vaespec_toy.py", "test_vaespec_toy.py"}
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= 100

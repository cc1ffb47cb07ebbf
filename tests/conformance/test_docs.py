"""The pages for users are true: their code runs, and the options and checks that they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from support.depth import first
from typer.testing import CliRunner

import vaespec_conformance.checks  # noqa: F401  (registers)
from vaespec.cli.app import app
from vaespec_conformance.judging.registry import BLOCK, CHECKS, MODEL, OPERATION, PROFILES
from vaespec_conformance.running.agenda import agenda
from vaespec_conformance.subjects.loading import load_backend

ROOT = Path(__file__).parents[2]
PORT_THE_VAE, CHECK_YOUR_VAE = (
    (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("port-the-vae.md", "check-your-vae.md")
)
TOY = (ROOT / "examples/vaespec-toy/vaespec_toy.py").read_text(encoding="utf-8")
each_page = pytest.mark.parametrize("page", [PORT_THE_VAE, CHECK_YOUR_VAE], ids=["port-the-vae", "check-your-vae"])


def blocks(page: str, language: str = "python") -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    return [text for named, text in fenced if named == language]


def examined(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["conformance", "--profile", "quick", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_backend_in_twenty_lines_passes_and_has_no_kernels_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vaespec_toy.py").write_text(blocks(PORT_THE_VAE)[0])
    assert len(blocks(PORT_THE_VAE)[0].splitlines()) <= 20
    output = examined("--backend", "vaespec_toy:backend", "--level", "L0-L1")
    assert output.splitlines()[-2].endswith("; array-api-only")


def test_the_kernel_with_the_mistake_fails_as_the_page_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, kernel = blocks(PORT_THE_VAE)[:2]
    wrong = kernel.partition("\n\n")[0] + "\n\n" + before.replace("return ReferenceOps", "return ToyOps")
    (tmp_path / "vaespec_toy.py").write_text("from vaespec import ReferenceOps\n" + wrong)
    arguments = ["--backend", "vaespec_toy:backend", "--level", "L1", "--dtype", "float32", "--profile", "quick"]
    result = CliRunner().invoke(app, ["conformance", *arguments])
    assert result.exit_code == 1
    (shown,) = (block for block in blocks(PORT_THE_VAE, "") if "likely:" in block)
    for line in shown.splitlines()[:-1]:  # the last is shortened
        assert line in result.stdout.splitlines()


def test_the_convolution_of_the_page_is_the_toy_s():
    (kernel,) = (block for block in blocks(PORT_THE_VAE) if "patches" in block)
    assert kernel in TOY
    (native,) = (block for block in blocks(PORT_THE_VAE) if "native" in block)
    assert native in TOY
    suite = (ROOT / "examples/vaespec-toy/test_vaespec_toy.py").read_text(encoding="utf-8")
    assert any(block in suite for block in blocks(PORT_THE_VAE) if "conformance_suite" in block)


def test_the_page_says_how_many_checks_the_toy_passes():
    items = agenda(load_backend(f"{ROOT}/examples/vaespec-toy/vaespec_toy.py:backend"))
    asked = [item for item in items if item.lacking is None]
    assert f"toy: conformant. All {len(asked)} checks passed." in PORT_THE_VAE


@pytest.mark.parametrize("index", first(1, [1, 0]))
def test_the_ports_of_the_page_pass(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = blocks(CHECK_YOUR_VAE)[index]
    if index == 1:
        code += "\n\ndef build(config, weights):\n    return DiffusersPort(config, weights)\n"
    (tmp_path / "my_port.py").write_text(code)
    assert "my_port.py:build: partial." in examined("--port", "my_port.py:build", "--level", "L3,L6")


def test_the_comparison_of_activations_runs_as_the_page_shows_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = (block for block in blocks(PORT_THE_VAE) if "activations" in block)
    exec(code, {})
    with np.load("activations.npz") as saved:
        assert saved["decoder.conv_out"].shape == (1, 3, 32, 48)
        assert saved["decoder.conv_in"].dtype == np.float64


@each_page
def test_the_options_that_the_page_uses_exist(page):
    help_page = CliRunner().invoke(app, ["conformance", "--help"], env={"COLUMNS": "200"}).output
    lines = [line for line in page.splitlines() if "vaespec conformance" in line]
    options = {option for line in lines for option in re.findall(r" (--[a-z-]+)", line)}
    assert len(options) >= 3
    assert [option for option in options if option not in help_page] == []


@each_page
def test_the_checks_that_the_page_names_exist(page):
    levels = "interop|structure|ops|blocks|model|tiling|weights|behaviour|compiled|goldens"
    for name in re.findall(rf"[`']((?:{levels})\.[a-z_0-9]+)", page):
        assert name in CHECKS


def test_the_table_has_the_numbers_of_the_profiles():
    for profile in PROFILES:
        counts = " / ".join(str(getattr(kind, profile)) for kind in (OPERATION, BLOCK, MODEL))
        assert re.search(rf"\| `{profile}` \|.*\| {counts} \|", PORT_THE_VAE)

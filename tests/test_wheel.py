"""The wheel that users install: its names, its data, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP_LEVEL = {"vaespec", "vaespec_numpy", "vaespec_torch", "vaespec_jax", "vaespec_mlx", "vaespec_conformance"}
MIB = 1 << 20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_our_packages_and_nothing_beside_them(wheel):
    assert {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" not in name} == TOP_LEVEL


def test_the_wheel_brings_types_families_and_the_embedded_model(wheel):
    names = set(wheel.namelist())
    assert {f"{package}/py.typed" for package in TOP_LEVEL} <= names
    assert {
        "vaespec/families.toml",
        "vaespec/assets/tiny/config.json",
        "vaespec/assets/tiny/diffusion_pytorch_model.safetensors",
    } <= names


def test_the_embedded_model_is_at_most_4_mib_and_the_wheel_at_most_5(wheel):
    sizes = {info.filename: info.file_size for info in wheel.infolist()}
    assert sizes["vaespec/assets/tiny/diffusion_pytorch_model.safetensors"] <= 4 * MIB
    assert sum(info.compress_size for info in wheel.infolist()) <= 5 * MIB


def test_the_wheel_registers_our_backends_as_a_stranger_would(wheel):
    (points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(points).decode()
    assert "[vaespec.backends]" in text
    assert "numpy = vaespec_numpy:backend" in text
    assert "torch = vaespec_torch:backend" in text


def test_the_wheel_registers_the_suite_with_the_command_line_and_with_pytest(wheel):
    (points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(points).decode()
    assert "[vaespec.commands]\nconformance = vaespec_conformance.command:register" in text
    assert "[pytest11]\nvaespec = vaespec_conformance.pytest_plugin" in text


def test_the_wheel_brings_what_the_reports_are_made_with(wheel):
    names = {name.removeprefix("vaespec_conformance/") for name in wheel.namelist()}
    assert {"report.schema.json", "report.css", "test_conformance.py"} <= names

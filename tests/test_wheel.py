"""The wheel that users install: its names, its data, and nothing else."""

import subprocess
import sys
import zipfile

import pytest
from support.packages import PACKAGES, ROOT

MIB = 1 << 20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_our_packages_and_nothing_else(wheel):
    assert sorted({name.split("/")[0] for name in wheel.namelist() if ".dist-info/" not in name}) == PACKAGES


def test_the_wheel_holds_types_families_and_the_embedded_model(wheel):
    names = set(wheel.namelist())
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {
        "vaespec/families.toml",
        "vaespec/assets/tiny/config.json",
        "vaespec/assets/tiny/diffusion_pytorch_model.safetensors",
    } <= names


def test_the_embedded_model_is_at_most_4_mib_and_the_wheel_at_most_5(wheel):
    sizes = {info.filename: info.file_size for info in wheel.infolist()}
    assert sizes["vaespec/assets/tiny/diffusion_pytorch_model.safetensors"] <= 4 * MIB
    assert sum(info.compress_size for info in wheel.infolist()) <= 5 * MIB


def test_the_wheel_registers_our_backends_by_entry_points(wheel):
    (points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(points).decode()
    assert "[vaespec.backends]" in text
    assert "numpy = vaespec_numpy:backend" in text
    assert "torch = vaespec_torch:backend" in text


def test_the_wheel_registers_the_suite_with_the_command_line_and_with_pytest(wheel):
    (points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(points).decode()
    commands = text.partition("[vaespec.commands]\n")[2].partition("\n\n")[0]
    for name in ("check", "conformance", "golden"):
        assert f"{name} = vaespec_conformance.commands.{name}:register" in commands
    assert "[pytest11]\nvaespec = vaespec_conformance.pytest_plugin" in text


def test_the_wheel_holds_the_files_that_reports_are_made_of(wheel):
    names = {name.split("/")[-1] for name in wheel.namelist() if name.startswith("vaespec_conformance/")}
    assert {"report.schema.json", "report.css", "test_conformance.py"} <= names

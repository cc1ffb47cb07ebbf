"""The public ports in examples/ports are short, import their framework when they are built, and compute the model."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

import vaespec_conformance.checks  # noqa: F401  (registers)
from benchmarks.ports import PORTS
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.judging.registry import CHECKS
from vaespec_conformance.subjects.loading import load_port

FOLDER = Path(__file__).parents[2] / "examples" / "ports"
FILES = sorted(FOLDER.glob("*.py"))
BASE = {"numpy", "vaespec"}
NEEDS = {  # what an adapter imports, and a config that it takes
    "keras_hub_sd3": ("keras_hub", "flux1"),
    "mflux_flux2": ("mflux", "flux2"),
    "flax_diffusers": ("flax", "plain"),
    "onnxruntime_diffusers": ("onnxruntime", "plain"),
    "tinygrad_sd1": ("tinygrad", None),
}
each_file = pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])


def top_level_imports(path):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).split(".")[0]


@each_file
def test_an_adapter_is_at_most_40_lines_and_imports_no_framework_before_it_is_built(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40
    assert set(top_level_imports(path)) <= BASE | set(sys.stdlib_module_names)


def test_every_adapter_is_examined_by_the_benchmark_and_every_version_is_pinned():
    assert {port.adapter.partition(".")[0] for port in PORTS.values()} == {path.stem for path in FILES} == set(NEEDS)
    for port in PORTS.values():
        load_port(str(FOLDER / port.adapter))
        assert "==" in port.package


@pytest.mark.parametrize("name", [name for name, (_, config) in NEEDS.items() if config])
@pytest.mark.parametrize("check", ["model.encode", "model.decode"])
@pytest.mark.filterwarnings("ignore")  # of the frameworks
def test_an_adapter_whose_framework_is_installed_is_conformant(name, check):
    module, config = NEEDS[name]
    for needed in (module, "onnx") if module == "onnxruntime" else (module,):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    port = load_port(f"{FOLDER / name}.py:build")
    case = Case.of(config=config, regime="plain", size=(3, 4), more=0, seed=0)
    assert max(CHECKS[check].run(port, case, "float32")) < 1

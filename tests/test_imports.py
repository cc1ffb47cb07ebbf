"""Imports of vaespec: they load no framework (proved in fresh interpreters), and never go in a circle."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest
from support.packages import PACKAGES

FRAMEWORKS = {"torch", "jax", "jaxlib", "mlx"}
HEAVY = FRAMEWORKS | {"PIL", "huggingface_hub", "gguf", "typer", "rich", "safetensors", "ml_dtypes", "diffusers"}


def loaded_by(code: str) -> set[str]:
    """The modules of HEAVY that a fresh interpreter has loaded after running the code, whatever the code prints."""
    script = f"{code}\nimport sys\nprint()\nprint(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_vaespec_loads_no_framework_no_pillow_and_no_command_line_library():
    assert loaded_by("import vaespec") == set()


def test_the_integration_with_diffusers_loads_no_other_framework():
    code = (
        "import diffusers, torch, vaespec_diffusers\n"
        "vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=2)\n"
        "vaespec_diffusers.install(vae)\n"
        "with torch.no_grad(): vae.decode(torch.zeros(1, 4, 4, 4))"
    )
    assert not loaded_by(code) & (FRAMEWORKS - {"torch"})


def test_listing_the_backends_imports_no_framework():
    assert loaded_by("import vaespec; assert len(vaespec.backends()) >= 4") == set()


@pytest.mark.parametrize("arguments", [["backends"], ["backends", "--json"]])
def test_the_command_that_lists_the_backends_imports_no_framework(arguments):
    code = f"from vaespec.cli.app import app; app({arguments!r}, standalone_mode=False)"
    assert not loaded_by(code) & FRAMEWORKS


def test_a_model_on_numpy_loads_no_framework():
    code = (
        "import numpy as np, vaespec\n"
        "c = vaespec.AutoencoderConfig(block_out_channels=(4,), norm_num_groups=2)\n"
        "vae = vaespec.AutoencoderKL.from_config(c, backend='numpy')\n"
        "vae(np.zeros((1, 3, 4, 4), np.float32))"
    )
    assert not loaded_by(code) & (FRAMEWORKS | {"PIL", "typer", "rich"})


def test_without_an_accelerator_a_model_is_loaded_on_numpy_without_a_framework():
    code = (
        "import vaespec, vaespec.machine as machine\n"
        "machine.nvidia_gpus = machine.tpus = machine.apple_gpu = lambda: 0\n"
        "assert vaespec.load().backend == 'numpy'"
    )
    assert not loaded_by(code) & FRAMEWORKS


def test_an_accelerator_imports_the_framework_that_reports_it_and_no_other():
    code = (
        "import vaespec, vaespec.machine as machine, vaespec_mlx\n"
        "machine.nvidia_gpus = machine.tpus = machine.apple_gpu = lambda: 0\n"
        "vaespec_mlx.MlxBackend.accelerators = lambda self: ('gpu',)\n"
        "vaespec.load()"
    )
    assert loaded_by(code) & FRAMEWORKS == {"mlx"}


@pytest.mark.parametrize("module", ["json", "PIL"])
def test_the_harness_notices_a_module_that_is_loaded(module):
    script = f"import {module}, sys; print({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "True\n"
    if module in HEAVY:
        assert loaded_by(f"import {module}") == {module}


# -- circles -----------------------------------------------------------------------------------------------------------


def circle(*packages: str) -> list[str]:
    """The modules of an import circle, the first one again at the end; empty if there is no circle.

    An import counts wherever it stands, inside a function too, but not under `if TYPE_CHECKING`, since it never runs.
    Importing a module also imports the packages that hold it: each `__init__` runs first. Only the packages that hold
    the importing module as well do not count, since they are loaded before it. So a submodule that imports its sibling
    makes no circle with their package, and a submodule that takes a name from its package does, if the package imports
    the submodule.
    """
    graph = grimp.build_graph(*packages, exclude_type_checking_imports=True, cache_dir=None)

    def loaded_for(module: str) -> set[str]:
        imported = graph.find_modules_directly_imported_by(module)
        return imported | (set().union(*map(holders, imported)) - holders(module) - {module})

    try:
        TopologicalSorter({module: loaded_for(module) for module in graph.modules}).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def holders(module: str) -> set[str]:
    """The packages that hold a module: "a" and "a.b" for "a.b.c"."""
    names = module.split(".")
    return {".".join(names[:depth]) for depth in range(1, len(names))}


def test_no_import_goes_in_a_circle():
    assert " -> ".join(circle(*PACKAGES)) == ""


STRAIGHT = {
    "__init__": "from planted.upper import answer",
    "upper": "from planted import lower\nfrom planted.house import room\nanswer = 42",
    "lower": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from planted.upper import answer",
    "house/__init__": "from planted.house.room import door",
    "house/room": "from planted.house import cellar\ndoor = 1",
    "house/cellar": "",
}
CIRCLES = {
    "two modules": {"lower": "from planted.upper import answer"},
    "inside a function": {"lower": "def ask():\n    from planted.upper import answer"},
    "a name of the package": {"lower": "from planted import answer"},
    "a package's own __init__": {"house/__init__": "from planted import upper"},
    "two packages": {"house/cellar": "import other"},
}


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """plant({"module": "code"}): writes the package `planted`, and the package `other`, which imports `planted`."""
    monkeypatch.syspath_prepend(tmp_path)

    def plant(modules: dict[str, str]) -> None:
        files = {f"planted/{name}": code for name, code in modules.items()} | {"other/__init__": "import planted"}
        for name, code in files.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code, encoding="utf-8")

    return plant


def test_imports_that_go_one_way_are_no_circle(plant):
    plant(STRAIGHT)
    assert circle("planted", "other") == []


@pytest.mark.parametrize("changes", CIRCLES.values(), ids=CIRCLES)
def test_a_planted_circle_is_found(plant, changes):
    plant(STRAIGHT | changes)
    *modules, last = circle("planted", "other")
    assert modules[0] == last
    assert {f"planted.{name.replace('/', '.').removesuffix('.__init__')}" for name in changes} <= set(modules)


PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BROUGHT = {"pillow": "PIL", "huggingface-hub": "huggingface_hub"}
"""Distributions whose module has another name."""


def imported(path):
    """The top-level modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_only_declared_packages_are_imported(package):
    """A package that another one happens to bring along may be missing on the next machine."""
    extras = {name: rows for name, rows in PROJECT["optional-dependencies"].items() if name not in ("test", "bench")}
    rows = [*PROJECT["dependencies"], *(row for rows in extras.values() for row in rows)]
    declared = {re.match(r"[A-Za-z0-9_-]+", row)[0] for row in rows}
    own = {*PACKAGES, "pytest", "triton"}  # pytest loads its plugin; torch for CUDA brings its own triton
    allowed = own | {BROUGHT.get(name, name.replace("-", "_")) for name in declared} | sys.stdlib_module_names
    folder = Path(__import__(package).__file__).parent
    found = {name: path for path in folder.rglob("*.py") for name in imported(path)}
    assert not {name: str(found[name].relative_to(folder)) for name in found.keys() - allowed}

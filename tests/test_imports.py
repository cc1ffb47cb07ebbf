"""Importing vaespec must cost nothing and load nothing: proved in fresh interpreters."""

import subprocess
import sys

import pytest

FRAMEWORKS = {"torch", "jax", "jaxlib", "mlx"}
HEAVY = FRAMEWORKS | {"PIL", "huggingface_hub", "gguf", "typer", "rich", "safetensors", "ml_dtypes", "diffusers"}


def loaded_by(code: str) -> set[str]:
    """Which of HEAVY a fresh interpreter has loaded after running the code, whatever that prints."""
    script = f"{code}\nimport sys\nprint()\nprint(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_vaespec_loads_no_framework_no_pillow_and_no_command_line_library():
    assert loaded_by("import vaespec") == set()


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


def test_where_nothing_is_accelerated_a_model_is_loaded_on_numpy_without_a_framework():
    code = (
        "import vaespec, vaespec.machine as hardware\n"
        "hardware.nvidia_gpus = hardware.tpus = hardware.apple_gpu = lambda: 0\n"
        "assert vaespec.load().backend == 'numpy'"
    )
    assert not loaded_by(code) & FRAMEWORKS


def test_an_accelerator_imports_the_framework_that_promises_it_and_no_other():
    code = (
        "import vaespec, vaespec.machine as hardware, vaespec_mlx\n"
        "hardware.nvidia_gpus = hardware.tpus = hardware.apple_gpu = lambda: 0\n"
        "vaespec_mlx.MlxBackend.accelerators = lambda self: ('gpu',)\n"
        "vaespec.load()"
    )
    assert loaded_by(code) & FRAMEWORKS == {"mlx"}


@pytest.mark.parametrize("module", ["json", "PIL"])
def test_the_same_harness_notices_what_is_loaded(module):
    script = f"import {module}, sys; print({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "True\n"
    if module in HEAVY:
        assert loaded_by(f"import {module}") == {module}

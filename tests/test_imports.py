"""Importing vaespec must cost nothing and load nothing: proved in fresh interpreters."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "jax", "mlx", "PIL", "typer", "rich", "safetensors", "ml_dtypes", "diffusers")


def loaded_by(code: str) -> set[str]:
    """Which of HEAVY a fresh interpreter has loaded after running the code."""
    script = f"{code}\nimport sys\nprint(*sorted(set(sys.modules) & set({HEAVY!r})))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_importing_vaespec_loads_no_framework_no_pillow_and_no_command_line_library():
    assert loaded_by("import vaespec") == set()


def test_listing_the_backends_imports_no_framework():
    assert loaded_by("import vaespec; assert len(vaespec.backends()) >= 2") == set()


def test_a_model_on_numpy_loads_no_framework():
    code = (
        "import numpy as np, vaespec\n"
        "c = vaespec.AutoencoderConfig(block_out_channels=(4,), norm_num_groups=2)\n"
        "vae = vaespec.AutoencoderKL.from_config(c, backend='numpy')\n"
        "vae(np.zeros((1, 3, 4, 4), np.float32))"
    )
    assert not loaded_by(code) & {"torch", "jax", "mlx", "PIL", "typer", "rich"}


@pytest.mark.parametrize("module", ["json", "PIL"])
def test_the_same_harness_notices_what_is_loaded(module):
    script = f"import {module}, sys; print({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "True\n"
    if module in HEAVY:
        assert loaded_by(f"import {module}") == {module}

"""PyTorch on a CPU computes with NumPy's engine, unless gradients, a compiler or the highest precision are wanted."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch
from configs import CONFIGS, narrow, relative_l2, uniform
from models import array
from oracle import oracle

from vaespec import AutoencoderKL
from vaespec.analysis.rounding import predicted_error, rounded
from vaespec.architecture import decoder
from vaespec.tiling.banded import BandedOps
from vaespec_torch.engine import EngineOps
from vaespec_torch.ops import TorchOps

WIDE = narrow((64, 128), norm_num_groups=32)
Z = uniform("z", (2, 4, 11, 9), -2, 2)


def made(backend: str = "torch", name: str = "sd", **how) -> AutoencoderKL:
    return AutoencoderKL(CONFIGS[name], oracle(name)[1], backend=backend, device="cpu", **how)


@pytest.fixture
def convolutions(monkeypatch) -> list[str]:
    """Which ops each convolution ran on."""
    seen: list[str] = []
    for ops in (TorchOps, EngineOps):
        right = ops.conv2d

        def conv2d(self, *args, right=right, name=ops.__name__, **how):
            seen.append(name)
            return right(self, *args, **how)

        monkeypatch.setattr(ops, "conv2d", conv2d)
    return seen


@pytest.mark.parametrize("tiling", [False, "exact"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_engines_numbers_are_numpys_to_the_bit(dtype, tiling):
    ours, numpys = made(dtype=dtype), made("numpy", dtype=dtype)
    for vae in (ours, numpys):
        vae.enable_tiling(tiling, **({"band_rows": 3} if tiling else {}))
    z = rounded(Z, dtype)
    np.testing.assert_array_equal(array(ours.decode(z).sample), array(numpys.decode(z).sample))
    x = ours.decode(z).sample
    assert x.dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(
        array(ours.encode(x).latent_dist.mean), array(numpys.encode(ours.to_numpy(x)).latent_dist.mean)
    )


def test_wide_kernels_are_read_where_they_lie():
    """Real widths take other forms of a convolution; kernels lie in memory as the engine reads them."""
    weights = {name: a.astype(np.float32) for name, a in drawn().items()}
    ours, numpys = (AutoencoderKL(WIDE, weights, backend=name, device="cpu") for name in ("torch", "numpy"))
    np.testing.assert_array_equal(ours.decode(Z).sample.numpy(), numpys.decode(Z).sample)
    kernels = [t for t in ours._model.params.values() if t.ndim == 4]
    assert all(t.permute(2, 3, 1, 0).is_contiguous() for t in kernels)


def drawn() -> dict[str, np.ndarray]:
    return AutoencoderKL.from_config(WIDE, backend="numpy", seed=3).weights()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["sd", "sd3", "kl-f16", "mish"])
def test_sixteen_bits_are_within_what_rounding_must_cost(name, dtype):
    weights = {key: rounded(a, dtype) for key, a in oracle(name)[1].items()}
    z = rounded(uniform("z", (2, CONFIGS[name].latent_channels, 4, 3), -2, 2), dtype)
    least = predicted_error(decoder(CONFIGS[name]), z, weights, dtype)
    native = made(name=name, dtype=dtype, precision="highest")
    exact = made(name=name, dtype="float64").decode(z).sample
    assert relative_l2(array(made(name=name, dtype=dtype).decode(z).sample), array(exact)) <= 4 * least
    assert relative_l2(array(native.decode(z).sample), array(exact)) <= 4 * least


def test_a_run_is_the_engines_unless_more_is_wanted(convolutions):
    made().decode(Z)
    assert set(convolutions) == {"EngineOps"}
    for dtype, precision in (("float32", "highest"), ("float64", "default")):
        convolutions.clear()
        made(dtype=dtype, precision=precision).decode(Z)
        assert set(convolutions) == {"TorchOps"}


@pytest.mark.parametrize("what", ["input", "weights"])
def test_where_a_gradient_is_wanted_pytorch_computes(convolutions, what):
    vae = made()
    z = torch.tensor(Z, dtype=torch.float32, requires_grad=what == "input")
    if what == "weights":
        params = {name: t.requires_grad_(t.is_floating_point()) for name, t in vae._model.params.items()}
    y = vae.decode(z).sample
    y.square().sum().backward()
    assert set(convolutions) == {"TorchOps"}
    assert (z if what == "input" else params["decoder.conv_in.weight"]).grad.abs().sum() > 0
    convolutions.clear()
    with torch.no_grad():
        assert relative_l2(array(vae.decode(z).sample), array(y)) <= 2e-6
    assert set(convolutions) == {"EngineOps"}


def test_bands_are_the_engines_as_well(convolutions):
    vae = made()
    model, ops = vae._model.layers("decoder"), BandedOps(vae._model.ops, band_rows=2)
    ops.compile(model)(torch.tensor(Z, dtype=torch.float32), vae._model.params)
    assert set(convolutions) == {"EngineOps"}


def test_what_comes_out_is_nobody_elses():
    vae = made()
    z = torch.tensor(Z, dtype=torch.float32)
    before = {name: t.clone() for name, t in vae._model.params.items()}
    vae.decode(z).sample.fill_(7.0)
    vae.encode(vae.decode(z).sample).latent_dist.mean.fill_(7.0)
    np.testing.assert_array_equal(z.numpy(), Z.astype(np.float32))
    for name, t in vae._model.params.items():
        assert torch.equal(t, before[name])


def test_a_modules_kernels_can_be_saved(tmp_path):
    """safetensors refuses tensors in another order than PyTorch's own."""
    module = made().module()
    safetensors.torch.save_file(module.state_dict(), tmp_path / "model.safetensors")
    again = safetensors.torch.load_file(tmp_path / "model.safetensors")
    for name, a in oracle("sd")[1].items():
        np.testing.assert_allclose(again[name].numpy(), a.astype(np.float32), rtol=1e-6)

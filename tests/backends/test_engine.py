"""On a CPU, NumPy's engine computes for PyTorch, JAX and MLX, unless gradients or the highest precision are wanted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import mlx.core as mx
import numpy as np
import pytest
import safetensors.torch
import torch
from support.configs import CONFIGS, narrow, relative_l2, uniform
from support.models import array
from support.oracle import oracle

from vaespec import AutoencoderKL, machine
from vaespec.analysis.rounding import predicted_error, rounded
from vaespec.architecture import decoder
from vaespec_cpu.lazy_ops import LazyOps
from vaespec_jax.ops import JaxOps
from vaespec_mlx.ops import MlxOps
from vaespec_torch.ops import TorchOps

OWN = {"torch": TorchOps, "jax": JaxOps, "mlx": MlxOps}
each_backend = pytest.mark.parametrize("backend", OWN)
WIDE = narrow((64, 128), norm_num_groups=32)
Z = uniform("z", (2, 4, 11, 9), -2, 2)


def made(backend: str, name: str = "sd", **how) -> AutoencoderKL:
    return AutoencoderKL(CONFIGS[name], oracle(name)[1], backend=backend, device="cpu", **how)


@pytest.fixture(autouse=True)
def plain_cpu(monkeypatch):
    """One without products of bfloat16."""
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda: False)


def image(backend: str) -> object:
    """Z as the backend's array."""
    z = Z.astype(np.float32)
    return {"torch": torch.from_numpy, "jax": jnp.asarray, "mlx": mx.array}[backend](z)


def energy(y: object) -> object:
    return (y * y).sum()


@pytest.fixture
def convolutions(monkeypatch) -> list[type]:
    """Which ops each convolution ran on."""
    seen: list[type] = []
    for ops in (*OWN.values(), LazyOps):

        def conv2d(self, *args, right=ops.conv2d, ops=ops, **how):
            seen.append(ops)
            return right(self, *args, **how)

        monkeypatch.setattr(ops, "conv2d", conv2d)
    jax.clear_caches()  # what is compiled calls nobody
    yield seen
    jax.clear_caches()


@each_backend
@pytest.mark.parametrize("tiling", [False, "exact"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_engines_numbers_are_numpys_to_the_bit(backend, dtype, tiling):
    ours, numpys = made(backend, dtype=dtype), made("numpy", dtype=dtype)
    for vae in (ours, numpys):
        vae.enable_tiling(tiling, **({"band_rows": 3} if tiling else {}))
    z = rounded(Z, dtype)
    x = ours.decode(z).sample
    np.testing.assert_array_equal(array(x), array(numpys.decode(z).sample))
    assert type(x) is type(ours._model.params["decoder.conv_in.weight"])
    assert dtype in str(x.dtype)
    np.testing.assert_array_equal(
        array(ours.encode(x).latent_dist.mean), array(numpys.encode(ours.to_numpy(x)).latent_dist.mean)
    )


@each_backend
def test_wide_kernels_are_read_where_they_lie(backend, monkeypatch):
    """Real widths take other forms of a convolution; no run copies a kernel to change the order of its axes."""
    weights = {name: a.astype(np.float32) for name, a in drawn().items()}
    ours, numpys = (AutoencoderKL(WIDE, weights, backend=name, device="cpu") for name in (backend, "numpy"))
    np.testing.assert_array_equal(array(ours.decode(Z).sample), array(numpys.decode(Z).sample))
    _, params = ours._model.ops.inference_ops(ours._model.params)
    assert all(a.flags.c_contiguous and not a.flags.owndata for a in params.values() if a.ndim == 4)


def drawn() -> dict[str, np.ndarray]:
    return AutoencoderKL.from_config(WIDE, backend="numpy", seed=3).weights()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["sd", "sd3", "kl-f16", "mish"])
def test_sixteen_bits_are_within_what_rounding_must_cost(name, dtype):
    weights = {key: rounded(a, dtype) for key, a in oracle(name)[1].items()}
    z = rounded(uniform("z", (2, CONFIGS[name].latent_channels, 4, 3), -2, 2), dtype)
    least = predicted_error(decoder(CONFIGS[name]), z, weights, dtype)
    exact = made("torch", name, dtype="float64").decode(z).sample
    for precision in ("default", "highest"):
        found = made("torch", name, dtype=dtype, precision=precision).decode(z).sample
        assert relative_l2(array(found), array(exact)) <= 4 * least


@each_backend
def test_a_run_is_the_engines_unless_more_is_wanted(convolutions, backend):
    made(backend).decode(Z)
    assert set(convolutions) == {LazyOps}
    convolutions.clear()
    made(backend, precision="highest").decode(Z)
    assert set(convolutions) == {OWN[backend]}


def test_float64_is_pytorchs(convolutions):
    made("torch", dtype="float64").decode(Z)
    assert set(convolutions) == {TorchOps}


@pytest.mark.parametrize(("backend", "ops"), [("torch", TorchOps), ("jax", LazyOps), ("mlx", LazyOps)])
def test_bfloat16_is_pytorchs_where_the_cpu_multiplies_it(convolutions, monkeypatch, backend, ops):
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda: True)
    made(backend, dtype="bfloat16").decode(Z)
    assert set(convolutions) == {ops}


def gradients(backend: str, loss: Callable[[dict, object], object], params: dict, z: object) -> tuple[dict, object]:
    """Of loss(params, z), by the framework."""
    if backend != "torch":
        return {"jax": jax.grad, "mlx": mx.grad}[backend](loss, argnums=(0, 1))(params, z)
    params, z = {name: t.clone().requires_grad_() for name, t in params.items()}, z.clone().requires_grad_()
    loss(params, z).backward()
    return {name: t.grad for name, t in params.items()}, z.grad


@each_backend
def test_gradients_are_those_of_the_frameworks_own_operations(convolutions, backend):
    """Through the model as a whole, which would be computed by the engine without them."""
    vae = made(backend)
    model, params, z = vae._model.compiled["decoder"], vae._model.params, image(backend)
    own = partial(vae._model.layers("decoder"), ops=vae._model.ops)
    own = jax.jit(own) if backend == "jax" else own  # one program, or one for each operation
    expected = gradients(backend, lambda params, z: energy(own(z, params)), params, z)
    convolutions.clear()
    found = gradients(backend, lambda params, z: energy(model(z, params)), params, z)
    assert OWN[backend] in convolutions
    assert relative_l2(array(found[1]), array(expected[1])) <= 4e-6
    for name in ("decoder.conv_in.weight", "decoder.mid_block.attentions.0.to_q.weight", "post_quant_conv.bias"):
        assert relative_l2(array(found[0][name]), array(expected[0][name])) <= 4e-6
        assert np.abs(array(found[0][name])).max() > 0


@pytest.mark.parametrize("what", ["input", "weights"])
def test_pytorch_computes_where_one_of_them_wants_a_gradient_and_not_under_no_grad(convolutions, what):
    vae = made("torch")
    z = torch.tensor(Z, dtype=torch.float32, requires_grad=what == "input")
    if what == "weights":
        params = {name: t.requires_grad_(t.is_floating_point()) for name, t in vae._model.params.items()}
    y = vae.decode(z).sample
    y.square().sum().backward()
    assert set(convolutions) == {TorchOps}
    assert (z if what == "input" else params["decoder.conv_in.weight"]).grad.abs().sum() > 0
    convolutions.clear()
    with torch.no_grad():
        assert relative_l2(array(vae.decode(z).sample), array(y)) <= 2e-6
    assert set(convolutions) == {LazyOps}


@each_backend
def test_bands_are_the_engines_as_well(convolutions, backend):
    vae = made(backend)
    vae.enable_tiling("exact", band_rows=2)
    vae.decode(Z)
    assert set(convolutions) == {LazyOps}


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_what_comes_out_is_nobody_elses(backend):
    vae, z = made(backend), image(backend)
    before = {name: array(a).copy() for name, a in vae._model.params.items()}
    x = vae.decode(z).sample
    x[:] = 7.0
    vae.encode(x).latent_dist.mean[:] = 7.0
    assert np.all(array(x) == 7)
    np.testing.assert_array_equal(array(z), array(image(backend)))
    for name, a in vae._model.params.items():
        np.testing.assert_array_equal(array(a), before[name])


@pytest.mark.parametrize("backend", ["jax", "mlx"])
def test_params_cast_to_another_dtype_are_the_frameworks(convolutions, backend):
    """They are no longer what the engine was prepared for."""
    vae = made(backend)
    cast = {name: a.astype("bfloat16" if backend == "jax" else mx.bfloat16) for name, a in vae._model.params.items()}
    vae._model.compiled["decoder"](image(backend), cast)
    assert set(convolutions) == {OWN[backend]}


def test_a_modules_kernels_can_be_saved(tmp_path):
    """safetensors refuses tensors in another order than PyTorch's own."""
    module = made("torch").module()
    safetensors.torch.save_file(module.state_dict(), tmp_path / "model.safetensors")
    again = safetensors.torch.load_file(tmp_path / "model.safetensors")
    for name, a in oracle("sd")[1].items():
        np.testing.assert_allclose(again[name].numpy(), a.astype(np.float32), rtol=1e-6)

"""On a CPU, the engine computes for PyTorch, JAX and MLX, unless gradients or the highest precision are requested."""

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
from vaespec.architecture import DECODER, decoder
from vaespec_cpu.lazy_ops import LazyOps
from vaespec_jax.ops import JaxOps
from vaespec_mlx.ops import MlxOps
from vaespec_torch.ops import TorchOps

OWN = {"torch": TorchOps, "jax": JaxOps, "mlx": MlxOps}
each_backend = pytest.mark.parametrize("backend", OWN)
WIDE = narrow((64, 128), norm_num_groups=32)
Z = uniform("z", (2, 4, 11, 9), -2, 2)


def autoencoder(backend: str, name: str = "sd", **options) -> AutoencoderKL:
    return AutoencoderKL(CONFIGS[name], oracle(name)[1], backend=backend, device="cpu", **options)


@pytest.fixture(autouse=True)
def plain_cpu(monkeypatch):
    """A CPU without products of bfloat16."""
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda: False)


def image(backend: str) -> object:
    """Z as the backend's array."""
    z = Z.astype(np.float32)
    return {"torch": torch.from_numpy, "jax": jnp.asarray, "mlx": mx.array}[backend](z)


def energy(y: object) -> object:
    return (y * y).sum()


@pytest.fixture
def convolutions(monkeypatch) -> list[type]:
    """List the class of ops that each convolution ran on."""
    seen: list[type] = []
    for ops in (*OWN.values(), LazyOps):

        def conv2d(self, *args, right=ops.conv2d, ops=ops, **options):
            seen.append(ops)
            return right(self, *args, **options)

        monkeypatch.setattr(ops, "conv2d", conv2d)
    jax.clear_caches()  # compiled programs do not call the patched method
    yield seen
    jax.clear_caches()


@each_backend
@pytest.mark.parametrize("tiling", [False, "exact"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_engine_gives_numpys_numbers_to_the_bit(backend, dtype, tiling):
    ours, numpys = autoencoder(backend, dtype=dtype), autoencoder("numpy", dtype=dtype)
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
def test_wide_kernels_are_read_without_a_copy(backend, monkeypatch):
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
def test_sixteen_bits_stay_within_the_predicted_error(name, dtype):
    weights = {key: rounded(a, dtype) for key, a in oracle(name)[1].items()}
    z = rounded(uniform("z", (2, CONFIGS[name].latent_channels, 4, 3), -2, 2), dtype)
    least = predicted_error(decoder(CONFIGS[name]), z, weights, dtype)
    exact = autoencoder("torch", name, dtype="float64").decode(z).sample
    for precision in ("default", "highest"):
        result = autoencoder("torch", name, dtype=dtype, precision=precision).decode(z).sample
        assert relative_l2(array(result), array(exact)) <= 4 * least


@each_backend
def test_the_engine_computes_unless_the_highest_precision_is_requested(convolutions, backend):
    autoencoder(backend).decode(Z)
    assert set(convolutions) == {LazyOps}
    convolutions.clear()
    autoencoder(backend, precision="highest").decode(Z)
    assert set(convolutions) == {OWN[backend]}


def test_pytorch_computes_float64(convolutions):
    autoencoder("torch", dtype="float64").decode(Z)
    assert set(convolutions) == {TorchOps}


@pytest.mark.parametrize(("backend", "ops"), [("torch", TorchOps), ("jax", LazyOps), ("mlx", LazyOps)])
def test_pytorch_computes_bfloat16_if_the_cpu_multiplies_it(convolutions, monkeypatch, backend, ops):
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda: True)
    autoencoder(backend, dtype="bfloat16").decode(Z)
    assert set(convolutions) == {ops}


def gradients(backend: str, loss: Callable[[dict, object], object], params: dict, z: object) -> tuple[dict, object]:
    """Gradients of loss(params, z), by the framework."""
    if backend != "torch":
        return {"jax": jax.grad, "mlx": mx.grad}[backend](loss, argnums=(0, 1))(params, z)
    params, z = {name: t.clone().requires_grad_() for name, t in params.items()}, z.clone().requires_grad_()
    loss(params, z).backward()
    return {name: t.grad for name, t in params.items()}, z.grad


@each_backend
def test_gradients_equal_the_gradients_of_the_frameworks_own_operations(convolutions, backend):
    """Through the whole model, which the engine would compute if no gradient were requested."""
    vae = autoencoder(backend)
    model, params, z = vae._model.compiled[DECODER], vae._model.params, image(backend)
    own = partial(vae._model.layers(DECODER), ops=vae._model.ops)
    own = jax.jit(own) if backend == "jax" else own  # one program, or one for each operation
    expected = gradients(backend, lambda params, z: energy(own(z, params)), params, z)
    convolutions.clear()
    result = gradients(backend, lambda params, z: energy(model(z, params)), params, z)
    assert OWN[backend] in convolutions
    assert relative_l2(array(result[1]), array(expected[1])) <= 4e-6
    for name in ("decoder.conv_in.weight", "decoder.mid_block.attentions.0.to_q.weight", "post_quant_conv.bias"):
        assert relative_l2(array(result[0][name]), array(expected[0][name])) <= 4e-6
        assert np.abs(array(result[0][name])).max() > 0


@pytest.mark.parametrize("what", ["input", "weights"])
def test_pytorch_computes_if_a_gradient_is_requested_and_not_under_no_grad(convolutions, what):
    vae = autoencoder("torch")
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
def test_the_engine_computes_bands_as_well(convolutions, backend):
    vae = autoencoder(backend)
    vae.enable_tiling("exact", band_rows=2)
    vae.decode(Z)
    assert set(convolutions) == {LazyOps}


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_results_share_no_memory_with_inputs_or_weights(backend):
    vae, z = autoencoder(backend), image(backend)
    before = {name: array(a).copy() for name, a in vae._model.params.items()}
    x = vae.decode(z).sample
    x[:] = 7.0
    vae.encode(x).latent_dist.mean[:] = 7.0
    assert np.all(array(x) == 7)
    np.testing.assert_array_equal(array(z), array(image(backend)))
    for name, a in vae._model.params.items():
        np.testing.assert_array_equal(array(a), before[name])


@pytest.mark.parametrize("backend", ["jax", "mlx"])
def test_the_framework_computes_with_params_cast_to_another_dtype(convolutions, backend):
    """The engine reads only the dtype that it was loaded for."""
    vae = autoencoder(backend)
    cast = {name: a.astype("bfloat16" if backend == "jax" else mx.bfloat16) for name, a in vae._model.params.items()}
    vae._model.compiled[DECODER](image(backend), cast)
    assert set(convolutions) == {OWN[backend]}


def test_a_modules_kernels_can_be_saved(tmp_path):
    """safetensors refuses tensors in another order than PyTorch's own."""
    module = autoencoder("torch").module()
    safetensors.torch.save_file(module.state_dict(), tmp_path / "model.safetensors")
    again = safetensors.torch.load_file(tmp_path / "model.safetensors")
    for name, a in oracle("sd")[1].items():
        np.testing.assert_allclose(again[name].numpy(), a.astype(np.float32), rtol=1e-6)

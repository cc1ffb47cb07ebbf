"""What shares memory with what: every row of the table in docs/ownership.md, on every backend."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import jax
import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from safetensors.torch import save_file
from support.configs import TINY, images, uniform
from support.models import BACKENDS, FINEST, array, each_backend, tiny

import vaespec
from vaespec import AutoencoderKL

DTYPES = ("float32", "float16", "bfloat16", "float64")
HAVE_MODULES = ("torch", "mlx")
FLUX2 = TINY.replace(scaling_factor=None, patch_size=(2, 2), batch_norm_eps=1e-4)
"""A config with buffers: the statistics of its latents."""

each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def place(backend: str, dtype: str, config=FLUX2) -> AutoencoderKL:
    if dtype == "float64" and FINEST[backend] != "float64":
        pytest.skip(f"{backend} has no float64 in this process")
    return tiny(backend, dtype, config=config)


def state(vae: AutoencoderKL) -> dict[str, bytes]:
    """The weights to the bit, and what the model computes with them."""
    z = uniform("z", (1, vae.config.latent_channels, 2, 3)).astype(np.float32)
    return {name: a.tobytes() for name, a in vae.weights().items()} | {
        "decoded": numbers(vae.decode(z).sample).tobytes()
    }


def numbers(x) -> np.ndarray:
    """A copy of an array of any backend, as NumPy."""
    if isinstance(x, torch.Tensor):
        x = x.detach().double().numpy()
    return np.array(x.astype(mx.float32) if isinstance(x, mx.array) else x, np.float64)


def overwrite(x) -> None:
    """Write to an array in every way that its framework allows; JAX allows none but to delete it."""
    if isinstance(x, torch.Tensor):
        with torch.no_grad():
            x.fill_(7)
    elif isinstance(x, mx.array):
        mx.eval(x)
        shared = np.asarray(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x)
        shared[...] = 7
        x[...] = 7
    elif isinstance(x, jax.Array):
        x.delete()
    elif x.flags.writeable:
        x[...] = 7


def tensors(module) -> dict:
    """Parameters and buffers by name."""
    if isinstance(module, torch.nn.Module):
        return dict((*module.named_parameters(), *module.named_buffers()))
    return dict(tree_flatten(module.parameters()))


def values(module) -> dict[str, bytes]:
    return {name: numbers(x).tobytes() for name, x in tensors(module).items()}


def everything_made_from(vae: AutoencoderKL) -> dict[str, dict[str, bytes]]:
    """The numbers of what a user may have got from a model."""
    made = {"params": {name: numbers(p).tobytes() for name, p in vae.functional().params.items()}}
    return made | ({"module": values(vae.module())} if vae.backend in HAVE_MODULES else {})


# -- models and weights ------------------------------------------------------------------------------------------


@each_backend
@each_dtype
def test_a_model_owns_its_weights(backend, dtype):
    weights = {name: a.astype(getattr(ml_dtypes, dtype, dtype)) for name, a in tiny(config=FLUX2).weights().items()}
    if dtype == "float64" and FINEST[backend] != "float64":
        pytest.skip("no float64")
    vae = AutoencoderKL(FLUX2, weights, backend=backend, device="cpu", dtype=dtype)
    before = state(vae)
    for a in weights.values():
        a[...] = 7
    assert state(vae) == before


@each_dtype
@each_backend
def test_a_model_loaded_from_memory_owns_its_weights(backend, dtype):
    held = place("torch", dtype).module()
    vae = place(backend, dtype)
    loaded = vaespec.load(held, backend=vae.backend, device="cpu", dtype=dtype)
    before = state(loaded)
    for tensor in tensors(held).values():
        overwrite(tensor)
    assert state(loaded) == before


@each_backend
def test_activations_are_not_kept(backend):
    vae, z = place(backend, "float32"), uniform("z", (1, 4, 2, 3))
    before = state(vae)
    for _, y in list(vae.activations(z, "decoder")):
        overwrite(y)
    assert state(vae) == before


@each_backend
@each_dtype
def test_weights_are_copies_in_every_call(backend, dtype):
    vae = place(backend, dtype)
    before, weights = state(vae), vae.weights()
    for a in weights.values():
        assert a.flags.writeable
        overwrite(a)
    assert state(vae) == before


@each_backend
@each_dtype
def test_the_params_of_functional_are_copies_in_every_call(backend, dtype):
    vae = place(backend, dtype)
    before, kept, params = state(vae), vae.functional().params, vae.functional().params
    values = {name: numbers(p) for name, p in kept.items()}
    for p in params.values():
        overwrite(p)
    assert state(vae) == before
    for name, p in kept.items():
        np.testing.assert_array_equal(numbers(p), values[name])


def test_params_may_be_donated_to_jax_and_the_model_stays():
    vae = tiny("jax")
    before, params = state(vae), vae.functional().params
    doubled = jax.jit(lambda params: {name: 2 * p for name, p in params.items()}, donate_argnums=0)(params)
    assert all(p.is_deleted() for p in params.values())
    assert state(vae) == before
    assert state(vae.with_params(doubled)) != before


# -- modules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", HAVE_MODULES)
@each_dtype
def test_a_module_owns_its_parameters(backend, dtype):
    vae = place(backend, dtype)
    before, module, frozen = state(vae), vae.module(), vae.module()
    expected = values(frozen)
    for x in tensors(module).values():
        overwrite(x)
    assert state(vae) == before
    assert values(frozen) == expected
    vae.set_attn_processor("fused")
    vae.to(dtype="float16")
    vae.register_to_config(sample_size=vae.config.sample_size)
    assert values(frozen) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_loading_a_state_dict_into_a_module_changes_nothing_of_the_model(dtype):
    vae = place("torch", dtype)
    before, module = state(vae), vae.module()
    module.load_state_dict({name: torch.full_like(x, 0.5) for name, x in module.state_dict().items()})
    assert state(vae) == before
    assert values(vae.module()) != values(module)


def test_training_a_module_does_not_move_a_frozen_one():
    vae, x = tiny("torch"), torch.tensor(images(TINY, 16, 16, 2), dtype=torch.float32)
    reference, student = vae.module().requires_grad_(False), vae.module()
    before = reference(x).sample
    optimizer = torch.optim.SGD(student.parameters(), 1.0)
    (student(x).sample - x).square().mean().backward()
    optimizer.step()
    assert torch.equal(reference(x).sample, before)
    assert not torch.equal(student(x).sample, before)


def test_the_state_dict_of_a_module_is_the_module():
    vae = tiny("torch")
    module = vae.module()
    for x in module.state_dict().values():
        overwrite(x)
    assert all((p == 7).all() for p in module.parameters())


@each_dtype
def test_the_tensors_of_a_module_and_of_functional_are_contiguous(dtype, tmp_path):
    """safetensors refuses others. In bfloat16, and on CUDA, convolutions want kernels with the channels last."""
    vae = tiny("torch", dtype, config=FLUX2)
    for given in (vae.module().state_dict(), vae.functional().params):
        assert all(x.is_contiguous() for x in given.values())
        save_file(given, tmp_path / "saved.safetensors")


def test_saving_after_a_module_was_trained_writes_the_weights_of_the_model(tmp_path):
    vae = tiny("torch")
    before, module = vae.weights(), vae.module()
    for x in module.parameters():
        overwrite(x)
    vae.save_pretrained(tmp_path)
    again = AutoencoderKL.from_pretrained(tmp_path, backend="numpy").weights()
    for name, a in before.items():
        np.testing.assert_array_equal(again[name], a)


@pytest.mark.parametrize("backend", HAVE_MODULES)
def test_trained_weights_come_back_by_with_params_all_of_them(backend, tmp_path):
    vae = tiny(backend, config=FLUX2)
    module = vae.module()
    for x in tensors(module).values():
        overwrite(x)
    trained = module.state_dict() if backend == "torch" else module.parameters()
    vae.with_params(trained).save_pretrained(tmp_path)
    saved = AutoencoderKL.from_pretrained(tmp_path, backend="numpy").weights()
    for name, a in saved.items():
        assert (a == 7).all() or (backend == "mlx" and name.startswith("bn.")), name


# -- models made from models -------------------------------------------------------------------------------------


@each_backend
@each_dtype
def test_a_model_with_other_params_owns_them(backend, dtype):
    vae = place(backend, dtype)
    params = {name: 2 * p for name, p in vae.functional().params.items()}
    before, other = state(vae), vae.with_params(params)
    expected = state(other)
    assert expected != before
    for p in params.values():
        overwrite(p)
    assert state(other) == expected
    other.to(dtype="float16")
    assert state(vae) == before


@pytest.mark.parametrize("source", BACKENDS)
@pytest.mark.parametrize("target", BACKENDS)
def test_a_model_on_another_backend_shares_nothing(source, target):
    """Told by the addresses of all arrays, where the framework shows them."""

    def addresses(vae: AutoencoderKL) -> set[int]:
        arrays = [vae._model.ops.to_numpy(p) for p in vae._model.params.values()]
        return {a.__array_interface__["data"][0] for a in arrays}

    vae = tiny(source, config=FLUX2)
    assert not addresses(vae) & addresses(vae.with_backend(target, device="cpu"))


@each_backend
def test_to_returns_the_model_itself_and_leaves_what_was_made_from_it(backend):
    vae = tiny(backend)
    params = vae.functional().params
    module = vae.module() if backend in HAVE_MODULES else None
    before = {name: numbers(p).tobytes() for name, p in params.items()}, module and values(module)
    assert vae.to(dtype="float16") is vae
    assert vae.to(device="cpu") is vae
    assert ({name: numbers(p).tobytes() for name, p in params.items()}, module and values(module)) == before


@each_backend
@pytest.mark.parametrize("copied", [copy.copy])
def test_a_copy_of_a_model_changes_alone(backend, copied):
    vae = tiny(backend)
    before, other = state(vae), copied(vae)
    other.to(dtype="float16")
    other.enable_slicing()
    other.set_attn_processor("eager")
    other.register_to_config(scaling_factor=3.0)
    assert (state(vae), vae.use_slicing, vae.config.scaling_factor) == (before, False, TINY.scaling_factor)
    kept = state(other)
    vae.fuse_qkv_projections()
    vae.to(dtype="bfloat16")
    assert state(other) == kept


@each_backend
def test_processors_change_the_model_alone(backend):
    vae = tiny(backend)
    other, made = vae.with_params(vae.functional().params), everything_made_from(vae)
    params, before = vae.functional().params, state(other)
    for change in (
        vae.fuse_qkv_projections,
        vae.unfuse_qkv_projections,
        lambda: vae.set_attn_processor("lora"),
        vae.fuse_lora,
        lambda: vae.set_attn_processor("chunked"),
    ):
        change()
        assert state(other) == before
    assert {name: numbers(p).tobytes() for name, p in params.items()} == made["params"]
    assert everything_made_from(vae) == made


@each_backend
def test_a_config_is_registered_with_one_model_alone(backend):
    vae = tiny(backend)
    other = vae.with_params(vae.functional().params)
    module = vae.module() if backend in HAVE_MODULES else other
    vae.register_to_config(scaling_factor=3.0)
    assert vae.config.scaling_factor == 3.0
    assert other.config == module.config == TINY


# -- results -----------------------------------------------------------------------------------------------------


@each_backend
def test_results_are_new_arrays(backend):
    vae = tiny(backend)
    ops = vae._model.ops
    x, z = ops.from_numpy(images(TINY, 8, 8)), ops.from_numpy(uniform("z", (1, 4, 2, 2)))
    before, inputs = state(vae), (array(x), array(z))
    params, encode, decode = vae.functional()
    results = [vae.encode(x).latent_dist.parameters, vae.decode(z).sample, vae(x).sample, vae.encode_latents(x)]
    results += [encode(params, x).latent_dist.parameters, decode(params, z).sample]
    if backend in HAVE_MODULES:
        module = vae.module()
        results += [module.encode(x).latent_dist.parameters, module.decode(z).sample, module.encoder(x)]
    for result in results:
        overwrite(result.detach() if backend == "torch" else result)
    assert state(vae) == before
    for given, expected in zip((x, z), inputs, strict=True):
        np.testing.assert_array_equal(array(given), expected)


@each_backend
def test_the_mode_of_a_posterior_is_a_view_in_numpy_and_pytorch_alone(backend):
    posterior = tiny(backend).encode(images(TINY, 8, 8)).latent_dist
    before = array(posterior.parameters)
    if backend == "jax":
        with pytest.raises(TypeError):
            posterior.mode()[...] = 7
    else:
        posterior.mode()[...] = 7
    assert np.array_equal(array(posterior.parameters), before) == (backend in ("jax", "mlx"))


@each_backend
def test_to_numpy_shows_the_memory_of_an_array(backend):
    vae = tiny(backend)
    x = vae._model.ops.from_numpy(uniform("x", (2, 3)))
    shown = vae.to_numpy(x)
    assert shown.flags.writeable == (backend in ("numpy", "torch"))
    if backend in ("numpy", "torch"):
        overwrite(x)
        assert (shown == 7).all()


# -- the table ---------------------------------------------------------------------------------------------------

ROWS = {
    "`AutoencoderKL(config, weights)`": test_a_model_owns_its_weights,
    "`load(pipe)`": test_a_model_loaded_from_memory_owns_its_weights,
    "`vae.activations(x, half)`": test_activations_are_not_kept,
    "`vae.weights()`": test_weights_are_copies_in_every_call,
    "`vae.functional().params`": test_the_params_of_functional_are_copies_in_every_call,
    "`vae.module()`": test_a_module_owns_its_parameters,
    "`module.state_dict()`": test_the_state_dict_of_a_module_is_the_module,
    "`vae.with_params(params)`": test_a_model_with_other_params_owns_them,
    "`vae.with_backend(name)`": test_a_model_on_another_backend_shares_nothing,
    "`vae.to(device, dtype)`": test_to_returns_the_model_itself_and_leaves_what_was_made_from_it,
    "`copy.copy(vae)`": test_a_copy_of_a_model_changes_alone,
    "`set_attn_processor`": test_processors_change_the_model_alone,
    "`vae.register_to_config(…)`": test_a_config_is_registered_with_one_model_alone,
    "`encode(x)`": test_results_are_new_arrays,
    "`posterior.mean`": test_the_mode_of_a_posterior_is_a_view_in_numpy_and_pytorch_alone,
    "`vae.to_numpy(array)`": test_to_numpy_shows_the_memory_of_an_array,
}


def test_every_row_of_the_table_has_its_test():
    page = (Path(__file__).parents[2] / "docs" / "ownership.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (`[^`]*`)", page, re.MULTILINE) == [*ROWS]

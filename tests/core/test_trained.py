"""Parameters given to a model: NumPy's, another framework's, nested, in other dtypes; or refused in one sentence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_unflatten
from support.configs import CONFIGS, TINY, uniform
from support.models import BACKENDS, array, each_backend, tiny
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from vaespec import AutoencoderKL, InputError

MAKE = {
    "numpy": np.array,
    "torch": torch.tensor,
    "jax": jnp.array,
    "mlx": mx.array,
}


def changed(vae: AutoencoderKL) -> dict[str, np.ndarray]:
    """Other parameters than the model's, on the host, in the layouts of its backend."""
    return {name: np.float32(0.5) * np.asarray(vae.to_numpy(p)) for name, p in vae.functional().params.items()}


def assert_has(vae: AutoencoderKL, expected: dict[str, np.ndarray]) -> None:
    params = vae.functional().params
    assert params.keys() == expected.keys()
    for name, p in params.items():
        np.testing.assert_array_equal(vae.to_numpy(p), expected[name])
        assert vae._model.ops.is_array(p)


@each_backend
@pytest.mark.parametrize("source", BACKENDS)
def test_arrays_of_any_framework_are_placed_on_the_backend(backend, source):
    vae = tiny(backend)
    given = changed(vae)
    trained = vae.with_params({name: MAKE[source](a) for name, a in given.items()})
    assert_has(trained, given)
    z = uniform("z", (1, 4, 2, 3)).astype(np.float32)
    assert not np.array_equal(array(trained.decode(z).sample), array(vae.decode(z).sample))


@each_backend
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_another_dtype_becomes_that_of_the_model(backend, dtype):
    vae = tiny(backend)
    given = {name: a.astype(getattr(ml_dtypes, dtype, dtype)) for name, a in changed(vae).items()}
    assert_has(vae.with_params(given), {name: a.astype(np.float32) for name, a in given.items()})
    if (backend, dtype) != ("mlx", "float64"):
        own = {name: vae._model.ops.from_host(a) for name, a in given.items()}
        assert_has(vae.with_params(own), {name: a.astype(np.float32) for name, a in given.items()})


@each_backend
def test_kernels_that_are_placed_run_as_fast_as_those_that_are_loaded(backend):
    """Placed kernels have the same order in memory as loaded ones, so that no run has to reorder them."""
    vae = tiny(backend)
    loaded, given = vae._model, vae.functional().params
    for params in (given, {name: np.array(vae.to_numpy(p)) for name, p in given.items()}):
        placed = vae.with_params(params)._model
        for name, p in loaded.params.items():
            assert vae.to_numpy(placed.params[name]).strides == vae.to_numpy(p).strides, name


@each_backend
def test_nested_trees_are_flattened(backend):
    """As MLX, orbax and Flax's unflatten_dict nest them: lists or words for numbers."""
    vae = tiny(backend)
    given = changed(vae)
    assert_has(vae.with_params(tree_unflatten(list(given.items()))), given)
    words: dict = {}
    for name, a in given.items():
        (*path, leaf), branch = name.split("."), words
        for word in path:
            branch = branch.setdefault(word, {})
        branch[leaf] = a
    assert_has(vae.with_params(words), given)


@each_backend
def test_what_numpy_saved_is_loaded_as_it_is(backend, tmp_path):
    vae = tiny(backend)
    given = changed(vae)
    np.savez(tmp_path / "params.npz", **given)
    with np.load(tmp_path / "params.npz") as loaded:
        assert_has(vae.with_params(loaded), given)


@each_backend
def test_pairs_of_names_and_arrays_are_taken(backend):
    vae = tiny(backend)
    given = changed(vae)
    assert_has(vae.with_params(given.items()), given)
    assert_has(vae.with_params(iter(given.items())), given)


def test_the_parameters_of_a_torch_module_are_taken_and_not_recorded():
    vae = tiny("torch")
    module = vae.module()
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(0.5)
    expected = {name: p.detach().numpy() for name, p in module.named_parameters()}
    for given in (module.state_dict(), dict(module.named_parameters()), module.named_parameters()):
        trained = vae.with_params(given)
        assert_has(trained, expected)
        assert not trained.decode(uniform("z", (1, 4, 2, 3))).sample.requires_grad


def test_the_names_of_wrapped_modules_are_taken():
    vae = tiny("torch")
    module = vae.module()
    expected = {name: p.detach().numpy() for name, p in module.named_parameters()}
    whole = torch.compile(module, backend="eager")
    assert next(iter(whole.state_dict())).startswith("_orig_mod.")
    assert_has(vae.with_params(whole.state_dict()), expected)
    module.encoder, module.decoder = checkpoint_wrapper(module.encoder), torch.compile(module.decoder, backend="eager")
    assert_has(vae.with_params(dict(module.named_parameters())), expected)
    with pytest.raises(InputError, match=r"^parameter encoder\.conv_in\.bias is given twice, once as module\.encoder"):
        vae.with_params(expected | {"module.encoder.conv_in.bias": expected["encoder.conv_in.bias"]})


def test_a_parameter_that_is_in_a_tree_twice_is_refused():
    params = tiny().functional().params
    twice = params | {"decoder": {"conv_out": {"bias": params[NAME]}}}
    with pytest.raises(InputError, match=r"^parameter decoder\.conv_out\.bias is given twice"):
        tiny().with_params(twice)


def test_the_parameters_of_an_mlx_module_are_taken():
    vae = tiny("mlx")
    module = vae.module()
    module.update(tree_unflatten([(name, mx.array(a)) for name, a in changed(vae).items()]))
    assert_has(vae.with_params(module.parameters()), changed(vae))
    assert_has(vae.with_params(module.trainable_parameters()), changed(vae))


@each_backend
def test_statistics_that_are_no_parameters_may_be_given_or_left_out(backend):
    config = CONFIGS["flux2"]
    vae = tiny(backend, config=config)
    assert_has(
        vae.with_params(vae.functional().params), {n: vae.to_numpy(p) for n, p in vae.functional().params.items()}
    )
    state = {name: np.array(vae.to_numpy(p)) for name, p in vae._model.params.items()}
    state |= {"bn.running_mean": state["bn.running_mean"] + 2, "bn.num_batches_tracked": np.array(5)}
    trained = vae.with_params({name: MAKE[backend](a) for name, a in state.items()}).weights()
    assert (trained["bn.running_mean"] == vae.weights()["bn.running_mean"] + 2).all()
    assert trained["bn.num_batches_tracked"] == 5
    del state["bn.running_var"]
    assert vae.with_params(state).weights()["bn.num_batches_tracked"] == 5


# -- gradients ---------------------------------------------------------------------------------------------------


def test_gradients_pass_to_arrays_of_the_backend():
    """In each framework's way to take them, with respect to one parameter."""
    name, z = "decoder.conv_in.bias", uniform("z", (1, 4, 2, 2)).astype(np.float32)

    def loss(vae, params):
        return (vae.with_params(params).decode(z).sample ** 2).mean()

    results = []
    for backend, take in (("jax", jax.grad), ("mlx", mx.grad), ("torch", torch.func.grad)):
        vae = tiny(backend)
        params = vae.functional().params
        results.append(array(take(lambda p, vae=vae: loss(vae, p))(params)[name]))
    vae = tiny("torch")
    params = {key: p.requires_grad_() for key, p in vae.functional().params.items()}
    loss(vae, params).backward()
    results.append(array(params[name].grad))
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=1e-3, atol=1e-6)
    assert abs(results[0]).max() > 0


# -- what is refused ---------------------------------------------------------------------------------------------

REST = ": give all parameters of functional(), by name, in the layouts of this backend."
NAME = "decoder.conv_out.bias"


@each_backend
def test_names_and_shapes_that_are_not_the_models_are_refused(backend):
    vae = tiny(backend)
    params = vae.functional().params
    shape = tuple(params[NAME].shape)
    less = {name: p for name, p in params.items() if name != NAME}
    count = len(params)
    for given, words in (
        (less, f"parameter {NAME} is missing"),
        ({}, f"parameter decoder.conv_in.bias is missing ({count - 1} more do not fit)"),
        ({"encoder": {}}, f"parameter decoder.conv_in.bias is missing ({count - 1} more do not fit)"),
        (params | {"aux": params[NAME]}, "parameter aux is none of this model's"),
        (
            params | {NAME: np.zeros((5, 1), np.float32)},
            f"parameter {NAME} has the shape (5, 1) instead of {shape}",
        ),
        ({"params": params}, f"parameter decoder.conv_in.bias is missing ({2 * count - 1} more do not fit)"),
    ):
        with pytest.raises(InputError) as refused:
            vae.with_params(given)
        assert str(refused.value) == words + REST


@pytest.mark.parametrize("backend", ["numpy", "jax", "mlx"])
def test_kernels_in_the_layout_of_another_backend_are_refused(backend):
    with pytest.raises(InputError, match=r"has the shape .* instead of .*in the layouts of this backend\.$"):
        tiny(backend).with_params(tiny("torch").module().state_dict())


@each_backend
@pytest.mark.parametrize(
    "wrong", [3.0, None, "weights", np.zeros(3, np.int32), np.zeros(3, complex), np.array(["a"] * 3)]
)
def test_what_is_no_array_of_floats_is_refused(backend, wrong):
    vae = tiny(backend)
    words = f"is a {type(wrong).__name__}: expected an array."
    if isinstance(wrong, np.ndarray):
        wrong = np.resize(wrong, vae.functional().params[NAME].shape)
        words = f"of dtype {wrong.dtype}: expected floats, in any precision."
    with pytest.raises(InputError) as refused:
        vae.with_params(vae.functional().params | {NAME: wrong})
    assert str(refused.value) == f"parameter {NAME} {words}"


@each_backend
@pytest.mark.parametrize("given", [None, 3, "weights", [1, 2], np.zeros(3)])
def test_what_has_no_names_is_refused(backend, given):
    with pytest.raises(InputError, match=r"^parameters as a .*: expected arrays by name, such as the params"):
        tiny(backend).with_params(given)


def test_a_module_or_a_functional_is_not_its_parameters():
    vae = tiny("torch")
    for given in (vae.module(), vae.functional(), vae):
        with pytest.raises(InputError, match=r"^parameters as a "):
            vae.with_params(given)


def test_a_file_of_numpy_that_is_closed_is_refused(tmp_path):
    np.savez(tmp_path / "params.npz", **tiny().functional().params)
    loaded = np.load(tmp_path / "params.npz")
    loaded.close()
    with pytest.raises(InputError, match=r"^parameters as a NpzFile: expected arrays by name"):
        tiny().with_params(loaded)


def test_a_tree_without_end_is_refused():
    tree: dict = {}
    tree["more"] = tree
    with pytest.raises(InputError, match=r"^parameters nested in 16 levels, at more\.more"):
        tiny().with_params(tree)


@each_backend
def test_arrays_without_values_are_refused(backend):
    vae = tiny(backend)
    params = vae.functional().params
    deleted = jnp.zeros(tuple(params[NAME].shape), jnp.float32)
    deleted.delete()
    meta = torch.zeros(tuple(params[NAME].shape), device="meta")
    abstract = jax.ShapeDtypeStruct(tuple(params[NAME].shape), jnp.float32)
    for wrong in (deleted, meta, abstract):
        with pytest.raises(InputError, match=rf"^(the )?parameter {NAME}"):
            vae.with_params(params | {NAME: wrong})


def test_quantized_parameters_are_refused():
    from mlx import nn

    vae = tiny("mlx", config=TINY.replace(block_out_channels=(32, 64)))
    module = vae.module()
    nn.quantize(module, bits=4, group_size=32)
    with pytest.raises(InputError, match=r"^parameter \S+to_\S+ is none of this model's"):
        vae.with_params(module.parameters())

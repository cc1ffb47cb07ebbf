"""AutoencoderKL as its users hold it: the same on every backend."""

from __future__ import annotations

import math

import jax
import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
import torch
from support.configs import CONFIGS, TINY, images, narrow, relative_l2, uniform
from support.models import EXACT, FINEST, array, each_backend, model, tiny
from support.oracle import diffusers_model, oracle

from vaespec import (
    AutoencoderKL,
    BackendError,
    ConfigError,
    InputError,
    WeightMapError,
    parameters,
)
from vaespec.architecture import count_parameters

ARRAYS = {"numpy": np.ndarray, "torch": torch.Tensor, "jax": jax.Array, "mlx": mx.array}

# -- new models --------------------------------------------------------------------------------------------------


def test_new_weights_are_uniform_within_one_over_root_fan_in():
    """As PyTorch draws them. The standard deviation of U(-a, a) is a / √3; n draws show it to within 5 / √n of that."""
    config = narrow((32, 64), layers_per_block=1, norm_num_groups=32)
    weights = AutoencoderKL.from_config(config, backend="numpy", dtype="float64").weights()
    for name, parameter in parameters(config).items():
        a = weights[name]
        if parameter.role in ("conv", "linear", "bias"):
            kernel = weights[name.replace(".bias", ".weight")]
            bound = 1 / math.sqrt(math.prod(kernel.shape[1:]))
            assert abs(a).max() <= bound, name
            assert abs(a).max() > bound * (1 - 10 / a.size), name
            if a.size >= 100:
                assert abs(a.std() / (bound / math.sqrt(3)) - 1) < 5 / math.sqrt(a.size), name
                assert abs(a.mean()) < 5 * bound / math.sqrt(3 * a.size), name
        else:
            np.testing.assert_array_equal(a, np.full(a.shape, float(parameter.role == "norm_scale")))


def test_new_weights_have_the_spread_of_those_of_diffusers():
    theirs = {name: tensor.numpy() for name, tensor in diffusers_model(TINY).state_dict().items()}
    for name, ours in tiny(dtype="float64").weights().items():
        if ours.size >= 500:
            assert abs(ours.std() / theirs[name].std() - 1) < 10 / math.sqrt(ours.size), name
        elif "norm" in name:
            np.testing.assert_array_equal(ours, theirs[name])


def test_new_statistics_are_those_of_no_batch():
    weights = tiny(config=CONFIGS["flux2"]).weights()
    assert (weights["bn.running_mean"] == 0).all()
    assert (weights["bn.running_var"] == 1).all()
    assert weights["bn.num_batches_tracked"] == 0


def test_the_seed_gives_the_weights_on_every_backend():
    first, again = tiny("numpy").weights(), tiny("torch").weights()
    other = AutoencoderKL.from_config(TINY, seed=1, backend="numpy").weights()
    assert first.keys() == again.keys() == parameters(TINY).keys()
    for name, a in first.items():
        np.testing.assert_array_equal(a, again[name])
        assert "norm" in name or not np.array_equal(a, other[name])


def test_a_config_may_be_the_content_of_a_config_json():
    vae = AutoencoderKL.from_config(TINY.to_dict(), backend="numpy")
    assert vae.config == TINY
    assert vae.num_parameters() == count_parameters(TINY)


# -- encode, decode, call ----------------------------------------------------------------------------------------


@each_backend
def test_encode_decode_and_call_agree(backend):
    vae, x = model(backend=backend), images(CONFIGS["sd"], 16, 24, batch=2)
    posterior = vae.encode(x).latent_dist
    by_mode, by_sample = vae.decode(posterior.mode()).sample, vae.decode(posterior.sample(seed=5)).sample
    np.testing.assert_array_equal(array(vae(x).sample), array(by_mode))
    np.testing.assert_array_equal(array(vae.forward(x).sample), array(by_mode))
    np.testing.assert_array_equal(array(vae(x, sample_posterior=True, seed=5).sample), array(by_sample))
    assert not np.array_equal(array(by_mode), array(by_sample))


def test_a_numpy_generator_seeds_the_call():
    vae, x = tiny(), images(TINY, 8, 8).astype(np.float32)
    first, second = (vae(x, True, True, np.random.default_rng(3)).sample for _ in range(2))
    np.testing.assert_array_equal(first, second)


@each_backend
def test_tuples_hold_what_the_outputs_hold(backend):
    vae, x = model(backend=backend), images(CONFIGS["sd"], 8, 8)
    (posterior,) = vae.encode(x, return_dict=False)
    z = posterior.mode()
    np.testing.assert_array_equal(array(posterior.parameters), array(vae.encode(x)["latent_dist"].parameters))
    (sample,) = vae.decode(z, return_dict=False)
    np.testing.assert_array_equal(array(sample), array(vae.decode(z)[0]))
    (sample,) = vae(x, return_dict=False)
    np.testing.assert_array_equal(array(sample), array(vae(x).sample))
    sample, posterior = vae(x, return_dict=False, return_posterior=True)
    np.testing.assert_array_equal(array(sample), array(vae(x).sample))
    np.testing.assert_array_equal(array(posterior.mean), array(z))


@each_backend
def test_the_posterior_is_returned_only_if_requested(backend):
    vae, x = tiny(backend), images(TINY, 8, 8)
    assert vae(x).posterior is None
    assert tuple(vae(x, return_posterior=True).posterior.mean.shape) == (1, 4, 4, 4)


@pytest.mark.parametrize("backend", ARRAYS)
def test_outputs_are_the_arrays_of_the_backend_in_its_dtype(backend):
    vae = tiny(backend)
    outputs = vae.encode(images(TINY, 8, 8)).latent_dist.mean, vae.decode(uniform("z", (1, 4, 2, 2))).sample
    for output in (*outputs, vae.encode_latents(images(TINY, 8, 8))):
        assert isinstance(output, ARRAYS[backend])
        assert str(output.dtype).endswith("float32")


@each_backend
@pytest.mark.parametrize("name", ["sd", "kl-f16"])
def test_slicing_gives_the_results_of_the_whole_batch(backend, name):
    vae, x = model(name, backend), images(CONFIGS[name], 16, 32, batch=3)
    whole = vae(x, sample_posterior=True, seed=2, return_posterior=True)
    vae.enable_slicing()
    assert vae.use_slicing
    sliced = vae(x, sample_posterior=True, seed=2, return_posterior=True)
    assert relative_l2(array(sliced.sample), array(whole.sample)) <= EXACT[vae.dtype]
    assert relative_l2(array(sliced.posterior.parameters), array(whole.posterior.parameters)) <= EXACT[vae.dtype]
    vae.disable_slicing()
    np.testing.assert_array_equal(array(vae(x).sample), array(model(name, backend)(x).sample))


# -- where it runs -----------------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("dtype", ["finest", "float16", "bfloat16"])
def test_a_model_moves_to_a_dtype_in_place(backend, dtype):
    vae, dtype = tiny(backend), FINEST[backend] if dtype == "finest" else dtype
    weights = vae.weights()
    assert vae.to(dtype=dtype) is vae
    assert vae.dtype == dtype
    assert str(vae.decode(uniform("z", (1, 4, 2, 2))).sample.dtype).endswith(dtype)
    for name, a in vae.weights().items():
        np.testing.assert_array_equal(a, weights[name].astype(getattr(ml_dtypes, dtype, dtype)))


@each_backend
def test_moving_nowhere_changes_nothing(backend):
    vae, z = tiny(backend), uniform("z", (1, 4, 2, 2))
    before = array(vae.decode(z).sample)
    vae.to().to(device="cpu")
    np.testing.assert_array_equal(array(vae.decode(z).sample), before)


@pytest.mark.parametrize("name", ["sd", "flux2", "kl-f16"])
@pytest.mark.parametrize(("source", "target"), [("numpy", "torch"), ("torch", "numpy")])
def test_another_backend_gives_the_same_results(name, source, target):
    vae = model(name, source)
    vae.enable_slicing()
    moved = vae.with_backend(target)
    assert (moved.backend, moved.dtype, moved.use_slicing, vae.backend) == (target, "float64", True, source)
    x = images(CONFIGS[name], 16, 32, batch=2)
    assert relative_l2(array(moved(x).sample), array(vae(x).sample)) <= 1e-13
    assert relative_l2(array(moved.encode_latents(x, seed=7)), array(vae.encode_latents(x, seed=7))) <= 1e-13
    for key, a in vae.weights().items():
        np.testing.assert_array_equal(moved.weights()[key], a)


@each_backend
def test_changing_the_arrays_a_model_was_made_from_does_not_change_it(backend):
    weights = {name: a.astype(np.float32) for name, a in oracle("sd")[1].items()}
    vae, z = AutoencoderKL(CONFIGS["sd"], weights, backend=backend, device="cpu"), uniform("z", (1, 4, 2, 2))
    before = array(vae.decode(z).sample)
    for a in weights.values():
        a *= 0
    np.testing.assert_array_equal(array(vae.decode(z).sample), before)


@each_backend
def test_changing_exported_weights_does_not_change_the_model(backend):
    vae, z = tiny(backend), uniform("z", (1, 4, 2, 2))
    before = array(vae.decode(z).sample)
    for a in vae.weights().values():
        if a.flags.writeable:
            a *= 0
    np.testing.assert_array_equal(array(vae.decode(z).sample), before)


def test_training_a_module_does_not_change_a_copy_on_another_backend():
    vae, z = tiny("torch"), uniform("z", (1, 4, 2, 2)).astype(np.float32)
    copy = vae.with_backend("numpy")
    before = array(copy.decode(z).sample)
    with torch.no_grad():
        for tensor in vae.module().parameters():
            tensor.mul_(0)
    np.testing.assert_array_equal(array(copy.decode(z).sample), before)


# -- pure functions and modules ----------------------------------------------------------------------------------


@each_backend
def test_functional_is_the_model_as_a_value(backend):
    vae = model(backend=backend)
    params, encode, decode = vae.functional()
    x, z = (
        vae._model.ops.from_numpy(images(CONFIGS["sd"], 16, 8)),
        vae._model.ops.from_numpy(uniform("z", (1, 4, 2, 1))),
    )
    moments, pictures = array(encode(params, x).latent_dist.parameters), array(decode(params, z).sample)
    assert relative_l2(moments, array(vae.encode(x).latent_dist.parameters)) <= EXACT[vae.dtype]
    assert relative_l2(pictures, array(vae.decode(z).sample)) <= EXACT[vae.dtype]


@each_backend
def test_functional_uses_the_params_it_is_given_and_no_others(backend):
    vae = model(backend=backend)
    params, _, decode = vae.functional()
    z = vae._model.ops.from_numpy(uniform("z", (1, 4, 2, 1)))
    before = array(vae.decode(z).sample)
    silent = {name: 0 * value for name, value in params.items()}
    assert not array(decode(silent, z).sample).any()
    params.clear()
    np.testing.assert_array_equal(array(vae.decode(z).sample), before)


@each_backend
def test_functional_of_half_a_model_says_what_it_has_not(backend):
    weights = {name: a for name, a in tiny().weights().items() if name.startswith("encoder.") or "quant" in name}
    del weights["post_quant_conv.weight"], weights["post_quant_conv.bias"]
    params, _, decode = AutoencoderKL(TINY, weights, backend=backend, device="cpu").functional()
    z = uniform("z", (1, 4, 2, 2)).astype(np.float32)
    with pytest.raises(InputError, match=r"^these weights have no decoder"):
        decode(params, z)


def test_a_backend_without_modules_says_so():
    with pytest.raises(BackendError, match="'numpy' has no module class: use functional"):
        tiny("numpy").module()


def test_gradients_reach_the_images_through_the_model():
    x = torch.tensor(images(TINY, 8, 8), dtype=torch.float32, requires_grad=True)
    tiny("torch")(x).sample.sum().backward()
    assert x.grad.abs().max() > 0


# -- weights given by hand, and small conveniences ---------------------------------------------------------------


def test_weights_that_do_not_fit_the_config_are_refused_all_at_once():
    weights = tiny().weights()
    del weights["decoder.conv_out.bias"]
    weights["encoder.conv_in.weight"] = weights["encoder.conv_in.weight"][:, :, :1]
    weights["extra"] = np.zeros(1, np.float32)
    with pytest.raises(WeightMapError) as refused:
        AutoencoderKL(TINY, weights, backend="numpy")
    head, *problems = str(refused.value).splitlines()
    assert head == "the weights do not fit the config:"
    assert [problem.split()[:2] for problem in problems] == [
        ["missing", "decoder.conv_out.bias"],
        ["shape", "encoder.conv_in.weight"],
        ["unexpected", "extra"],
    ]


@pytest.mark.parametrize(
    "places", [("float64",), (np.float64,), (torch.float64,), ("cpu", "float64"), ("float64", "cpu")]
)
def test_to_takes_device_and_dtype_in_any_order(places):
    assert tiny("torch").to(*places).dtype == "float64"


def test_a_seed_without_sampling_is_refused():
    with pytest.raises(InputError, match="give sample_posterior=True"):
        tiny()(images(TINY, 8, 8), seed=3)


def test_a_model_and_its_posterior_have_a_readable_repr():
    vae = tiny()
    count = f"{vae.num_parameters():,}"
    assert repr(vae) == f"AutoencoderKL(f=2, 4 latent channels, {count} parameters, numpy on cpu, float32)"
    assert repr(vae.encode(images(TINY, 8, 8)).latent_dist) == "DiagonalGaussian(latents (1, 4, 4, 4), float32)"


@pytest.mark.parametrize("dialect", ["diffusers", "diffusers-deprecated", "ldm"])
def test_a_single_file_of_any_dialect_gives_the_model_back(tmp_path, dialect):
    vae = tiny()
    vae.save_single_file(tmp_path / "vae.safetensors", dialect=dialect)
    again = AutoencoderKL.from_single_file(tmp_path / "vae.safetensors", config=TINY, backend="numpy")
    for name, a in vae.weights().items():
        np.testing.assert_array_equal(a, again.weights()[name])


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "foo"])
def test_a_dtype_that_destroys_weights_is_refused(tmp_path, dtype):
    with pytest.raises(InputError, match=f"dtype '{dtype}': choose float32, float64, float16, bfloat16"):
        tiny().save_pretrained(tmp_path, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_dialect_is_refused(tmp_path):
    with pytest.raises(InputError, match="unknown dialect 'klingon': choose one of diffusers"):
        tiny().save_single_file(tmp_path / "vae.safetensors", dialect="klingon")


def test_the_scale_may_be_set_later_and_the_structure_may_not():
    vae = tiny("numpy")
    images, factor = uniform("images", (1, 3, 16, 16)), vae.config.scaling_factor
    before = vae.encode_latents(images)
    vae.register_to_config(scaling_factor=2 * factor)
    np.testing.assert_array_equal(vae.encode_latents(images), 2 * before)
    with pytest.raises(InputError, match=r"^latent_channels, layers_per_block: only scaling_factor, shift_factor, "):
        vae.register_to_config(layers_per_block=3, latent_channels=8)
    with pytest.raises(ConfigError, match=r"^scaling_factor=0"):
        vae.register_to_config(scaling_factor=0)
    assert vae.config.scaling_factor == 2 * factor

"""A module computes with the parameters it has now: as the model if no gradient is wanted, else by autograd."""

from __future__ import annotations

import warnings

import accelerate
import pytest
import torch
from diffusers import AutoencoderKL as Theirs
from support.configs import TINY, relative_l2
from support.models import array, tiny
from support.module_runs import PARTS, TILES, assert_equal, latents, loss, results
from torch import nn
from torch.nn.utils import parametrize

from vaespec import AutoencoderKL, InputError
from vaespec.errors import NonFiniteWarning

in_each_part = pytest.mark.parametrize("parts", PARTS)


def theirs(module: nn.Module, dtype: torch.dtype = torch.float32) -> Theirs:
    """diffusers' model with the weights of a module."""
    model = Theirs(**{name: value for name, value in TINY.to_dict().items() if not name.startswith("_")}).to(dtype)
    model.load_state_dict(module.state_dict(), strict=True)
    return model


# -- without a gradient ------------------------------------------------------------------------------------------


@in_each_part
def test_without_a_gradient_the_module_computes_what_the_model_computes_to_the_bit(parts):
    vae = tiny("torch")
    module = vae.module()
    for each in (vae, module):
        PARTS[parts](each)
    with torch.no_grad():
        assert_equal(results(module), results(vae))
    with torch.inference_mode():
        assert_equal(results(module), results(vae))
    module.requires_grad_(False)
    assert_equal(results(module), results(vae))


def test_the_settings_of_the_model_go_along():
    vae = tiny("torch")
    vae.enable_slicing()
    vae.enable_tiling(**TILES)
    module = vae.module()
    with torch.no_grad():
        assert_equal(results(module), results(vae))
    module.disable_tiling()
    assert vae.use_tiling
    assert not module.use_tiling


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_that_of_the_parameters_now(dtype):
    vae, module = tiny("torch"), tiny("torch").module().to(dtype)
    assert module.dtype == dtype
    assert module.device == torch.device("cpu")
    vae.to(dtype=str(dtype).removeprefix("torch."))
    with torch.no_grad():
        assert_equal(results(module), results(vae))


def test_parameters_are_read_in_place_each_time():
    module, other = tiny("torch").module(), tiny("torch").module()
    with torch.no_grad():
        before = results(module)
        for p in module.parameters():
            p.mul_(0.9)
        assert not torch.equal(results(module)[1], before[1])
        module.load_state_dict(other.state_dict())
        assert_equal(results(module), before)
    params, own = module._model.params, dict(module.named_parameters())
    assert {name: x.data_ptr() for name, x in params.items()} == {name: p.data_ptr() for name, p in own.items()}


def test_a_replica_computes_with_its_own_parameters():
    """nn.DataParallel makes one for each device."""
    module, other = tiny("torch").module(), AutoencoderKL.from_config(TINY, seed=1, backend="torch").module()
    replica = module._replicate_for_data_parallel()
    replica.decoder = other.decoder
    with torch.no_grad():
        expected = other.decoder(module.post_quant_conv(latents()))
        assert relative_l2(array(replica.decode(latents()).sample), array(expected)) <= 2e-6
        assert relative_l2(array(module.decode(latents()).sample), array(expected)) > 1e-2


def test_parameters_of_two_dtypes_are_computed_with_in_the_wider():
    module = tiny("torch").module()
    with torch.no_grad():
        expected = results(module)
        module.decoder.mid_block.bfloat16()
        for parts in ("whole", "bands"):
            PARTS[parts](module)
            sample = results(module)[1]
            assert sample.dtype == torch.float32
            assert 0 < relative_l2(array(sample), array(expected[1])) < 1e-2


def test_a_float16_module_that_would_overflow_is_finite_with_a_gradient_and_without():
    module = tiny("torch").module()
    with torch.no_grad():
        for name in ("conv1", "conv2"):
            getattr(module.decoder.mid_block.resnets._modules["0"], name).weight.mul_(3e4)
        expected = results(module)[1]
        module.half()
        without = results(module)[1]
    recorded = results(module)[1]
    for sample in (without, recorded.detach()):
        assert sample.dtype == torch.float16
        assert relative_l2(array(sample.float()), array(expected)) < 1e-2


# -- what is called around a layer -------------------------------------------------------------------------------


class Unchanged(nn.Module):
    calls = 0

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        Unchanged.calls += 1
        return weight


def _hook(module: nn.Module, calls: list) -> None:
    module.decoder.conv_in.register_forward_hook(lambda *_: calls.append(1))


def _pre_hook(module: nn.Module, calls: list) -> None:
    module.decoder.register_forward_pre_hook(lambda *_: calls.append(1))


def _forward(module: nn.Module, calls: list) -> None:
    forward = module.decoder.conv_out.forward
    module.decoder.conv_out.forward = lambda *given: (calls.append(1), forward(*given))[1]


def _wrapper(module: nn.Module, calls: list) -> None:
    module.decoder = nn.Sequential(module.decoder)
    module.decoder.register_forward_hook(lambda *_: calls.append(1))


@in_each_part
@pytest.mark.parametrize("put", [_hook, _pre_hook, _forward, _wrapper])
def test_hooks_and_wrappers_are_called_without_a_gradient_too(put, parts):
    module, calls = tiny("torch").module(), []
    PARTS[parts](module)
    with torch.no_grad():
        expected = results(module)[1]
        put(module, calls)
        sample = results(module)[1]
    assert calls
    assert relative_l2(array(sample), array(expected)) <= 2e-6


@pytest.mark.parametrize("bands", [False, True])
def test_in_float16_a_wrapper_that_takes_its_input_alone_is_called(bands):
    module = tiny("torch", dtype="float16").module()
    if bands:
        module.enable_tiling("exact", band_rows=3)
    with torch.no_grad():
        true = results(tiny("torch").module())[1]
        module.post_quant_conv = nn.Sequential(module.post_quant_conv)
        sample = results(module)[1]
    assert sample.dtype == torch.float16
    assert relative_l2(array(sample.float()), array(true)) <= 4 * torch.finfo(torch.float16).eps


def test_a_parametrization_is_computed_without_a_gradient_too():
    module = tiny("torch").module()
    parametrize.register_parametrization(module.decoder.conv_in, "weight", Unchanged())
    Unchanged.calls = 0
    with torch.no_grad():
        results(module)
    assert Unchanged.calls == 1


@pytest.mark.parametrize("bands", [False, True])
def test_autocast_costs_what_it_costs_diffusers(bands):
    module = tiny("torch").module()
    other = theirs(module)
    if bands:
        module.enable_tiling("exact", band_rows=3)
    with torch.no_grad():
        exact = results(other)
        with torch.autocast("cpu", torch.bfloat16):
            ours, expected = results(module), results(other)
    for one, two, true in zip(ours, expected, exact, strict=True):
        assert one.dtype == two.dtype == torch.bfloat16
        error = relative_l2(array(two.float()), array(true))
        assert 1e-4 < relative_l2(array(one.float()), array(true)) < 1.5 * error


@pytest.mark.parametrize("bands", [False, True])
def test_offloaded_parameters_are_loaded_layer_by_layer(bands):
    module = tiny("torch").module()
    with torch.no_grad():
        expected = results(module)
        accelerate.cpu_offload(module, torch.device("cpu"))
        if bands:
            module.enable_tiling("exact", band_rows=3)
        for one, other in zip(results(module), expected, strict=True):
            assert relative_l2(array(one), array(other)) <= 2e-6
    assert {p.device.type for p in module.parameters()} == {"meta"}


def test_encode_and_decode_call_the_hook_that_brings_the_whole_module():
    module, calls = tiny("torch").module(), []
    module, _ = accelerate.cpu_offload_with_hook(module, torch.device("cpu"))
    before = module._hf_hook.pre_forward
    module._hf_hook.pre_forward = lambda *given: (calls.append(1), before(*given))[1]
    results(module)
    assert len(calls) == 2


# -- with a gradient ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", ["whole", "slices", "tiles", "auto"])
def test_gradients_in_parts_are_those_of_diffusers(parts):
    module = tiny("torch").module().double()
    other = theirs(module, torch.float64)
    PARTS[parts](module)
    if parts == "slices":
        other.enable_slicing()
    if parts == "tiles":
        other.enable_tiling()
        other.tile_latent_min_size, other.tile_sample_min_size = TILES.values()
    for each in (module, other):
        loss(each).backward()
    for name, p in other.named_parameters():
        size = other.get_parameter(name.replace("to_k.bias", "to_q.bias")).grad.norm()
        assert (module.get_parameter(name).grad - p.grad).norm() <= 1e-10 * size, name


def test_exact_tiling_with_a_gradient_says_what_to_do():
    module = tiny("torch").module()
    module.enable_tiling("exact")
    with pytest.raises(InputError, match=r"^exact tiling to decode gives no gradient: use torch\.no_grad\(\), or "):
        module.decode(latents())


def test_inputs_of_another_shape_are_refused_with_a_gradient_too():
    with pytest.raises(InputError, match=r"^latents of shape \(1, 3, 4, 4\): expected 4 channels, got 3"):
        tiny("torch").module().decode(torch.zeros(1, 3, 4, 4))


# -- what is not finite ------------------------------------------------------------------------------------------


@in_each_part
def test_what_is_not_finite_is_returned_with_a_warning_that_names_the_layer(parts):
    module = tiny("torch").module()
    PARTS[parts](module)
    with torch.no_grad():
        module.decoder.conv_in.bias[0] = torch.nan
        with pytest.warns(NonFiniteWarning, match=r"the weight decoder\.conv_in\.bias") as caught:
            assert module.decode(latents()).sample.isnan().any()
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_an_input_that_is_not_finite_is_named():
    with torch.no_grad(), pytest.warns(NonFiniteWarning, match=r"the latents hold 512 NaN"):
        assert tiny("torch").module().decode(latents() * torch.inf).sample.isnan().any()


def test_a_scaled_loss_may_overflow():
    module = tiny("torch").module()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaler.scale(loss(module) * 2.0**10).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**126
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())

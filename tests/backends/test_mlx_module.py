"""The model as MLX's `nn.Module`: it trains, freezes, copies, saves and quantizes."""

from __future__ import annotations

import copy
import math
import pickle

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
import torch
from support.configs import CONFIGS, TINY, assert_within, relative_l2, uniform
from support.mlx_models import OPS, WIDE, module_loss, named, noise, pictures
from support.models import EXACT, array, model, tiny
from support.oracle import oracle

from vaespec import AutoencoderKL, InputError
from vaespec.attention import LoRA


@pytest.mark.parametrize("name", ["sd", "flux2", "kl-f16", "attention-everywhere"])
def test_the_module_has_the_names_of_diffusers_and_the_kernels_of_mlx(name):
    vae = model(name, "mlx")
    result = named(vae.module().parameters())
    trained = {key: row for key, row in vae._model.table().items() if row.trained}
    assert result.keys() == trained.keys()
    for key, row in trained.items():
        shape = (row.shape[0], *row.shape[2:], row.shape[1]) if row.role == "conv" else row.shape
        assert result[key].shape == shape, key


@pytest.mark.parametrize("name", ["sd", "attention-everywhere"])
def test_the_module_computes_the_same_as_the_model(name):
    vae, x = model(name, "mlx"), pictures(CONFIGS[name])
    assert isinstance(vae.module(), nn.Module)
    output = vae.module()(x, sample_posterior=True, seed=3)
    expected = vae(x, sample_posterior=True, seed=3, return_posterior=True)
    assert relative_l2(array(output.sample), array(expected.sample)) <= EXACT["float32"]
    result, exact = output.posterior.parameters, expected.posterior.parameters
    assert relative_l2(array(result), array(exact)) <= EXACT["float32"]
    by_mode = vae.module()(x).sample
    assert relative_l2(array(by_mode), array(vae(x).sample)) <= EXACT["float32"]


def trained(module, optimizer, loss, *data, steps: int = 12, compiled: bool = False) -> list[float]:
    """The losses on the way, in MLX's own idiom."""
    gradient, state = nn.value_and_grad(module, loss), [module.state, optimizer.state]

    def step(*data):
        value, grads = gradient(module, *data)
        optimizer.update(module, grads)
        return value

    step = mx.compile(step, inputs=state, outputs=state) if compiled else step
    return [step(*data).item() for _ in range(steps)]


def test_the_module_trains():
    losses = trained(tiny("mlx").module(), optim.Adam(learning_rate=3e-3), module_loss, pictures())
    assert losses[-1] < 0.9 * losses[0]


def test_a_compiled_step_trains_as_the_step_does():
    def decoder_loss(module, z, x):
        return nn.losses.mse_loss(module.decode(z).sample, x)

    def last_layer() -> nn.Module:
        module = model("attention-everywhere", "mlx").module()
        module.freeze()
        module.decoder.conv_out.unfreeze()
        return module

    z, x = noise(), OPS.from_numpy(uniform("x", (2, 3, 6, 10)))
    eager, compiled = (
        trained(last_layer(), optim.SGD(learning_rate=0.1), decoder_loss, z, x, steps=3, compiled=compiled)
        for compiled in (False, True)
    )
    assert eager[2] < eager[1] < eager[0]
    np.testing.assert_allclose(compiled, eager, rtol=EXACT["float32"])


def test_training_a_module_does_not_change_the_model():
    vae, x = tiny("mlx"), pictures()
    before, module = array(vae(x).sample), vae.module()
    _, grads = nn.value_and_grad(module, module_loss)(module, x)
    optim.SGD(learning_rate=1.0).update(module, grads)
    assert not np.array_equal(array(module(x).sample), before)
    np.testing.assert_array_equal(array(vae(x).sample), before)


def test_frozen_parameters_get_no_gradient():
    module, x = tiny("mlx").module(), pictures()
    every = named(module.parameters()).keys()
    module.freeze()
    assert named(module.trainable_parameters()) == {}
    module.decoder.unfreeze()
    _, grads = nn.value_and_grad(module, module_loss)(module, x)
    assert named(grads).keys() == {name for name in every if name.startswith("decoder.")}
    module.unfreeze()
    assert named(module.trainable_parameters()).keys() == every


def test_a_module_takes_weights_from_a_file(tmp_path):
    vae, x, path = model("sd", "mlx"), pictures(CONFIGS["sd"]), str(tmp_path / "vae.safetensors")
    vae.module().save_weights(path)
    assert mx.load(path).keys() == vae.functional().params.keys()
    other = tiny("mlx", config=CONFIGS["sd"]).module()
    before = other(x).sample
    other.load_weights(path)
    assert not mx.array_equal(other(x).sample, before)
    assert mx.array_equal(other(x).sample, vae.module()(x).sample)


def test_a_module_takes_another_dtype():
    module = tiny("mlx").module()
    module.set_dtype(mx.bfloat16)
    result = module.decode(noise()).sample
    assert result.dtype == mx.bfloat16
    assert mx.array_equal(result, tiny("mlx", "bfloat16").module().decode(noise()).sample)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_module_is_copied_with_its_weights(copied):
    module, x = tiny("mlx").module(), pictures()
    other, before = copied(module), module(x).sample
    module.update({"post_quant_conv": {"bias": mx.ones(4)}})
    assert not mx.array_equal(module(x).sample, before)
    assert mx.array_equal(other(x).sample, before)


def test_a_module_lists_its_parts():
    assert "(to_q): Linear(input_dims=16, output_dims=16, bias=True)" in repr(tiny("mlx").module())


# -- LoRA and quantized weights ----------------------------------------------------------------------------------

PROJECTIONS = {
    f"{coder}.mid_block.attentions.0.{part}"
    for coder in ("encoder", "decoder")
    for part in ("to_q", "to_k", "to_v", "to_out.0")
}


def wide(processor="sdpa"):
    vae = tiny("mlx", config=WIDE)
    vae.set_attn_processor(processor)
    return vae


def quantized(vae, **options) -> nn.Module:
    module = vae.module()
    nn.quantize(module, **options)
    return module


def train_only_lora(module: nn.Module) -> None:
    module.freeze()
    module.apply_to_modules(lambda name, part: part.unfreeze() if "_lora" in name else None)


def test_a_module_has_a_lora_only_if_the_model_has_one():
    assert not [name for name in named(wide().module().parameters()) if "lora" in name]
    module = wide(LoRA(rank=3)).module()
    lora = {name for name in named(module.parameters()) if "lora" in name}
    assert len(lora) == 2 * len(PROJECTIONS)
    train_only_lora(module)
    assert named(module.trainable_parameters()).keys() == lora


@pytest.mark.parametrize("options", [{"bits": 4, "group_size": 32}, {"bits": 8, "group_size": 64}])
@pytest.mark.parametrize("processor", ["sdpa", "chunked", "lora"])
def test_the_projections_of_attention_are_quantised_and_nothing_else(options, processor):
    vae = wide(processor)
    before, module = vae.functional().params, quantized(vae, **options)
    parts = {name for name, part in module.named_modules() if isinstance(part, nn.QuantizedLinear)}
    assert parts == PROJECTIONS
    after = named(module.parameters())
    for name, p in before.items():
        if name.removesuffix(".weight") not in PROJECTIONS:
            assert mx.array_equal(after[name], p), name


def test_fused_projections_are_quantised_too():
    module = quantized(wide("fused"), bits=8, group_size=64)
    parts = {name.rpartition("attentions.0.")[2] for name, part in module.named_modules() if hasattr(part, "scales")}
    assert parts == {"to_qkv", "to_out.0"}
    assert mx.isfinite(module(pictures(WIDE)).sample).all()


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 64), (8, 32), (8, 64)])
def test_a_quantised_product_is_off_by_a_step_of_each_weight_at_most(bits, group_size):
    """Half a step is lost in rounding, and half more since MLX moves the steps to have zero and an end among them."""
    vae = wide()
    module, params = quantized(vae, bits=bits, group_size=group_size), vae.functional().params
    t = uniform("tokens", (2, 7, 64))
    for name in PROJECTIONS:
        weight, arrays = params[f"{name}.weight"], module[name.partition(".")[0]]._arrays()
        result = OPS.linear(OPS.from_numpy(t), arrays[f"{name}.weight"], arrays[f"{name}.bias"])
        expected = OPS.linear(OPS.from_numpy(t), weight, params[f"{name}.bias"])
        groups = array(weight).reshape(64, -1, group_size)
        step = ((groups.max(-1) - groups.min(-1)) / (2**bits - 1)).repeat(group_size, axis=1)
        assert_within(array(result), array(expected), abs(t) @ step.T + 1e-5)
        assert not mx.array_equal(result, expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_model_is_off_by_the_steps_of_its_projections(bits):
    """Uniform weights in ±a have 2a / (2ᵇ - 1) for a step: 1 / (2ᵇ - 1) of their size is lost, in relative L2.

    Encoder and decoder have 8 projections, which lose independently: √8 of that, were the map nothing but theirs.
    The bound for 8 bits is a fifth of what 4 bits lose.
    """
    vae, x = wide(), pictures(WIDE)
    error = relative_l2(array(quantized(vae, bits=bits, group_size=64)(x).sample), array(vae(x).sample))
    assert 0 < error <= math.sqrt(8) / (2**bits - 1)


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8", "nvfp4"])
def test_every_way_to_quantise_computes(mode):
    """Some have biases for their groups, some none."""
    vae, x = wide(), pictures(WIDE)
    result = quantized(vae, mode=mode)(x).sample
    assert mx.isfinite(result).all()
    assert not mx.array_equal(result, vae.module()(x).sample)


def test_a_lora_trains_on_quantised_weights():
    module, x = quantized(wide("lora"), bits=4, group_size=32), pictures(WIDE)
    train_only_lora(module)
    before = named(module.parameters())
    losses = trained(module, optim.Adam(learning_rate=1e-2), module_loss, x, steps=6)
    assert losses[-1] < losses[0]
    changed = {name for name, p in named(module.parameters()).items() if not mx.array_equal(p, before[name])}
    assert changed == {name for name in before if "_lora" in name}


# -- the halves --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd", "flux1", "quant-conv-only", "attention-everywhere"])
def test_the_halves_compute_what_those_of_diffusers_compute(name):
    """The moments before quant_conv, and images from latents after post_quant_conv."""
    config, (theirs, _), module = CONFIGS[name], oracle(name), model(name, "mlx").module()
    x = pictures(config)
    with torch.no_grad():
        expected = theirs.encoder(torch.tensor(array(x)))
        z = expected[:, : config.latent_channels]
        images = theirs.decoder(z)
    assert relative_l2(array(module.encoder(x)), array(expected)) <= EXACT["float32"]
    assert relative_l2(array(module.decoder(OPS.from_numpy(z.numpy()))), array(images)) <= EXACT["float32"]
    children = {"encoder", "decoder"} | {conv for conv in ("quant_conv", "post_quant_conv") if getattr(theirs, conv)}
    assert module.children().keys() == children


def test_the_parts_one_after_the_other_are_the_module():
    module, x, z = tiny("mlx").module(), pictures(), noise()
    assert mx.array_equal(module.quant_conv(module.encoder(x)), module.encode(x).latent_dist.parameters)
    assert mx.array_equal(module.decoder(module.post_quant_conv(z)), module.decode(z).sample)


def test_a_part_is_put_in_the_place_of_another():
    module, other = tiny("mlx").module(), AutoencoderKL.from_config(TINY, seed=1, backend="mlx").module()
    module.decoder = other.decoder
    assert mx.array_equal(module.decode(noise()).sample, other.decoder(module.post_quant_conv(noise())))


def test_a_half_compiles_and_has_gradients():
    module, x = tiny("mlx").module(), pictures()
    assert relative_l2(array(mx.compile(module.encoder)(x)), array(module.encoder(x))) <= EXACT["float32"]
    _, grads = nn.value_and_grad(module.encoder, lambda encoder: encoder(x).square().mean())(module.encoder)
    assert named(grads).keys() == named(module.encoder.parameters()).keys()


def test_a_quantised_half_is_the_half_of_the_quantised_module():
    module, whole = wide().module(), quantized(wide(), bits=8, group_size=64)
    nn.quantize(module.encoder, bits=8, group_size=64)
    assert mx.array_equal(module.encoder(pictures(WIDE)), whole.encoder(pictures(WIDE)))


def test_half_a_model_has_one_half_and_says_so():
    weights = {name: a for name, a in tiny().weights().items() if "decoder." in name or "post_quant" in name}
    module = AutoencoderKL(TINY, weights, backend="mlx", device="cpu").module()
    assert mx.array_equal(module.decoder(module.post_quant_conv(noise())), module.decode(noise()).sample)
    for encode in (module.encode, module):
        with pytest.raises(InputError, match=r"^these weights have no encoder: load them from a file that has one\.$"):
            encode(pictures())

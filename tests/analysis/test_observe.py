"""The activations of every layer are those that forward hooks see on the modules of diffusers' model."""

from __future__ import annotations

import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from support.configs import CONFIGS, TINY, drawn_weights, images, relative_l2, sizes, uniform
from support.models import EXACT, FINEST, each_backend, model, tiny
from support.oracle import oracle

from vaespec import AutoencoderKL, InputError, parameters

LAYERS = ("ResnetBlock2D", "Attention", "Downsample2D", "Upsample2D", "Conv2d", "GroupNorm", "Linear")
"""The classes of diffusers' modules that are layers; the others hold layers, do nothing, or run several times."""


def _is_layer(name: str, part: torch.nn.Module) -> bool:
    return type(part).__name__ in LAYERS or name.endswith("conv_act")


@contextmanager
def hooks(module):
    """What forward hooks see, by the module's name, while the block runs."""
    seen = {}

    def see(name):
        return lambda _, inputs, y: seen.update({name: y.numpy()})

    layers = {name: part for name, part in module.named_modules() if _is_layer(name, part)}
    handles = [part.register_forward_hook(see(name)) for name, part in layers.items()]
    with torch.no_grad():
        yield seen
    for handle in handles:
        handle.remove()


def given(config, half: str) -> np.ndarray:
    x = images(config, *sizes(config)["tall"], 2)
    f = config.downsampling_factor
    return x if half == "encoder" else uniform("z", (2, config.latent_channels, x.shape[2] // f, x.shape[3] // f))


@pytest.mark.parametrize("half", ["encoder", "decoder"])
@pytest.mark.parametrize("name", ["sd", "flux2", "kl-f16", "attention-everywhere", "mish"])
def test_every_layer_equals_what_a_hook_on_diffusers_module_sees(name, half):
    config, (theirs, weights) = CONFIGS[name], oracle(name)
    x = given(config, half)
    with hooks(theirs) as seen:
        theirs.encode(torch.tensor(x)) if half == "encoder" else theirs.decode(torch.tensor(x))
    ours = dict(AutoencoderKL(config, weights, backend="reference").activations(x, half))
    assert seen.keys() <= ours.keys()
    assert [name for name in ours if name in seen] == list(seen)  # in the order in which hooks are called
    for layer, y in seen.items():
        assert ours[layer].dtype == np.float64
        assert relative_l2(ours[layer].reshape(y.shape), y) <= 1e-13, layer
        assert ours[layer].ndim == (3 if ".to_" in layer else 4)


def test_what_has_no_module_is_named_after_its_layer():
    vae = tiny("reference", "float64")
    names = [name for name, _ in vae.activations(uniform("z", (1, 4, 2, 2)), "decoder")]
    assert len(set(names)) == len(names)
    resnet = "decoder.mid_block.resnets.0"
    first = names.index(f"{resnet}.norm1")
    parts = ("norm1", "norm1.silu", "conv1", "norm2", "norm2.silu", "conv2")
    assert names[first : first + 7] == [*(f"{resnet}.{part}" for part in parts), resnet]
    attention = "decoder.mid_block.attentions.0"
    first = names.index(f"{attention}.group_norm")
    parts = ("group_norm", "to_q", "to_k", "to_v", "attention", "to_out.0")
    assert names[first : first + 7] == [*(f"{attention}.{part}" for part in parts), attention]
    upsampler = "decoder.up_blocks.0.upsamplers.0"
    first = names.index(f"{upsampler}.upsample_nearest2x")
    assert names[first : first + 3] == [f"{upsampler}.upsample_nearest2x", f"{upsampler}.conv", upsampler]
    assert names[-3:] == ["decoder.conv_norm_out", "decoder.conv_act", "decoder.conv_out"]


@each_backend
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_every_backend_gives_its_own_arrays_in_reference_order(backend, half):
    vae, x = model("sd", backend), given(CONFIGS["sd"], half)
    reference = dict(model_on_reference().activations(x, half))
    for name, y in vae.activations(x, half):
        assert vae._model.ops.is_array(y)
        assert str(y.dtype).endswith(FINEST[backend])
        assert relative_l2(vae.to_numpy(y), reference.pop(name)) <= EXACT[FINEST[backend]], name
    assert not reference


def model_on_reference() -> AutoencoderKL:
    return AutoencoderKL(CONFIGS["sd"], oracle("sd")[1], backend="reference")


@each_backend
def test_the_last_activation_is_the_result_with_any_processor_and_padding(backend):
    vae, z = tiny(backend), uniform("z", (1, 4, 3, 2))
    for processor in ("eager", "chunked", "fused", "lora"):
        vae.set_attn_processor(processor)
        vae.set_padding("circular" if processor == "eager" else "zeros")
        *_, (_, last) = vae.activations(z, "decode")
        expected = vae.to_numpy(vae.decode(z).sample)
        np.testing.assert_allclose(vae.to_numpy(last), expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@each_backend
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_activations_are_stored_in_the_dtype_of_the_model(backend, dtype):
    for name, y in tiny(backend, dtype).activations(uniform("z", (1, 4, 2, 2)), "decoder"):
        assert str(y.dtype).endswith(dtype), name


def test_activations_show_where_a_nan_begins():
    weights = drawn_weights({name: row.shape for name, row in parameters(TINY).items()})
    weights["decoder.mid_block.resnets.0.conv2.bias"][0] = np.nan
    vae = AutoencoderKL(TINY, weights, backend="reference")
    bad = [name for name, y in vae.activations(uniform("z", (1, 4, 2, 2)), "decoder") if not np.isfinite(y).all()]
    assert bad[0] == "decoder.mid_block.resnets.0.conv2"


def test_layers_are_computed_when_they_are_requested_and_freed_when_they_were_read():
    vae, z = tiny("numpy", "float64"), uniform("z", (1, 4, 64, 64))
    largest = max(vae.to_numpy(y).nbytes for _, y in vae.activations(z[..., :8, :8], "decoder")) * 64
    tracemalloc.start()
    held = 0
    for _, y in vae.activations(z, "decoder"):
        held += y.nbytes
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * largest < held


@pytest.mark.parametrize("half", ["both", "", "Encoder"])
def test_another_half_is_refused(half):
    with pytest.raises(InputError, match=f"half='{half}': expected encoder or decoder"):
        tiny().activations(uniform("z", (1, 4, 2, 2)), half)


def test_a_half_without_weights_and_a_wrong_input_are_refused_at_once():
    vae = tiny()
    decoder = AutoencoderKL(TINY, {n: a for n, a in vae.weights().items() if "decoder" in n or n.startswith("post_")})
    with pytest.raises(InputError, match="these weights have no encoder"):
        decoder.activations(images(TINY, 8, 8), "encoder")
    with pytest.raises(InputError, match="latents of shape"):
        vae.activations(images(TINY, 8, 8), "decoder")

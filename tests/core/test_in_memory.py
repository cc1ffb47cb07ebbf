"""A model in memory is a source: diffusers' models and pipelines, modules of ours, and weights of any framework."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from functools import cache
from types import SimpleNamespace

import accelerate
import array_api_strict
import diffusers
import jax.numpy as jnp
import mlx.core as mx
import numpy as np
import peft
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from support.configs import TINY, relative_l2, uniform
from support.models import BACKENDS
from support.oracle import weighted

import vaespec
from vaespec import AutoencoderKL, InputError, WeightMapError
from vaespec.trained import WRAPPERS

FLUX2 = TINY.replace(scaling_factor=None, patch_size=(2, 2), batch_norm_eps=1e-4)
TOLERANCE = 2e-6  # float32 results of a float32 model, as in support.models

each_backend = pytest.mark.parametrize("backend", [*BACKENDS, "reference", array_api_strict], ids=str)


@cache
def shared(config=TINY) -> torch.nn.Module:
    return weighted(config)[0].float()


def theirs(config=TINY) -> torch.nn.Module:
    """diffusers' model in float32, to be changed."""
    return copy.deepcopy(shared(config))


@cache
def latents() -> np.ndarray:
    return uniform("z", (1, 4, 4, 6)).astype(np.float32)


@cache
def their_images() -> np.ndarray:
    with torch.no_grad():
        return shared().decode(torch.tensor(latents())).sample.numpy()


def distance(vae: AutoencoderKL) -> float:
    return relative_l2(vae.to_numpy(vae.decode(latents()).sample), their_images())


# -- sources --------------------------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("source", ["model", "pipeline", "config and state_dict"])
def test_diffusers_model_and_pipeline_are_sources_on_every_backend(backend, source):
    model = shared()
    if source == "config and state_dict":
        vae = AutoencoderKL(model.config, model.state_dict(), backend=backend)
    else:
        vae = vaespec.load(model if source == "model" else SimpleNamespace(vae=model), backend=backend)
    assert vae.dtype == ("float32" if backend in BACKENDS else "float64")
    assert vae.config.scaling_factor == model.config.scaling_factor
    assert distance(vae) <= TOLERANCE


def test_a_pipeline_of_diffusers_stands_for_its_vae():
    parts = {name: None for name in ("text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor")}
    scheduler = diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)
    pipe = diffusers.StableDiffusionPipeline(vae=theirs(), scheduler=scheduler, requires_safety_checker=False, **parts)
    assert distance(vaespec.load(pipe, backend="numpy")) <= TOLERANCE


@each_backend
def test_flux2s_statistics_come_along(backend):
    model = shared(FLUX2)
    vae = vaespec.load(model, backend=backend)
    assert vae.config.class_name == type(model).__name__
    for name in ("bn.running_mean", "bn.running_var"):
        np.testing.assert_array_equal(vae.weights()[name], model.state_dict()[name].numpy())


def test_modules_and_models_of_ours_are_sources():
    vae = vaespec.load(shared(), backend="torch")
    for source in (vae, vae.module(), vaespec.load(vae, backend="mlx"), vaespec.load(vae, backend="reference")):
        assert distance(vaespec.load(source, backend="numpy")) <= TOLERANCE
    vae.fuse_qkv_projections()
    assert distance(vaespec.load(vae.module(), backend="numpy")) <= TOLERANCE


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_a_source_is_padded_as_it_was(mode):
    model = theirs()
    for conv in model.modules():
        if isinstance(conv, torch.nn.Conv2d):
            conv.padding_mode = mode
    with torch.no_grad():
        expected = model.decode(torch.tensor(latents())).sample.numpy()
    vae = vaespec.load(model, backend="torch")
    for ours in (vae, vaespec.load(vae, backend="numpy"), vaespec.load(vae.module(), backend="numpy")):
        assert ours.padding == (mode, mode)
    assert relative_l2(ours.decode(latents()).sample, expected) <= TOLERANCE
    assert relative_l2(expected, their_images()) > 1e-2
    model.decoder.conv_in.padding_mode = "zeros"
    with pytest.raises(InputError, match=f"pad with {mode} and zeros: expected one padding_mode"):
        vaespec.load(model)


# -- weights --------------------------------------------------------------------------------------------------------

FRAMEWORKS = {
    "torch": lambda t: t,
    "torch bfloat16": lambda t: t.bfloat16(),
    "torch float16": lambda t: t.half(),
    "parameters": lambda t: torch.nn.Parameter(t),
    "numpy": lambda t: t.numpy(),
    "jax": lambda t: jnp.asarray(t.numpy()),
    "jax bfloat16": lambda t: jnp.asarray(t.numpy(), jnp.bfloat16),
    "mlx": lambda t: mx.array(t.numpy()),
    "mlx bfloat16": lambda t: mx.array(t.numpy()).astype(mx.bfloat16),
    "array_api_strict": lambda t: array_api_strict.asarray(t.numpy()),
    "another device": lambda t: array_api_strict.asarray(t.numpy(), device=array_api_strict.Device("device1")),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_weights_may_be_arrays_of_any_framework_in_any_float(framework, backend):
    convert = FRAMEWORKS[framework]
    held = {name: convert(t) for name, t in shared().state_dict().items()}
    vae = AutoencoderKL(shared().config, held, backend=backend)
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(framework.split()[-1], torch.float32)
    kept = {name: t.to(dtype).float().numpy() for name, t in shared().state_dict().items()}
    assert vae.dtype == "float32"
    for name, a in vae.weights().items():
        np.testing.assert_array_equal(a, kept[name])


def test_a_float16_model_is_loaded_in_float32_unless_a_dtype_is_given():
    half = theirs().half()
    assert vaespec.load(half).dtype == "float32"
    assert vaespec.load(half, dtype=half.dtype, backend="torch").dtype == "float16"


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_of_wrappers_are_left_out(wrapper):
    held = {f"{wrapper}.{name}": t for name, t in shared().state_dict().items()}
    assert distance(AutoencoderKL(shared().config, held, backend="numpy")) <= TOLERANCE


def test_projections_that_diffusers_has_fused_are_known():
    model = theirs()
    model.fuse_qkv_projections()
    assert distance(vaespec.load(model, backend="numpy")) <= TOLERANCE


def test_half_of_the_weights_is_half_a_model():
    held = {n: t for n, t in shared().state_dict().items() if "decoder" in n or n.startswith("post_")}
    vae = AutoencoderKL(shared().config, held, backend="numpy")
    assert distance(vae) <= TOLERANCE
    with pytest.raises(InputError, match="have no encoder"):
        vae.encode(np.zeros((1, 3, 8, 8)))


def test_without_strict_other_tensors_are_left_out():
    model = theirs()
    model.register_buffer("steps", torch.ones(3))
    with pytest.raises(WeightMapError, match="unexpected  steps"):
        vaespec.load(model)
    assert distance(vaespec.load(model, strict=False, backend="numpy")) <= TOLERANCE


# -- what is refused --------------------------------------------------------------------------------------------------


def with_lora() -> torch.nn.Module:
    model = theirs()
    model.add_adapter(peft.LoraConfig(target_modules=["to_q"]))
    return model


def offloaded() -> torch.nn.Module:
    model = theirs()
    accelerate.cpu_offload(model, torch.device("cpu"))
    return model


def with_our_lora() -> torch.nn.Module:
    vae = vaespec.load(shared(), backend="torch")
    vae.set_attn_processor("lora")
    return vae.module()


def quantized() -> SimpleNamespace:
    held = {name: t.to(torch.int8) for name, t in shared().state_dict().items()}
    return SimpleNamespace(config=shared().config, state_dict=lambda: held)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (with_lora, "base_layer.weight: the model has a LoRA, which is no part of the VAE's weights: add it to them"),
        (with_our_lora, "to_q_lora.down.weight: the model has a LoRA"),
        (offloaded, r"encoder.conv_in.weight has no values, as accelerate's offloading leaves it \(device meta\)"),
        (quantized, "encoder.conv_in.weight of dtype int8: expected floats"),
        (lambda: torch.nn.Linear(2, 2), "the source is a Linear: give a path, owner/name on the hub, or a model in"),
        (lambda: 5, "the source is a int: give a path"),
        (lambda: None, "the source is a NoneType: give a path"),
        (dict, r"the source is a dict: .*; weights alone go to AutoencoderKL\(config, weights\)"),
        (lambda: SimpleNamespace(vae=None), "the source is a SimpleNamespace: give a path"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_sentence(make, words):
    with pytest.raises(InputError, match=words) as refused:
        vaespec.load(make())
    assert "\n" not in str(refused.value)


def test_a_source_whose_weights_are_in_files_meanwhile_is_refused(tmp_path):
    model, cpu = theirs(), torch.device("cpu")
    apply_group_offloading(model, cpu, cpu, offload_type="leaf_level", offload_to_disk_path=str(tmp_path))
    with pytest.raises(InputError, match=r"are in files in .*, as diffusers' group offloading leaves them: load"):
        vaespec.load(model)


def test_a_family_is_for_files_without_a_config():
    with pytest.raises(InputError, match="family='sdxl' is for files without a config: a model in memory has its own"):
        vaespec.load(shared(), family="sdxl")


@pytest.mark.parametrize("wrong", [[1.0], "text", None])
def test_a_weight_that_is_no_array_is_refused_with_its_name(wrong):
    held = {**shared().state_dict(), "quant_conv.bias": wrong}
    with pytest.raises(InputError, match=r"the weight quant_conv\.bias\S* is a \w+: expected an array"):
        AutoencoderKL(shared().config, held)


def test_diffusers_config_of_another_model_is_refused():
    with pytest.raises(vaespec.ConfigError):
        vaespec.load(SimpleNamespace(config={"_class_name": "AutoencoderTiny"}, state_dict=dict))


# -- ownership, and what is imported ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [*BACKENDS, "reference", "array_api_strict"])
def test_a_loaded_model_owns_its_weights(backend):
    model = theirs()
    vae = vaespec.load(model, backend=backend)
    ours = AutoencoderKL(model.config, model.state_dict(), backend=backend)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    assert distance(vae) == distance(ours) <= TOLERANCE


def test_a_model_in_memory_is_recognized_without_importing_a_framework():
    code = """
import sys, numpy, vaespec
vae = vaespec.load("tiny", backend="numpy")
held = type("Held", (), {"config": vae.config.to_dict(), "state_dict": lambda self: vae.weights()})()
assert vaespec.load(type("Pipe", (), {"vae": held})(), backend="reference").dtype == "float64"
assert not {"torch", "diffusers", "jax", "mlx"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"VAESPEC_BACKEND": ""})

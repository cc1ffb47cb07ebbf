"""Weights that are quantized, changed by training, or beside an adapter are refused in the name of the tool."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from support.checkpoints import PLAIN, assert_same_bits, tagged, written
from support.wild import read

from vaespec import VaespecError, WeightFileError, WeightMapError
from vaespec.weights.inspect import inspect_weights

LAYER = "decoder.mid_block.attentions.0.to_q"
KERNEL = f"{LAYER}.weight"
U8, I8, I32, F32 = np.uint8, np.int8, np.int32, np.float32


def file(*leaves: str, kernel: type | None = F32, prefix: str = "") -> dict[str, np.ndarray]:
    """The narrow VAE with these tensors of one layer besides, its kernel in this dtype, or without its kernel."""
    arrays = tagged(PLAIN)
    a = arrays.pop(KERNEL)
    if kernel is not None:
        arrays[KERNEL] = a.astype(kernel)
    return {prefix + name: a for name, a in (arrays | {f"{LAYER}.{leaf}": np.zeros(4, F32) for leaf in leaves}).items()}


# -- quantized ---------------------------------------------------------------------------------------------------

QUANTIZED = {
    "bitsandbytes, 8 bits": (file("SCB", "weight_format", kernel=I8), "with bitsandbytes"),
    "bitsandbytes, 4 bits": (
        file("weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4", kernel=U8),
        "with bitsandbytes",
    ),
    "quanto": (file("weight._data", "weight._scale", "input_scale", "output_scale", kernel=None), "with quanto"),
    "torchao": (file("_weight_qdata", "_weight_scale", kernel=None), "with torchao"),
    "torchao, earlier": (file("weight:qdata", "weight:scale", kernel=None), "with torchao"),
    "GPTQ": (file("qweight", "qzeros", "scales", "g_idx", kernel=None), "with GPTQ"),
    "AWQ": (file("qweight", "qzeros", "scales", kernel=None), "with GPTQ or AWQ"),
    "Nunchaku": (file("qweight", "wscales", "smooth_factor", "proj_down", kernel=None), "with SVDQuant"),
    "compressed-tensors": (
        file("weight_packed", "weight_scale", "weight_shape", kernel=None),
        "with compressed-tensors",
    ),
    "ComfyUI's fp8": (file("scale_weight"), "to scaled fp8"),
    "ComfyUI's fp8, later": (file("weight_scale", "input_scale", "comfy_quant"), "to scaled fp8"),
    "fp8 in blocks": (file("weight_scale_inv"), "to fp8 .* in blocks"),
    "ModelOpt": (file("weight_quantizer._amax"), "with NVIDIA ModelOpt"),
    "SDNQ": (file("scale", kernel=I8), "with SDNQ"),
    "SDNQ, asymmetric": (file("scale", "zero_point", "svd_up", "svd_down", kernel=U8), "with SDNQ"),
    "HQQ": (file("W_q", "meta", kernel=None), "with HQQ"),
    "torch.ao, dynamic": (
        file("scale", "zero_point", "_packed_params.dtype", "_packed_params._packed_params", kernel=None),
        "with torch.ao",
    ),
    "torch.ao": (file("weight_fake_quant.fake_quant_enabled"), "with torch.ao"),
}


@pytest.mark.parametrize("prefix", ["", "vae."])
@pytest.mark.parametrize("tool", QUANTIZED)
def test_quantized_weights_are_refused_with_the_name_of_the_tool(tool, prefix):
    arrays, words = QUANTIZED[tool]
    arrays = {prefix + name: a for name, a in arrays.items()}
    for strict in (True, False):
        with pytest.raises(
            WeightFileError, match=rf"^wild\S* has weights quantized {words}.*: dequantize them"
        ) as caught:
            read(arrays, strict=strict)
        assert "\n" not in str(caught.value)


def test_a_quantized_convolution_is_told_before_its_shape_is_a_riddle():
    arrays = tagged(PLAIN)
    for name in [name for name in arrays if name.endswith("conv1.weight")]:
        arrays[name] = arrays[name].reshape(len(arrays[name]), -1).astype(U8)
        arrays[name.replace("weight", "scale")] = np.zeros((4, 1), F32)
    with pytest.raises(WeightFileError, match=r"quantized with SDNQ \(\S*conv1\.scale\)"):
        read(arrays)


def test_a_quantized_model_beside_a_plain_vae_is_no_fault_of_the_vae():
    beside = ("unet.q.qweight", "unet.q.scale_weight", "unet.lora_A.default.weight", "lora_te_q.lora_down.weight")
    arrays = {f"vae.{name}": a for name, a in tagged(PLAIN).items()}
    assert_same_bits(read(arrays | {name: np.zeros(3, F32) for name in beside})[1], tagged(PLAIN))


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_weights_are_refused_and_not_cut_to_their_real_part(dtype):
    with pytest.raises(
        WeightFileError, match=rf"{KERNEL} holds complex numbers \({np.dtype(dtype)}\): save its real part"
    ):
        read(file(kernel=dtype))


def test_info_lists_a_form_as_the_problem(tmp_path):
    found = inspect_weights(written(tmp_path, QUANTIZED["quanto"][0]))
    assert (found.container, found.dialect) == ("safetensors", None)
    assert "quantized with quanto" in found.problems[0]


# -- adapters ----------------------------------------------------------------------------------------------------

UNMERGED = {
    "PEFT": file("base_layer.weight", "lora_A.default.weight", "lora_B.default.weight", kernel=None),
    "a PeftModel": file("base_layer.weight", "lora_A.a.weight", kernel=None, prefix="base_model.model."),
    "saved modules": file("modules_to_save.default.weight", "original_module.weight", kernel=None),
    "a base layer alone": file("base_layer.weight", kernel=None),
    "old diffusers": file("lora.down.weight", "lora.up.weight"),
    "LoHa": file("base_layer.weight", "hada_w1_a.default", kernel=None),
}
ALONE = {
    "kohya": ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "lora_unet_x.alpha"),
    "kohya's VAE": ("lora_vae_encoder_conv_in.lora_down.weight",),
    "PEFT": (f"base_model.model.{LAYER}.lora_A.weight", f"base_model.model.{LAYER}.lora_B.weight"),
    "PEFT of a first layer": ("base_model.model.encoder.conv_in.lora_A.weight",),
    "old diffusers": ("unet.up_blocks.1.attn1.processor.to_q_lora.down.weight",),
    "diffusers": ("transformer.blocks.0.attn.to_q.lora_A.weight",),
    "HRA": (f"base_model.model.{LAYER}.hra_u",),
    "LoKr": ("transformer.blocks.0.attn.to_q.lokr_w1",),
}


@pytest.mark.parametrize("writer", UNMERGED)
def test_an_adapter_that_is_not_merged_is_named_and_how_to_merge_it(writer):
    with pytest.raises(
        WeightMapError, match=r"^wild\S* has .* adapter that is not merged \(\S+\): merge it .*\)"
    ) as caught:
        read(UNMERGED[writer])
    assert "merge_and_unload()" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("writer", ALONE)
def test_an_adapter_without_a_model_is_named(writer):
    with pytest.raises(WeightMapError, match=r"^wild\S* is a LoRA or another adapter \(\S+\), not a VAE: load"):
        read({name: np.zeros((4, 4), F32) for name in ALONE[writer]})


# -- changed by training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (torch.nn.utils.parametrizations.weight_norm, "a parametrization"),
        (torch.nn.utils.parametrizations.orthogonal, "a parametrization"),
        (torch.nn.utils.parametrizations.spectral_norm, "a parametrization"),
        (torch.nn.utils.spectral_norm, "spectral normalization"),
        (lambda layer: torch.nn.utils.prune.l1_unstructured(layer, "weight", 0.5), "pruning"),
    ],
)
def test_weights_that_pytorch_has_changed_are_named_and_what_undoes_it(change, words):
    """The names are those that PyTorch gives."""
    layer = change(torch.nn.Linear(64, 64))
    arrays = file(kernel=None) | {f"{LAYER}.{name}": a.numpy() for name, a in layer.state_dict().items()}
    with pytest.raises(WeightMapError, match=rf"has weights changed by {words} \({LAYER}.*\): undo it with torch"):
        read(arrays)


def test_shards_of_fsdp_are_named():
    with pytest.raises(WeightMapError, match=r"changed by FSDP, .*: gather them with StateDictType\.FULL_STATE_DICT"):
        read(file("_fsdp_wrapped_module._flat_param", kernel=None))


def test_no_form_is_told_of_a_plain_file():
    assert_same_bits(read(file(), PLAIN)[1], tagged(PLAIN))
    with pytest.raises(VaespecError, match=r"missing     decoder\.mid_block\.attentions\.0\.to_q\.weight"):
        read(file(kernel=None), PLAIN)

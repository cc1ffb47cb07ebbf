"""Forms in which a file has no plain weights: quantized, changed by a tool of training, or with an adapter beside them.

Each is recognized by names alone, and refused with the name of the tool and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from vaespec.errors import WeightFileError, WeightMapError
from vaespec.weights.containers import TensorFile

# LoRA as PEFT, diffusers and kohya name it, LoHa, LoKr, OFT, (IA)3; PEFT's names of the layers that it has changed.
ADAPTER = re.compile(
    r"(?:^|[._])(?:lora_[AB]|lora_(?:embedding_[AB]|magnitude_vector|down|up|mid)|lora\.(?:down|up|alpha)"
    r"|hada_w[12]_[ab]|hada_t[12]|lokr_w[12]|lokr_t2|oft_[a-zR]+|boft_[A-Za-z]+|ia3_l|vera_lambda_[bd]|dora_scale)"
    r"(?:[._]|$)"
)
ADAPTED = re.compile(r"\.(?:base_layer|modules_to_save|original_module)\.")
MERGE = "merge it (PEFT: merge_and_unload(); diffusers: fuse_lora(), then unload_lora()), and save the model"

# Ends of names -> how the weights were quantized; the first row of which a name has the end counts.
QUANTIZED = (
    (
        r"\.(?:SCB|CB|weight_format|absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+)",
        "with bitsandbytes",
    ),
    (r"\._(?:data|scale|shift|zeropoint)", "with quanto"),
    (r"[.:]_?(?:\w+_)?qdata|\.tensor_impl\.\w+|\.layout_tensor\.\w+", "with torchao"),
    (r"\.(?:wscales|wtscale|wcscales|smooth_factor)", "with SVDQuant (Nunchaku)"),
    (r"\.g_idx", "with GPTQ"),
    (r"\.(?:qweight|qzeros)", "with GPTQ or AWQ"),
    (r"\.weight_(?:packed|shape|zero_point|g_idx)", "with compressed-tensors"),
    (r"\.weight_scale_inv", "to fp8 (float8) in blocks"),
    (
        r"\.(?:scale_weight|scale_input|comfy_quant|(?:weight|input|output)_scale(?:_2)?)",
        "to scaled fp8 (float8) or int8 (ComfyUI, ModelOpt or compressed-tensors)",
    ),
    (r"\.(?:weight|input|output)_quantizer\.\w+", "with NVIDIA ModelOpt"),
    (
        r"\.(?:_packed_params(?:\.\w+)?|activation_post_process\.\w+|fake_quant_enabled|observer_enabled|min_val|max_val)",
        "with torch.ao",
    ),
    (r"\.(?:zero_point|svd_up|svd_down)", "with SDNQ"),
    (r"\.W_q", "with HQQ"),
    (r"\.(?:codebooks|codes)", "with AQLM"),
    (r"\.weight_scales", "with EETQ"),
)

# Ends of names -> how PyTorch has changed the form of the weights, and what undoes it.
CHANGED = (
    (
        r"\.parametrizations\.\w+\.original\d*",
        "a parametrization",
        "undo it with torch.nn.utils.parametrize.remove_parametrizations",
    ),
    (r"\.weight_g", "weight normalization", "undo it with torch.nn.utils.remove_weight_norm"),
    (r"\.weight_mask", "pruning", "undo it with torch.nn.utils.prune.remove"),
    (r"\.weight_(?:orig|u)", "spectral normalization", "undo it with torch.nn.utils.remove_spectral_norm"),
    (r"\._flat_param", "FSDP, which has cut them into shards,", "gather them with StateDictType.FULL_STATE_DICT"),
)


def refuse_adapter_alone(file: TensorFile) -> None:
    """Raises WeightMapError if the names of a file without a VAE are those of an adapter, or begin as PEFT's do."""
    if adapter := next((name for name in file if ADAPTER.search(name) or name.startswith("base_model.model.")), None):
        raise WeightMapError(
            f"{file.path} is a LoRA or another adapter ({adapter}), not a VAE: load the model that it is for, {MERGE}."
        )


def refuse_other_forms(file: TensorFile, own: Collection[str]) -> None:
    """Raises an error if the names of a VAE, `own`, show that its weights are not plain.

    WeightMapError for an adapter and for weights that training changed, WeightFileError for quantized weights.
    """
    if all(map(ADAPTER.search, own)):
        refuse_adapter_alone(file)
    for pattern in (ADAPTER, ADAPTED):
        if name := next(filter(pattern.search, own), None):
            raise WeightMapError(f"{file.path} has a LoRA or another adapter that is not merged ({name}): {MERGE}.")
    for ends, how in QUANTIZED:
        if name := _first(ends, own):
            raise _quantized(file, name, how)
    for name in own:
        layer, _, leaf = name.rpartition(".")
        if leaf == "scale" and f"{layer}.weight" in file:  # Flax has scales, but no weights
            raise _quantized(file, name, "with SDNQ")
    for ends, how, undo in CHANGED:
        if name := _first(ends, own):
            raise WeightMapError(f"{file.path} has weights changed by {how} ({name}): {undo}, and save them again.")


def _quantized(file: TensorFile, name: str, how: str) -> WeightFileError:
    return WeightFileError(
        f"{file.path} has weights quantized {how} ({name}): dequantize them with the same tool and save them as "
        "floats, or take the file that they were made from."
    )


def _first(ends: str, names: Iterable[str]) -> str | None:
    return next(filter(re.compile(rf"(?:{ends})$").search, names), None)

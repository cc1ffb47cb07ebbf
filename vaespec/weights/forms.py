"""Forms in which a file has no plain weights: quantized by a tool, reparametrized, or with an adapter beside them.

Each is told from the names alone, and refused with the name of the tool and what to do.
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
MERGE = "merge it (PEFT: merge_and_unload(); diffusers: fuse_lora(), then unload_lora()) and save the model again"

# Ends of names -> the tool that quantized the weights; the first row of which a name has the end counts.
QUANTIZED = (
    (r"\.(?:SCB|CB|weight_format|absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+)", "bitsandbytes"),
    (r"\._(?:data|scale|shift|zeropoint)", "quanto"),
    (r"[.:]_?(?:\w+_)?qdata|\.tensor_impl\.\w+|\.layout_tensor\.\w+", "torchao"),
    (r"\.(?:wscales|wtscale|wcscales|smooth_factor)", "Nunchaku (SVDQuant)"),
    (r"\.g_idx", "GPTQ"),
    (r"\.(?:qweight|qzeros)", "GPTQ or AWQ"),
    (r"\.weight_(?:packed|shape|zero_point|g_idx)", "compressed-tensors"),
    (r"\.weight_scale_inv", "blocks of float8 (FineGrainedFP8)"),
    (r"\.(?:scale_weight|scale_input|comfy_quant|(?:weight|input|output)_scale(?:_2)?)", "float8 or int8 with scales"),
    (r"\.(?:weight|input|output)_quantizer\.\w+", "NVIDIA ModelOpt"),
    (r"\.(?:zero_point|svd_up|svd_down)", "SDNQ"),
    (r"\.W_q", "HQQ"),
    (r"\.(?:codebooks|codes)", "AQLM"),
    (r"\.weight_scales", "EETQ"),
    (
        r"\.(?:_packed_params\S*|activation_post_process\.\w+|fake_quant_enabled|observer_enabled|min_val|max_val)",
        "PyTorch",
    ),
)

# Ends of names -> how PyTorch has reparametrized the weights, and what undoes it.
REPARAMETRIZED = (
    (r"\.parametrizations\.\w+\.original\d*", "a parametrization", "parametrize.remove_parametrizations"),
    (r"\.weight_[gv]", "weight normalization", "torch.nn.utils.remove_weight_norm"),
    (r"\.weight_mask", "pruning", "torch.nn.utils.prune.remove"),
    (r"\.weight_(?:orig|u)", "spectral normalization", "torch.nn.utils.remove_spectral_norm"),
    (r"\._flat_param", "FSDP, which has sharded them", "StateDictType.FULL_STATE_DICT"),
)


def refuse_adapter_alone(file: TensorFile) -> None:
    """Raises WeightMapError if the names of a file without a VAE are those of an adapter."""
    if adapter := next(filter(ADAPTER.search, file), None):
        raise WeightMapError(
            f"{file.path} is a LoRA or another adapter ({adapter}), not a VAE: load the model that it changes, {MERGE}."
        )


def refuse_other_forms(file: TensorFile, own: Collection[str]) -> None:
    """Raises an error if the names of a VAE, `own`, show that its weights are not plain.

    WeightMapError for an adapter and a reparametrization, WeightFileError for quantized weights.
    """
    if not any(not ADAPTER.search(name) for name in own):
        refuse_adapter_alone(file)
    for pattern in (ADAPTER, ADAPTED):
        if name := next(filter(pattern.search, own), None):
            raise WeightMapError(f"{file.path} has a LoRA or another adapter that is not merged ({name}): {MERGE}.")
    for ends, tool in QUANTIZED:
        if name := _first(ends, own):
            raise quantized(file, name, tool)
    for name in own:
        layer, _, leaf = name.rpartition(".")
        if leaf in ("scale", "scales") and f"{layer}.weight" in file:  # Flax has scales, but no weights
            raise quantized(file, name, "SDNQ" if leaf == "scale" else "MLX in a mode other than affine")
    for ends, how, undo in REPARAMETRIZED:
        if name := _first(ends, own):
            raise WeightMapError(f"{file.path} has weights changed by {how} ({name}): save them after {undo}.")


def quantized(file: TensorFile, name: str, tool: str) -> WeightFileError:
    """The error for weights that this tool quantized; `name` shows it."""
    return WeightFileError(
        f"{file.path} has weights quantized by {tool} ({name}): dequantize them there and save them as floats, or take "
        "the file they were made from."
    )


def _first(ends: str, names: Iterable[str]) -> str | None:
    return next(filter(re.compile(rf"(?:{ends})$").search, names), None)

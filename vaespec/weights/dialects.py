"""The names that each code base gives to the tensors of this VAE, as tables.

A dialect renames the canonical (diffusers) names: `modules` rewrites the beginning of a name, `leaves` its last module,
`also` has other last modules, which are only read, and the other fields describe the files. A name that no row matches
stays. {i} and {j} are indices, {side} is encoder or decoder, and {flip_i} is the index counted from the other end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from vaespec.errors import InputError
from vaespec.layouts import HWIO, OHWI, OIHW, Layout
from vaespec.parameter import Parameter

NORMS = ("norm1", "norm2", "group_norm", "conv_norm_out")


def _table(**rows: str) -> Mapping[str, str]:
    return MappingProxyType(rows)


@dataclass(frozen=True)
class Dialect:
    """A table of names, and how files with these names are written; reading takes any layout that the shapes show.

    `weight` and `norm_weight` stand for "weight"; `attention_kernel` and `pointwise` say how linear maps and 1 × 1
    convolutions are stored, as "linear" (O, I) or "conv" (O, I, 1, 1); `suffix` chooses the container; `quantizable`
    is True if its readers know MLX's quantized linear maps.
    """

    name: str
    modules: tuple[tuple[str, str], ...] = ()
    leaves: Mapping[str, str] = field(default_factory=_table)
    also: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    weight: str = "weight"
    norm_weight: str = "weight"
    layout: Layout = OIHW
    attention_kernel: str = "linear"
    pointwise: str = "conv"
    suffix: str = ".safetensors"
    quantizable: bool = False

    def stored(self, name: str, levels: int) -> str:
        """The name in a file of this dialect; `levels` is the model's number of resolutions."""
        return self._with_kind(self._with_leaf(self._with_module(name, levels)), name)

    def others(self, name: str, levels: int) -> Iterator[str]:
        """Yields the other names that files of this dialect have for it; they are read, and never written."""
        module, kind = self._with_module(name, levels).rsplit(".", 1)
        for canonical, spellings in self.also.items():
            if module.endswith(f".{canonical}"):
                yield from (f"{module.removesuffix(canonical)}{spelling}.{kind}" for spelling in spellings)

    def axes(self, row: Parameter) -> int:
        """How many axes a kernel has in a file."""
        if row.role == "linear":
            return 4 if self.attention_kernel == "conv" else 2
        return 2 if self.pointwise == "linear" and row.shape[2:] == (1, 1) else 4

    def _with_module(self, name: str, levels: int) -> str:
        for canonical, stored in self.modules:
            if (fields := _match(canonical, name)) is not None:
                rest = name.split(".")[canonical.count(".") + 1 :]
                if "i" in fields:
                    fields["flip_i"] = str(levels - 1 - int(fields["i"]))
                return ".".join([stored.format(**fields), *rest])
        return name

    def _with_leaf(self, name: str) -> str:
        module, kind = name.rsplit(".", 1)
        for canonical, stored in self.leaves.items():
            if module.endswith(f".{canonical}"):
                return f"{module.removesuffix(canonical)}{stored}.{kind}"
        return name

    def _with_kind(self, stored: str, canonical: str) -> str:
        if not canonical.endswith(".weight"):
            return stored
        norm = canonical.split(".")[-2] in NORMS
        return stored.removesuffix("weight") + (self.norm_weight if norm else self.weight)


def _match(template: str, name: str) -> dict[str, str] | None:
    """The values of the fields in `template` if it matches the beginning of `name`, part by part; else None."""
    wanted, parts = template.split("."), name.split(".")
    if len(parts) < len(wanted):
        return None
    fields = {}
    for want, part in zip(wanted, parts, strict=False):
        if want.startswith("{"):
            fields[want.strip("{}")] = part
        elif want != part:
            return None
    return fields


DIFFUSERS = Dialect("diffusers")

# diffusers before May 2023 (<= 0.16); most Stable Diffusion 1 and 2 repositories still have it.
DIFFUSERS_DEPRECATED = Dialect(
    "diffusers-deprecated",
    leaves=MappingProxyType({"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}),
)

# CompVis latent-diffusion, sgm, SD3, FLUX.1. The decoder counts its levels from the full resolution. The scripts with
# which diffusers (0.15 and later) wrote such files left its own names in the attention.
LDM = Dialect(
    "ldm",
    modules=(
        ("encoder.down_blocks.{i}.resnets.{j}", "encoder.down.{i}.block.{j}"),
        ("encoder.down_blocks.{i}.attentions.{j}", "encoder.down.{i}.attn.{j}"),
        ("encoder.down_blocks.{i}.downsamplers.0", "encoder.down.{i}.downsample"),
        ("decoder.up_blocks.{i}.resnets.{j}", "decoder.up.{flip_i}.block.{j}"),
        ("decoder.up_blocks.{i}.attentions.{j}", "decoder.up.{flip_i}.attn.{j}"),
        ("decoder.up_blocks.{i}.upsamplers.0", "decoder.up.{flip_i}.upsample"),
        ("{side}.mid_block.resnets.0", "{side}.mid.block_1"),
        ("{side}.mid_block.attentions.0", "{side}.mid.attn_1"),
        ("{side}.mid_block.resnets.1", "{side}.mid.block_2"),
        ("{side}.conv_norm_out", "{side}.norm_out"),
    ),
    leaves=MappingProxyType(
        {
            "conv_shortcut": "nin_shortcut",
            "group_norm": "norm",
            "to_q": "q",
            "to_k": "k",
            "to_v": "v",
            "to_out.0": "proj_out",
        }
    ),
    also=MappingProxyType(
        {
            "group_norm": ("group_norm",),
            "to_q": ("to_q", "query"),
            "to_k": ("to_k", "key"),
            "to_v": ("to_v", "value"),
            "to_out.0": ("to_out.0", "to_out", "proj_attn"),
        }
    ),
    attention_kernel="conv",
)

# Black Forest Labs: LDM's names, and FLUX.2's quant convolutions inside the halves they belong to.
BFL = replace(
    LDM,
    name="bfl",
    modules=(*LDM.modules, ("quant_conv", "encoder.quant_conv"), ("post_quant_conv", "decoder.post_quant_conv")),
)

# FlaxAutoencoderKL (diffusers < 0.40): a path in a tree, with an underscore before each index.
FLAX = Dialect(
    "flax",
    modules=(
        ("encoder.down_blocks.{i}.resnets.{j}", "encoder.down_blocks_{i}.resnets_{j}"),
        ("encoder.down_blocks.{i}.attentions.{j}", "encoder.down_blocks_{i}.attentions_{j}"),
        ("encoder.down_blocks.{i}.downsamplers.0", "encoder.down_blocks_{i}.downsamplers_0"),
        ("decoder.up_blocks.{i}.resnets.{j}", "decoder.up_blocks_{i}.resnets_{j}"),
        ("decoder.up_blocks.{i}.attentions.{j}", "decoder.up_blocks_{i}.attentions_{j}"),
        ("decoder.up_blocks.{i}.upsamplers.0", "decoder.up_blocks_{i}.upsamplers_0"),
        ("{side}.mid_block.resnets.{j}", "{side}.mid_block.resnets_{j}"),
        ("{side}.mid_block.attentions.0", "{side}.mid_block.attentions_0"),
    ),
    leaves=DIFFUSERS_DEPRECATED.leaves,
    weight="kernel",
    norm_weight="scale",
    layout=HWIO,
    suffix=".msgpack",
)

# The Stable Diffusion of mlx-examples.
MLX = Dialect(
    "mlx",
    modules=(
        ("encoder.down_blocks.{i}.downsamplers.0.conv", "encoder.down_blocks.{i}.downsample"),
        ("decoder.up_blocks.{i}.upsamplers.0.conv", "decoder.up_blocks.{i}.upsample"),
        ("{side}.mid_block.resnets.0", "{side}.mid_blocks.0"),
        ("{side}.mid_block.attentions.0", "{side}.mid_blocks.1"),
        ("{side}.mid_block.resnets.1", "{side}.mid_blocks.2"),
        ("quant_conv", "quant_proj"),
        ("post_quant_conv", "post_quant_proj"),
    ),
    leaves=MappingProxyType({"to_q": "query_proj", "to_k": "key_proj", "to_v": "value_proj", "to_out.0": "out_proj"}),
    layout=OHWI,
    pointwise="linear",
)

# DiffusionKit's SD3: MLX's names, but the decoder's levels in LDM's order.
DIFFUSIONKIT = replace(
    MLX,
    name="diffusionkit",
    modules=(
        ("decoder.up_blocks.{i}.upsamplers.0.conv", "decoder.up_blocks.{flip_i}.upsample"),
        ("decoder.up_blocks.{i}", "decoder.up_blocks.{flip_i}"),
        *MLX.modules,
    ),
)

# The FLUX.1 of mlx-examples: LDM's names around MLX's kernels.
MLX_FLUX = replace(LDM, name="mlx-flux", layout=OHWI, attention_kernel="linear", pointwise="linear")

MFLUX = Dialect(
    "mflux",
    leaves=MappingProxyType(
        {"conv_in": "conv_in.conv2d", "conv_out": "conv_out.conv2d", "conv_norm_out": "conv_norm_out.norm"}
    ),
    layout=OHWI,
    quantizable=True,
)

MFLUX_FLUX2 = Dialect("mflux-flux2", leaves=_table(**{"to_out.0": "to_out"}), layout=OHWI, quantizable=True)

DIALECTS = {
    dialect.name: dialect
    for dialect in (DIFFUSERS, DIFFUSERS_DEPRECATED, LDM, BFL, FLAX, MLX, MLX_FLUX, DIFFUSIONKIT, MFLUX, MFLUX_FLUX2)
}


def known_dialect(name: str) -> Dialect:
    """The dialect of that name. Raises InputError for an unknown one, listing all."""
    if name not in DIALECTS:
        raise InputError(f"unknown dialect {name!r}: choose one of {', '.join(DIALECTS)}.")
    return DIALECTS[name]


# The first parts of the model's own names, in any dialect.
OWN = ("encoder", "decoder", "quant_conv", "post_quant_conv", "quant_proj", "post_quant_proj", "bn")

# The first part of the names of LDM's moving average.
EMA = "model_ema"

# Parts of names that only other autoencoders have -> that autoencoder.
OTHER_MODELS = {
    "quantize.embedding.": "a VQ model (it has a codebook)",
    "decoder.condition_encoder.": "an AsymmetricAutoencoderKL",
    "decoder.time_conv_out.": "a temporal (video) decoder",
    ".time_stack.": "a temporal (video) decoder",
    ".time_mix_conv.": "a temporal (video) decoder",
    ".temporal_res_block.": "a temporal (video) decoder",
    "encoder.layers.": "an AutoencoderTiny (TAESD)",
    ".to_qkv.": "an autoencoder with linear attention",
}

# Beginnings of names in files without a VAE -> what has such names.
OTHER_FILES = (
    (re.compile(r"model\.diffusion_model\."), "a diffusion model whose VAE was left out"),
    (
        re.compile(r"(?:input|double|single|joint|transformer)_blocks\."),
        "a diffusion model",
    ),
    (re.compile(r"(?:text_model|cond_stage_model|conditioner|text_encoders)\."), "a text encoder"),
    (re.compile(r"(?:\w*(?:en|de)coder\.)?\d+\.conv\.\d+\.|taesd_"), "an AutoencoderTiny (TAESD)"),
)

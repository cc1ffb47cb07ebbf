"""What each world calls the tensors of this VAE, as tables.

A dialect renames the canonical (diffusers) names: `modules` rewrites the beginning of a name, `leaves` the part before
its last one; what no row matches keeps its name. {i} and {j} are indices, {side} is encoder or decoder, and {flip_i}
is the index counted from the other end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Dialect:
    """`attention_kernel`: how the attention's linear maps are stored, as "linear" (O, I) or "conv" (O, I, 1, 1)."""

    name: str
    modules: tuple[tuple[str, str], ...] = ()
    leaves: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    attention_kernel: str = "linear"

    def stored(self, name: str, levels: int) -> str:
        """The name in a file of this dialect; `levels` is the model's number of resolutions."""
        for canonical, stored in self.modules:
            if (fields := _match(canonical, name)) is not None:
                rest = name.split(".")[canonical.count(".") + 1 :]
                if "i" in fields:
                    fields["flip_i"] = str(levels - 1 - int(fields["i"]))
                name = ".".join([stored.format(**fields), *rest])
                break
        for canonical, stored in self.leaves.items():
            module, kind = name.rsplit(".", 1)
            if module.endswith(f".{canonical}"):
                return f"{module.removesuffix(canonical)}{stored}.{kind}"
        return name


def _match(template: str, name: str) -> dict[str, str] | None:
    """The fields of `template` for which it is the beginning of `name`, part by part; None if it is not."""
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

# Before May 2023 (diffusers <= 0.16); most Stable Diffusion 1 and 2 repositories still ship it.
DIFFUSERS_DEPRECATED = Dialect(
    "diffusers-deprecated",
    leaves=MappingProxyType({"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}),
)

# CompVis latent-diffusion, sgm, SD3, FLUX.1. The decoder counts its levels from the full resolution.
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
    attention_kernel="conv",
)

DIALECTS = {dialect.name: dialect for dialect in (DIFFUSERS, DIFFUSERS_DEPRECATED, LDM)}

# Names beside the model's own that training code leaves in a file; they say nothing about the model.
IGNORED = ("loss.", "model_ema.decay", "model_ema.num_updates", "colorize")

# Names that only other autoencoders have, and which ones.
OTHER_MODELS = {
    "quantize.embedding.": "a VQ model (it has a codebook)",
    "decoder.condition_encoder.": "an AsymmetricAutoencoderKL",
    "decoder.time_conv_out.": "a temporal (video) decoder",
    "encoder.layers.": "an AutoencoderTiny (TAESD)",
}

"""The config that a file shows by its names and shapes, and what the rest of a full checkpoint adds to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vaespec import families
from vaespec.config import AutoencoderConfig
from vaespec.errors import ConfigError, WeightMapError
from vaespec.weights.locate import Located

# The fields of the structure that each half shows.
SHOWN = {
    "encoder": ("in_channels", "down_block_types", "block_out_channels", "use_quant_conv"),
    "decoder": ("out_channels", "up_block_types", "decoder_widths", "use_post_quant_conv"),
}
SHOWN_BY_BOTH = ("layers_per_block", "latent_channels", "mid_block_add_attention", "patch_size")


def infer_config(here: Located, family: str | None = None) -> AutoencoderConfig:
    """The config that the names and shapes show; scaling from `family`, else from the rest of a full checkpoint.

    Where neither tells, scaling_factor is None. Group count and activation are those of every published family (32,
    SiLU); the half that is not there is taken to mirror the other. Raises WeightMapError if the file cannot be an
    AutoencoderKL, or is not of the family it is said to be.
    """
    structure = infer_structure(here)
    told = families.matching(structure, here.file, shown(here))
    scale = stored_scale(here)
    if family is None:
        agreed = (families.scaling(told) or {}) | families.sample_size(told)
        config = families.config(told[0]) if len(told) == 1 else structure.replace(**agreed)
        return config if scale is None else config.replace(**dict.fromkeys(families.SCALING), scaling_factor=scale)
    config = families.config(family)
    if wrong := [*differences(config, structure, here), *_scale_difference(config, here)]:
        raise WeightMapError(f"{here.file.path} is not of the family {family!r}: {', '.join(wrong)}.")
    if told and family not in told:
        markers = sorted({marker for name in told for marker in families.evidence(name, here.file)})
        raise WeightMapError(
            f"{here.file.path} is not of the family {family!r} but of {' or '.join(told)}, by its other names "
            f"({', '.join(markers)}): leave out family=."
        )
    return config


def shown(here: Located) -> tuple[str, ...]:
    """The fields that the halves of the file show."""
    return sum((SHOWN[half] for half in here.halves), SHOWN_BY_BOTH)


def stored_scale(here: Located) -> float | None:
    """The scaling factor that latent diffusion's training (`scale_by_std`) leaves as a tensor of its own."""
    if "scale_factor" not in here.file or here.file.shape("scale_factor") not in ((), (1,)):
        return None
    return float(here.file["scale_factor"].item())


def contradictions(config: AutoencoderConfig, here: Located) -> list[str]:
    """Where the config and the file's names and shapes disagree, field by field, in words."""
    try:
        return [*differences(config, infer_structure(here), here), *_scale_difference(config, here)]
    except WeightMapError:
        return []


def differences(asked: AutoencoderConfig, found: AutoencoderConfig, here: Located) -> list[str]:
    """The same for two configs."""
    fields = (field for field in families.STRUCTURE if field in shown(here))
    pairs = ((field, getattr(asked, field), getattr(found, field)) for field in fields)
    return [f"{field} would be {wanted!r}, the file has {there!r}" for field, wanted, there in pairs if wanted != there]


def _scale_difference(config: AutoencoderConfig, here: Located) -> list[str]:
    scale, wanted = stored_scale(here), config.scaling_factor
    if scale is None or wanted is None or abs(scale - wanted) <= 1e-4 * abs(scale):
        return []
    return [f"scaling_factor would be {wanted!r}, the file has {scale!r}"]


@dataclass(frozen=True)
class Half:
    """What an encoder or a decoder shows; levels from the full resolution down."""

    channels: int
    widths: tuple[int, ...]
    attends: tuple[str, ...]
    layers_per_block: int
    latent_channels: int
    quant: bool
    middle: bool


def infer_structure(here: Located) -> AutoencoderConfig:
    """What names and shapes show; WeightMapError for what no config can say."""
    found = {half: READ[half](here) for half in here.halves}
    encoder, decoder = found.get("encoder") or found["decoder"], found.get("decoder") or found["encoder"]
    fields = {
        "in_channels": encoder.channels,
        "out_channels": decoder.channels,
        "down_block_types": [f"{attn}DownEncoderBlock2D" for attn in encoder.attends],
        "up_block_types": [f"{attn}UpDecoderBlock2D" for attn in decoder.attends[::-1]],
        "block_out_channels": encoder.widths,
        "decoder_block_out_channels": None if decoder.widths == encoder.widths else decoder.widths,
        "layers_per_block": encoder.layers_per_block,
        "latent_channels": decoder.latent_channels,
        "use_quant_conv": encoder.quant,
        "use_post_quant_conv": decoder.quant,
        "mid_block_add_attention": encoder.middle,
        "scaling_factor": None,
        "patch_size": _patch_size(here, decoder.latent_channels),
    }
    try:
        return AutoencoderConfig.from_dict(fields)
    except ConfigError as error:
        told = str(error).rstrip(".")
        raise WeightMapError(
            f"{here.file.path} does not show its whole config ({told}): put it in a folder with its config.json."
        ) from None


def _encoder(here: Located) -> Half:
    moments = here.kernel("encoder.conv_out.weight")[0]
    if moments % 2:
        raise WeightMapError(
            f"{here.file.path} is not an AutoencoderKL: its encoder makes {moments} channels, which are not a mean and "
            "a log-variance for each latent one."
        )
    return Half(
        channels=here.kernel("encoder.conv_in.weight")[1],
        widths=_widths(here, "encoder.down_blocks"),
        attends=_attends(here, "encoder.down_blocks"),
        layers_per_block=here.count("encoder.down_blocks.0.resnets.{}.norm1"),
        latent_channels=moments // 2,
        quant=here.has_module("quant_conv"),
        middle=here.has_module("encoder.mid_block.attentions.0.to_q"),
    )


def _decoder(here: Located) -> Half:
    latent_channels = here.kernel("decoder.conv_in.weight")[1]
    embedded = here.kernel("post_quant_conv.weight")[1] if here.has("post_quant_conv.weight") else latent_channels
    if embedded != latent_channels:
        raise WeightMapError(
            f"{here.file.path} has embed_dim {embedded} and z_channels {latent_channels}: those of an AutoencoderKL "
            "are equal."
        )
    return Half(
        channels=here.kernel("decoder.conv_out.weight")[0],
        widths=_widths(here, "decoder.up_blocks")[::-1],
        attends=_attends(here, "decoder.up_blocks")[::-1],
        layers_per_block=here.count("decoder.up_blocks.0.resnets.{}.norm1") - 1,
        latent_channels=latent_channels,
        quant=here.has_module("post_quant_conv"),
        middle=here.has_module("decoder.mid_block.attentions.0.to_q"),
    )


READ = {"encoder": _encoder, "decoder": _decoder}


def _widths(here: Located, blocks: str) -> tuple[int, ...]:
    return tuple(here.kernel(f"{blocks}.{i}.resnets.0.conv1.weight")[0] for i in range(here.levels))


def _attends(here: Located, blocks: str) -> tuple[str, ...]:
    return tuple("Attn" if here.has_module(f"{blocks}.{i}.attentions.0.to_q") else "" for i in range(here.levels))


def _patch_size(here: Located, latent_channels: int) -> tuple[int, int] | None:
    """Of FLUX.2, whose batch-norm has a mean for each number of a square patch."""
    if not here.has("bn.running_mean"):
        return None
    side = round((math.prod(here.file.shape(here.stored("bn.running_mean"))) / latent_channels) ** 0.5)
    return side, side

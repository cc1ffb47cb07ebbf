"""The config of a file: stored in its metadata, or inferred from names, shapes and the rest of a full checkpoint."""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from dataclasses import dataclass

from vaespec import families, strict_json
from vaespec.config import AutoencoderConfig
from vaespec.errors import ConfigError, WeightFileError, WeightMapError
from vaespec.escaping import escaped
from vaespec.weights.locate import VaeInFile

LOG = logging.getLogger("vaespec")

CONFIG_KEY = "vaespec.config"  # in the metadata of a file

# The fields of the structure that are visible in the weights: in one half, or in either.
FIELDS = {
    "encoder": ("in_channels", "down_block_types", "block_out_channels", "use_quant_conv"),
    "decoder": ("out_channels", "up_block_types", "decoder_widths", "use_post_quant_conv"),
}
FIELDS_OF_BOTH = ("layers_per_block", "latent_channels", "mid_block_add_attention", "patch_size")


def choose_config(
    vae: VaeInFile, config: AutoencoderConfig | None, family: str | None
) -> tuple[AutoencoderConfig, list[str]]:
    """The given config, the file's own unless a family is given, or the inferred one; and what contradicts it.

    Raises WeightFileError for a damaged config in the file, WeightMapError if the inferred one is impossible.
    """
    config = config or (stored_config(vae) if family is None else None)
    if config is None:
        return infer_config(vae, family), []  # which agrees with the file: it comes from there
    return config, contradictions(config, vae)


def stored_config(vae: VaeInFile) -> AutoencoderConfig | None:
    """The config in a file's metadata, as `save_file` writes it; None if there is none."""
    if (text := vae.file.metadata.get(CONFIG_KEY)) is None:
        return None
    try:
        return AutoencoderConfig.from_dict(strict_json.parse(text))
    except ValueError as error:  # anybody may have written it
        reason = str(error).rstrip(".")
        raise WeightFileError(
            f"{vae.file.path} has a damaged config in its metadata ({reason}): give config= or family=."
        ) from None


def infer_config(vae: VaeInFile, family: str | None = None) -> AutoencoderConfig:
    """The config that names and shapes show; scaling from `family`, else from the rest of a full checkpoint.

    scaling_factor is None if neither has it. Group count and activation are those of every published family (32,
    SiLU); a half that is missing is assumed to mirror the other. Raises WeightMapError if the file cannot be an
    AutoencoderKL, or cannot be of the given family.
    """
    structure = infer_structure(vae)
    candidates = families.matching(structure, vae.file, visible_fields(vae))
    if family is None:
        _warn_of_quant_conv(vae, structure, candidates)
        agreed = (families.scaling(candidates) or {}) | families.sample_size(candidates) | families.patches(candidates)
        config = families.config(candidates[0]) if len(candidates) == 1 else structure.replace(**agreed)
        scale = stored_scale(vae)
        scaling = dict.fromkeys(families.SCALING) | {"scaling_factor": scale}
        return config if scale is None else config.replace(**scaling)
    family = families.spelled(family)
    config = families.config(family)
    if wrong := [*_differences(config, structure, vae), *_scale_difference(config, vae)]:
        raise WeightMapError(
            f"{vae.file.path} is not of the family {family!r}: {', '.join(wrong)}; `vaespec info` shows the families "
            "that it may be of."
        )
    if candidates and family not in candidates:
        markers = sorted({marker for name in candidates for marker in families.evidence(name, vae.file)})
        raise WeightMapError(
            f"{vae.file.path} is not of the family {family!r} but of {' or '.join(candidates)}, by its other names "
            f"({', '.join(markers)}): leave out family=."
        )
    return config


def _warn_of_quant_conv(vae: VaeInFile, structure: AutoencoderConfig, candidates: tuple[str, ...]) -> None:
    """Warns of a half without a quant convolution that every family of its other layers has: it was saved without."""
    name = "quant_conv" if "encoder" in vae.halves else "post_quant_conv"
    if len(vae.halves) < len(FIELDS) and not candidates and not structure[f"use_{name}"]:
        shown = tuple(field for field in visible_fields(vae) if field != f"use_{name}")
        if others := families.matching(structure, vae.file, shown):
            LOG.warning(
                "%s has no %s, which %s have: if it is of one of them, add it, since without it the results are wrong.",
                escaped(str(vae.file.path)),
                name,
                ", ".join(others),
            )


def visible_fields(vae: VaeInFile) -> tuple[str, ...]:
    """The fields of the structure that are visible in the halves of the file.

    The patches of FLUX.2 are visible in its statistics, which a half alone may lack.
    """
    fields = sum((FIELDS[half] for half in vae.halves), FIELDS_OF_BOTH)
    hidden = len(vae.halves) < len(FIELDS) and not vae.has("bn.running_mean")
    return tuple(field for field in fields if field != "patch_size") if hidden else fields


def stored_scale(vae: VaeInFile) -> float | None:
    """The scaling factor that latent diffusion's training (`scale_by_std`) stores as a tensor of its own.

    Raises WeightMapError if it is no number by which latents can be multiplied and divided.
    """
    if "scale_factor" not in vae.file or vae.file.shape("scale_factor") not in ((), (1,)):
        return None
    scale = vae.file["scale_factor"].item()
    if isinstance(scale, bool) or not isinstance(scale, int | float) or scale == 0 or not math.isfinite(scale):
        raise WeightMapError(
            f"{vae.file.path} has the scale_factor {scale}: give config=, with the right scaling_factor."
        )
    return float(scale)


def contradictions(config: AutoencoderConfig, vae: VaeInFile) -> list[str]:
    """One line per field in which the config and the file's names and shapes disagree; none if they show no config."""
    found = []
    with suppress(WeightMapError):
        found += _differences(config, infer_structure(vae), vae)
    with suppress(WeightMapError):
        found += _scale_difference(config, vae)
    return found


def _differences(config: AutoencoderConfig, structure: AutoencoderConfig, vae: VaeInFile) -> list[str]:
    fields = (field for field in families.STRUCTURE if field in visible_fields(vae))
    pairs = ((field, getattr(config, field), getattr(structure, field)) for field in fields)
    return [f"{field} would be {wanted!r}, the file has {shown!r}" for field, wanted, shown in pairs if wanted != shown]


def _scale_difference(config: AutoencoderConfig, vae: VaeInFile) -> list[str]:
    scale, wanted = stored_scale(vae), config.scaling_factor
    if scale is None or wanted is None or abs(scale - wanted) <= 1e-4 * abs(scale):
        return []
    return [f"scaling_factor would be {wanted!r}, the file has {scale!r}"]


@dataclass(frozen=True)
class HalfStructure:
    """The structure of an encoder or a decoder; levels from the full resolution down."""

    channels: int
    widths: tuple[int, ...]
    attends: tuple[str, ...]
    layers_per_block: int
    latent_channels: int
    quant: bool
    middle: bool


def infer_structure(vae: VaeInFile) -> AutoencoderConfig:
    """The structural fields that names and shapes show. Raises WeightMapError if they describe no AutoencoderKL."""
    halves = {half: READ[half](vae) for half in vae.halves}
    encoder, decoder = halves.get("encoder") or halves["decoder"], halves.get("decoder") or halves["encoder"]
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
        "patch_size": _patch_size(vae, decoder.latent_channels),
    }
    try:
        return AutoencoderConfig.from_dict(fields)
    except ConfigError as error:
        reason = str(error).rstrip(".")
        raise WeightMapError(
            f"{vae.file.path} does not show its whole config ({reason}): put it in a folder with its config.json, "
            "or give config= in Python."
        ) from None


def _encoder(vae: VaeInFile) -> HalfStructure:
    moments = vae.kernel("encoder.conv_out.weight")[0]
    if moments % 2:
        raise WeightMapError(
            f"{vae.file.path} is not an AutoencoderKL: its encoder has {moments} output channels, not a mean and a "
            "log-variance for each latent channel."
        )
    return HalfStructure(
        channels=vae.kernel("encoder.conv_in.weight")[1],
        widths=_widths(vae, "encoder.down_blocks"),
        attends=_attends(vae, "encoder.down_blocks"),
        layers_per_block=vae.count("encoder.down_blocks.0.resnets.{}.norm1"),
        latent_channels=moments // 2,
        quant=vae.has_module("quant_conv"),
        middle=vae.has_module("encoder.mid_block.attentions.0.to_q"),
    )


def _decoder(vae: VaeInFile) -> HalfStructure:
    latent_channels = vae.kernel("decoder.conv_in.weight")[1]
    embedded = vae.kernel("post_quant_conv.weight")[1] if vae.has("post_quant_conv.weight") else latent_channels
    if embedded != latent_channels:
        raise WeightMapError(
            f"{vae.file.path} has embed_dim {embedded} and z_channels {latent_channels}: in an AutoencoderKL they are "
            "equal."
        )
    return HalfStructure(
        channels=vae.kernel("decoder.conv_out.weight")[0],
        widths=_widths(vae, "decoder.up_blocks")[::-1],
        attends=_attends(vae, "decoder.up_blocks")[::-1],
        layers_per_block=vae.count("decoder.up_blocks.0.resnets.{}.norm1") - 1,
        latent_channels=latent_channels,
        quant=vae.has_module("post_quant_conv"),
        middle=vae.has_module("decoder.mid_block.attentions.0.to_q"),
    )


READ = {"encoder": _encoder, "decoder": _decoder}


def _widths(vae: VaeInFile, blocks: str) -> tuple[int, ...]:
    return tuple(vae.kernel(f"{blocks}.{i}.resnets.0.conv1.weight")[0] for i in range(vae.levels))


def _attends(vae: VaeInFile, blocks: str) -> tuple[str, ...]:
    return tuple("Attn" if vae.has_module(f"{blocks}.{i}.attentions.0.to_q") else "" for i in range(vae.levels))


def _patch_size(vae: VaeInFile, latent_channels: int) -> tuple[int, int] | None:
    """The side of FLUX.2's square patches: its batch-norm has a mean for each number of a patch."""
    if not vae.has("bn.running_mean"):
        return None
    side = round((math.prod(vae.file.shape(vae.stored("bn.running_mean"))) / latent_channels) ** 0.5)
    return side, side

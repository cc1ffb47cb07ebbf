"""What a file says about itself: where the VAE is in it, in which dialect, and of which structure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from vaespec import families
from vaespec.config import AutoencoderConfig
from vaespec.errors import ConfigError, WeightMapError
from vaespec.weights.containers import SafetensorsFile
from vaespec.weights.dialects import DIALECTS, OTHER_MODELS, Dialect


@dataclass(frozen=True)
class Located:
    """The VAE in a file: canonical names in, shapes out. `levels` is its number of resolutions."""

    file: SafetensorsFile
    prefix: str
    dialect: Dialect
    levels: int

    def stored(self, name: str) -> str:
        """The name in the file."""
        return self.prefix + self.dialect.stored(name, self.levels)

    def has(self, name: str) -> bool:
        """Whether the file has the tensor of this canonical name."""
        return self.stored(name) in self.file

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape in the file."""
        if not self.has(name):
            raise WeightMapError(f"{self.file.path} has no {self.stored(name)}, which every AutoencoderKL has.")
        return self.file.shape(self.stored(name))

    def others(self) -> list[str]:
        """The names in the file that are not below the prefix: the rest of a full checkpoint."""
        return [key for key in self.file if not key.startswith(self.prefix)]


def locate(file: SafetensorsFile) -> Located:
    """Find prefix, dialect and levels by names alone. WeightMapError where there is no VAE, or more than one."""
    prefixes = {key.removesuffix("encoder.conv_in.weight") for key in file if key.endswith("encoder.conv_in.weight")}
    for marker, model in OTHER_MODELS.items():
        if any(key.startswith(prefix + marker) for key in file for prefix in prefixes or {""}):
            raise WeightMapError(f"{file.path} is not an AutoencoderKL but {model}.")
    if not prefixes:
        raise WeightMapError(f"no VAE in {file.path}: none of its {len(file)} names ends in encoder.conv_in.weight.")
    if len(prefixes) > 1:
        raise WeightMapError(f"{len(prefixes)} VAEs in {file.path}, under the prefixes {sorted(prefixes)}: split them.")
    (prefix,) = prefixes
    dialect = max(DIALECTS.values(), key=lambda dialect: _recognised(file, prefix, dialect))
    here = Located(file, prefix, dialect, levels=0)
    return Located(file, prefix, dialect, _counted(here, "encoder.down_blocks.{}.resnets.0.norm1.weight"))


def _recognised(file: SafetensorsFile, prefix: str, dialect: Dialect) -> int:
    """How many of the names that tell dialects apart are in the file; the first dialect wins a tie."""
    probes = ("encoder.mid_block.resnets.0.norm1.weight", "encoder.mid_block.attentions.0.to_q.weight")
    return sum(prefix + dialect.stored(probe, levels=1) in file for probe in probes)


def _counted(here: Located, template: str) -> int:
    """How many consecutive indices, from 0, the file has in this name."""
    return next(i for i in count() if not here.has(template.format(i)))


def infer_config(here: Located, family: str | None = None) -> AutoencoderConfig:
    """The config that the names and shapes show; scaling from `family`, else from the rest of a full checkpoint.

    Where neither tells, scaling_factor is None. Group count and activation are those of every published family (32,
    SiLU). Raises WeightMapError if the file cannot be an AutoencoderKL, or is not of the family it is said to be.
    """
    asked = None if family is None else families.config(family)
    structure = _infer_structure(here)
    if asked is not None:
        if family not in families.matching(structure):
            wrong = ", ".join(_differences(asked, structure))
            raise WeightMapError(f"{here.file.path} is not of the family {family!r}: {wrong}.")
        return asked
    told = families.matching(structure, here.others())
    if len(told) == 1:
        return families.config(told[0])
    return structure.replace(**(families.scaling(told) or {}))


def _infer_structure(here: Located) -> AutoencoderConfig:
    levels = range(here.levels)
    attends = ["Attn" if here.has(f"encoder.down_blocks.{i}.attentions.0.to_q.weight") else "" for i in levels]
    ups = ["Attn" if here.has(f"decoder.up_blocks.{i}.attentions.0.to_q.weight") else "" for i in levels]
    widths = [here.shape(f"encoder.down_blocks.{i}.resnets.0.conv1.weight")[0] for i in levels]
    decoder_widths = [here.shape(f"decoder.up_blocks.{i}.resnets.0.conv1.weight")[0] for i in levels][::-1]
    latent_channels = here.shape("decoder.conv_in.weight")[1]
    patchified = here.has("bn.running_mean")
    side = round((here.shape("bn.running_mean")[0] / latent_channels) ** 0.5) if patchified else 0
    try:
        return AutoencoderConfig.from_dict(
            {
                "in_channels": here.shape("encoder.conv_in.weight")[1],
                "out_channels": here.shape("decoder.conv_out.weight")[0],
                "down_block_types": [f"{attn}DownEncoderBlock2D" for attn in attends],
                "up_block_types": [f"{attn}UpDecoderBlock2D" for attn in ups],
                "block_out_channels": widths,
                "decoder_block_out_channels": None if decoder_widths == widths else decoder_widths,
                "layers_per_block": _counted(here, "encoder.down_blocks.0.resnets.{}.norm1.weight"),
                "latent_channels": latent_channels,
                "use_quant_conv": here.has("quant_conv.weight"),
                "use_post_quant_conv": here.has("post_quant_conv.weight"),
                "mid_block_add_attention": here.has("encoder.mid_block.attentions.0.to_q.weight"),
                "scaling_factor": None,
                "patch_size": (side, side) if patchified else None,
            }
        )
    except ConfigError as error:
        told = str(error).rstrip(".")
        raise WeightMapError(
            f"{here.file.path} does not show its whole config ({told}): put it in a folder with its config.json."
        ) from None


def contradictions(config: AutoencoderConfig, here: Located) -> list[str]:
    """Where the config and the file's names and shapes disagree, field by field, in words."""
    try:
        return _differences(config, _infer_structure(here))
    except WeightMapError:
        return []


def _differences(asked: AutoencoderConfig, found: AutoencoderConfig) -> list[str]:
    pairs = ((field, getattr(asked, field), getattr(found, field)) for field in families.STRUCTURE)
    return [f"{field} would be {wanted!r}, the file has {shown!r}" for field, wanted, shown in pairs if wanted != shown]

"""AutoencoderConfig: the content of a diffusers `config.json` about the VAE, checked once and then immutable."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaespec.errors import ConfigError

DOWN_BLOCKS = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
UP_BLOCKS = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
ACTIVATIONS = {"silu": "silu", "swish": "silu", "mish": "mish", "gelu": "gelu", "relu": "relu"}

# AutoencoderKLFlux2 has class defaults of its own, and lacks some fields of AutoencoderKL (scaling_factor, ...).
FLUX2_ONLY = ("decoder_block_out_channels", "batch_norm_eps", "batch_norm_momentum", "patch_size")
FLUX2_LACKS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
UNFINISHED = "_unfinished"  # the key of a config.json whose weights were being replaced
# Autoencoders of diffusers with other layers. Any other class counts as AutoencoderKL.
OTHER_CLASSES = (
    "AsymmetricAutoencoderKL",
    "AutoencoderDC",
    "AutoencoderKLTemporalDecoder",
    "AutoencoderTiny",
    "ConsistencyDecoderVAE",
    "VQModel",
)
FLUX2_DEFAULTS: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 32,
    "sample_size": 1024,
    "scaling_factor": None,
    "batch_norm_eps": 1e-4,
    "batch_norm_momentum": 0.1,
    "patch_size": (2, 2),
}


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The fields of diffusers 0.42's AutoencoderKL and AutoencoderKLFlux2, with AutoencoderKL's defaults.

    A field that an older `config.json` lacks gets its default: the value that models of that age used.
    If `patch_size` is set, the model is FLUX.2: latents are patchified and batch-normalized instead of scaled.
    If `scaling_factor` is None, it is unknown: raw latents work, and methods that need the scale raise an error.

    Raises ConfigError if no model can be built from the fields.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    decoder_block_out_channels: tuple[int, ...] | None = None
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, int] = 32
    scaling_factor: float | None = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    batch_norm_eps: float | None = None
    batch_norm_momentum: float | None = None
    patch_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, list):  # JSON has no tuples
                object.__setattr__(self, name, tuple(value))
        _check_types(self)
        _check_blocks(self)
        _check_latents(self)

    # -- values that follow from the fields ------------------------------------------------------------

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.block_out_channels)

    @property
    def downsampling_factor(self) -> int:
        """f: an image of (H, W) px has latents of (H // f, W // f)."""
        return int(2 ** (self.levels - 1))

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels per level of the decoder, full resolution first."""
        return self.decoder_block_out_channels or self.block_out_channels

    @property
    def activation(self) -> str:
        """The activation's canonical name: silu, mish, gelu or relu."""
        return ACTIVATIONS[self.act_fn.lower()]

    @property
    def class_name(self) -> str:
        """The diffusers class this config belongs to."""
        return "AutoencoderKL" if self.patch_size is None else "AutoencoderKLFlux2"

    # -- to and from config.json -----------------------------------------------------------------------

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AutoencoderConfig:
        """Reads the content of a diffusers `config.json` of any age.

        Keys that start with "_" are notes, not fields. The model is FLUX.2 if `_class_name` says so, or if `patch_size`
        or `batch_norm_eps` is set. Raises ConfigError for an unknown field, because it could change the result.
        """
        if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
            raise ConfigError(f"a config is a mapping of field names to values, got {values!r:.60}.")
        if UNFINISHED in values:
            raise ConfigError("this config is of a model that was not saved to its end: save the model again.")
        class_name = values.get("_class_name")
        if class_name in OTHER_CLASSES:
            raise ConfigError(f"_class_name={class_name!r}: expected AutoencoderKL or AutoencoderKLFlux2.")
        given = {name: value for name, value in values.items() if not name.startswith("_")}
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(given.keys() - known):
            raise ConfigError(f"unknown config fields {unknown}: AutoencoderKL has {sorted(known)}.")
        is_flux2 = class_name == "AutoencoderKLFlux2" or given.get("patch_size") or given.get("batch_norm_eps")
        return cls(**(FLUX2_DEFAULTS if is_flux2 else {}) | given)

    @classmethod
    def from_json(cls, path: str | Path) -> AutoencoderConfig:
        """Reads a `config.json`; a ConfigError names the file and the mistake."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"no config file at {path}.") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path} cannot be read as JSON ({error}).") from None
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The content of the `config.json` that diffusers' class of the same name reads."""
        absent = FLUX2_LACKS if self.patch_size else FLUX2_ONLY
        fields = {name: value for name, value in vars(self).items() if name not in absent or value is not None}
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        return {"_class_name": self.class_name, **listed}

    def replace(self, **changes: Any) -> AutoencoderConfig:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)


# -- validation: each function checks one group of fields --------------------------------------------------


def _error(name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"{name}={value!r}: expected {expected}.")


def _positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_types(config: AutoencoderConfig) -> None:
    for name in ("in_channels", "out_channels", "layers_per_block", "latent_channels", "norm_num_groups"):
        if not _positive_int(value := getattr(config, name)):
            raise _error(name, value, "a positive integer")
    for name in ("force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"):
        if not isinstance(value := getattr(config, name), bool):
            raise _error(name, value, "true or false")
    for name in ("block_out_channels", "decoder_block_out_channels"):
        value = getattr(config, name)
        if value is None and name == "decoder_block_out_channels":
            continue
        if not isinstance(value, tuple) or not value or not all(map(_positive_int, value)):
            raise _error(name, value, "one positive width per level")
    sizes = config.sample_size if isinstance(config.sample_size, tuple) else (config.sample_size,)
    if not all(map(_positive_int, sizes)) or len(sizes) not in (1, 2):
        raise _error("sample_size", config.sample_size, "a positive integer or a pair of them")
    if not isinstance(config.act_fn, str) or config.act_fn.lower() not in ACTIVATIONS:
        raise _error("act_fn", config.act_fn, f"one of {', '.join(ACTIVATIONS)}")


def _check_blocks(config: AutoencoderConfig) -> None:
    for name, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        types = getattr(config, name)
        if not isinstance(types, tuple):
            raise _error(name, types, "a list of block types")
        for block in types:
            if block not in known:
                raise _error(name, block, f"{' or '.join(known)} for every level")
    for name in ("down_block_types", "up_block_types", "decoder_block_out_channels"):
        entries = getattr(config, name)
        if entries is not None and len(entries) != config.levels:
            raise ConfigError(
                f"{name} has {len(entries)} entries but block_out_channels has {config.levels}: give one each."
            )
    for name in ("block_out_channels", "decoder_block_out_channels"):
        for width in getattr(config, name) or ():
            if width % config.norm_num_groups:
                raise ConfigError(
                    f"norm_num_groups={config.norm_num_groups} does not divide {width} in {name}="
                    f"{getattr(config, name)}: choose a common divisor of all widths."
                )


def _check_latents(config: AutoencoderConfig) -> None:
    for name in ("scaling_factor", "shift_factor"):
        value = getattr(config, name)
        if value is not None and not _finite(value):
            raise _error(name, value, "a finite number or null")
    if config.scaling_factor == 0:
        raise _error("scaling_factor", 0, "a number other than 0, since latents are divided by it")
    for name in ("latents_mean", "latents_std"):
        value = getattr(config, name)
        if value is None:
            continue
        if not isinstance(value, tuple) or not all(map(_finite, value)) or len(value) != config.latent_channels:
            raise _error(name, value, f"one number per latent channel ({config.latent_channels})")
        if name == "latents_std" and min(value) <= 0:
            raise _error(name, value, "positive numbers")
    if (config.latents_mean is None) != (config.latents_std is None):
        raise ConfigError("latents_mean and latents_std belong together: give both or neither.")
    _check_batch_norm(config)


def _check_batch_norm(config: AutoencoderConfig) -> None:
    patch = config.patch_size
    if patch is None:
        for name in ("batch_norm_eps", "batch_norm_momentum"):
            if getattr(config, name) is not None:
                raise _error(name, getattr(config, name), "null unless patch_size is set (FLUX.2)")
        return
    if not (isinstance(patch, tuple) and len(patch) == 2 and all(map(_positive_int, patch))):
        raise _error("patch_size", patch, "a pair of positive integers")
    if not (_finite(config.batch_norm_eps) and (config.batch_norm_eps or 0) > 0):
        raise _error("batch_norm_eps", config.batch_norm_eps, "a positive number, since patch_size is set")
    momentum = config.batch_norm_momentum
    if momentum is not None and not (_finite(momentum) and 0 <= momentum <= 1):
        raise _error("batch_norm_momentum", momentum, "a number from 0 to 1")
    if config.scaling_factor is not None:
        raise _error(
            "scaling_factor", config.scaling_factor, "null if patch_size is set, since FLUX.2 scales by batch norm"
        )

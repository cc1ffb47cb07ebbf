"""AutoencoderConfig: the content of a diffusers `config.json` about the VAE, checked once and then immutable."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vaespec import config_checks, strict_json
from vaespec.config_checks import ACTIVATIONS, brief, plain
from vaespec.errors import ConfigError, UnknownFieldError

# AutoencoderKLFlux2 has class defaults of its own, and lacks some fields of AutoencoderKL (scaling_factor, ...).
FLUX2_ONLY = ("decoder_block_out_channels", "batch_norm_eps", "batch_norm_momentum", "patch_size")
FLUX2_LACKS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
FORCE_UPCAST = "force_upcast"
UNFINISHED = "_unfinished"  # the key of a config.json whose weights were being replaced
CLASSES = ("AutoencoderKL", "AutoencoderKLFlux2", "FlaxAutoencoderKL")  # all other classes have other layers
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
# What a null means where it is accepted. diffusers 0.42 builds no layer for it, since Python takes it for false;
# sample_size changes no layer, and gets its default.
NULLS: dict[str, Any] = {
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": False,
    "sample_size": 32,
}
# What others write beside the fields, and what changes no result whatever its value: the state of diffusers' EMAModel,
# settings of a run, facts about the file.
NOTES = (
    *("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"),
    *("use_slicing", "use_tiling", "torch_dtype", "dtype", "architectures", "transformers_version"),
)
# Fields that AutoencoderKL lacks, with the value that says what it does anyway.
IMPLIED = {"dropout": 0, "double_z": True}


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(Mapping[str, Any]):
    """The fields of diffusers 0.42's AutoencoderKL and AutoencoderKLFlux2, with AutoencoderKL's defaults.

    As in diffusers, it is also a mapping of the fields that its class has: `config["scaling_factor"]`, `config.get`.

    A field that an older `config.json` lacks gets its default: the value that models of that age used.
    If `patch_size` is set, the model is FLUX.2: latents are patchified and batch-normalized instead of scaled.
    If `scaling_factor` is None, it is unknown: raw latents work, and methods that need the scale raise an error.
    `force_upcast` says how a float16 model computes: True, in float32; False, in float16; None, which stands for a
    config that does not say, in float16, and in float32 if that overflows (see `vaespec.upcast`).

    NumPy's numbers and arrays count as Python's. Raises ConfigError if no model can be built from the fields, or if it
    would be far larger than any that exists (see `vaespec.config_checks`).
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
    force_upcast: bool | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    batch_norm_eps: float | None = None
    batch_norm_momentum: float | None = None
    patch_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, plain(value))  # JSON has no tuples
        config_checks.require_types(vars(self))
        config_checks.require_blocks(vars(self))
        config_checks.require_latents(vars(self))

    # -- as diffusers' config, which is a dict -----------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        if name not in self._names():
            raise UnknownFieldError(f"config[{brief(name)}]: {self.class_name} has {', '.join(self._names())}.")
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def _names(self) -> list[str]:
        """The fields of this config's class; those of the other class only if they are set."""
        absent = FLUX2_LACKS if self.patch_size else FLUX2_ONLY
        return [name for name, value in vars(self).items() if name not in absent or value is not None]

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

        Keys that start with "_" are notes, not fields, and so are NOTES and nulls. The model is FLUX.2 if `_class_name`
        says so, or if `patch_size` or `batch_norm_eps` is set. Raises ConfigError for another model's class, and for an
        unknown field, because either could change the result.
        """
        if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
            is_path = isinstance(values, str | os.PathLike)
            hint = "; read a config.json with AutoencoderConfig.from_json(path)" if is_path else ""
            raise ConfigError(f"a config is a mapping of field names to values, got {brief(values)}{hint}.")
        if isinstance(values, cls):
            return values
        if UNFINISHED in values:
            raise ConfigError("this config is of a model that was not saved to its end: save the model again.")
        is_flux2 = "AutoencoderKLFlux2" in _classes(values)
        given = {name: plain(value) for name, value in values.items() if not name.startswith("_")}
        if _defaulted(FORCE_UPCAST, values):  # nobody said so: diffusers filled it in
            given[FORCE_UPCAST] = None
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(name for name in given.keys() - known if not _is_note(name, given[name])):
            raise ConfigError(_quantized(given) or _unknown(unknown, known))
        is_flux2 = is_flux2 or any(given.get(name) is not None for name in ("patch_size", "batch_norm_eps"))
        defaults = FLUX2_DEFAULTS if is_flux2 else {}
        nulls = {name: defaults.get(name, value) for name, value in NULLS.items() if given.get(name, name) is None}
        return cls(**defaults | {name: value for name, value in given.items() if name in known} | nulls)

    @classmethod
    def from_json(cls, path: str | Path) -> AutoencoderConfig:
        """Reads a `config.json`; a ConfigError names the file and the mistake."""
        path = Path(path)
        try:
            return cls.from_dict(strict_json.read(path))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        except FileNotFoundError:
            if path.is_symlink():
                target = os.readlink(path)
                raise ConfigError(f"{path} is a link to {target}, which does not exist: restore that file.") from None
            raise ConfigError(f"no config file at {path}: give the path of a config.json, or its content.") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error).rstrip(".")
            raise ConfigError(f"{path} cannot be read as JSON ({reason}): write it again.") from None

    def to_dict(self) -> dict[str, Any]:
        """The content of the `config.json` that diffusers' class of the same name reads.

        Without `force_upcast` if it is None; diffusers reads that as its default, True.
        """
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in self.items()}
        if self.force_upcast is None:
            del listed[FORCE_UPCAST]
        return {"_class_name": self.class_name, **listed}

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked again. Raises ConfigError for an unknown field."""
        if unknown := sorted(changes.keys() - vars(self).keys()):
            raise ConfigError(_unknown(unknown, vars(self)))
        return dataclasses.replace(self, **changes)


def _classes(values: Mapping[str, Any]) -> list[str]:
    """The model classes that a config names. Raises ConfigError unless all are of this model."""
    named: list[str] = []
    for field in ("_class_name", "architectures"):
        value = plain(values.get(field))
        names = value if isinstance(value, tuple) else () if value is None else (value,)
        if not all(isinstance(name, str) and name in CLASSES for name in names):
            raise ConfigError(
                f"{field}={brief(value)}: expected AutoencoderKL or AutoencoderKLFlux2, since another class has other "
                "layers; if only its name differs, write AutoencoderKL there."
            )
        named += names
    return named


def _defaulted(field: str, values: Mapping[str, Any]) -> bool:
    """Whether a config in diffusers' memory says that a field got the default of its class."""
    names = plain(values.get("_use_default_values"))
    return isinstance(names, tuple) and any(isinstance(name, str) and name == field for name in names)


def _is_note(name: str, value: object) -> bool:
    """Whether a field that AutoencoderKL lacks can be left out with the same results."""
    implied = name in IMPLIED and isinstance(value, int | float) and value == IMPLIED[name]
    return value is None or name in NOTES or implied


def _quantized(given: Mapping[str, Any]) -> str | None:
    """Why a config of quantized weights is refused, with the name of the tool; None for any other config."""
    if (settings := given.get("quantization_config")) is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    tool = f" with {brief(method)}" if method is not None else ""
    return (
        f"quantization_config: the weights of this model are quantized{tool}: dequantize them with the same tool and "
        "save them as floats, or give those of the plain model."
    )


def _unknown(unknown: list[str], known: Iterable[str]) -> str:
    listed = [name if len(name) <= 40 else f"{name[:40]}..." for name in unknown[:5]]
    more = f" and {len(unknown) - 5:,} more" if len(unknown) > 5 else ""
    return f"unknown config fields {listed}{more}: AutoencoderKL has {sorted(known)}."

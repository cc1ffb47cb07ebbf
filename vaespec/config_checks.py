"""What a config may hold: the kind of each field, and bounds that leave room for any model that could exist."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vaespec.errors import ConfigError

DOWN_BLOCKS = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
UP_BLOCKS = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
ACTIVATIONS = {"silu": "silu", "swish": "silu", "mish": "mish", "gelu": "gelu", "relu": "relu"}

# The largest published models have 6 levels, 3 resnets in each, 1024 channels, 128 latent channels and 2 x 2 patches.
MAX_LEVELS = 32
MAX_LAYERS = 32  # of a level
MAX_CHANNELS = 16_384
MAX_PATCH = 64
MAX_SIZE = 1 << 20  # px
MAX_NUMBER = float(np.finfo(np.float32).max)  # latents are scaled in float32 or wider
MIN_DIVISOR = float(np.finfo(np.float32).tiny)  # what is smaller counts as 0
INTEGERS = {
    "in_channels": MAX_CHANNELS,
    "out_channels": MAX_CHANNELS,
    "layers_per_block": MAX_LAYERS,
    "latent_channels": MAX_CHANNELS,
    "norm_num_groups": MAX_CHANNELS,
}


class _Brief(reprlib.Repr):
    """Writes a value of any kind and size, and never fails."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxtuple, self.maxlist, self.maxstring, self.maxother = 2, 8, 8, 60, 60

    def repr_int(self, x: int, level: int) -> str:
        """The digits; Python refuses to write out a number of more than 4,300."""
        return repr(x) if abs(x) < 10**40 else f"a number of {int(x.bit_length() * 0.30103) + 1:,} digits"


def brief(value: object) -> str:
    """A value of any kind as Python writes it, in one line of 200 characters at most."""
    line = " ".join(_Brief().repr(value).split())
    return line if len(line) <= 200 else f"{line[:197]}..."


def plain(value: Any) -> Any:
    """A value as Python's own: a list as a tuple, NumPy's numbers and arrays as numbers and tuples."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    return tuple(map(_number, value)) if isinstance(value, list | tuple) else value


def _number(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic) else value


def require_types(fields: Mapping[str, Any]) -> None:
    """Raises ConfigError for a field of another kind, or out of bounds."""
    for name, most in INTEGERS.items():
        if not _is_count(fields[name], most):
            raise _error(name, fields[name], f"a positive integer, {most:,} at most")
    for name in ("force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"):
        if not isinstance(fields[name], bool) and not (name == "force_upcast" and fields[name] is None):
            raise _error(name, fields[name], "true or false")
    for name in ("block_out_channels", "decoder_block_out_channels"):
        if fields[name] is not None or name == "block_out_channels":
            _require_widths(name, fields[name])
    size = fields["sample_size"]
    sides = size if isinstance(size, tuple) else (size,)
    if len(sides) not in (1, 2) or not all(_is_count(side, MAX_SIZE) for side in sides):
        raise _error("sample_size", size, f"a positive integer or a pair of them, {MAX_SIZE:,} px at most")
    act_fn = fields["act_fn"]
    if not isinstance(act_fn, str) or act_fn.lower() not in ACTIVATIONS:
        raise _error("act_fn", act_fn, f"one of {', '.join(ACTIVATIONS)}")


def require_blocks(fields: Mapping[str, Any]) -> None:
    """Raises ConfigError for an unknown block, fields of different lengths, or widths that groups do not divide."""
    levels, groups = len(fields["block_out_channels"]), fields["norm_num_groups"]
    for name, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        types = fields[name]
        if not isinstance(types, tuple):
            raise _error(name, types, "a list of block types")
        for block in types:
            if not isinstance(block, str) or block not in known:
                raise _error(name, block, f"{' or '.join(known)} for every level")
    for name in ("down_block_types", "up_block_types", "decoder_block_out_channels"):
        entries = fields[name]
        if entries is not None and len(entries) != levels:
            raise ConfigError(
                f"{name} has {len(entries):,} entries but block_out_channels has {levels}: give one each."
            )
    for name in ("block_out_channels", "decoder_block_out_channels"):
        for width in fields[name] or ():
            if width % groups:
                raise ConfigError(
                    f"norm_num_groups={groups} does not divide {width} in {name}={brief(fields[name])}: choose a "
                    "common divisor of all widths."
                )


def require_latents(fields: Mapping[str, Any]) -> None:
    """Raises ConfigError if latents cannot be scaled so."""
    for name in ("scaling_factor", "shift_factor"):
        if fields[name] is not None and not _is_number(fields[name]):
            raise _error(name, fields[name], "a finite number or null")
    scale = fields["scaling_factor"]
    if scale is not None and abs(scale) < MIN_DIVISOR:
        raise _error("scaling_factor", scale, "a number other than 0, since latents are divided by it")
    for name in ("latents_mean", "latents_std"):
        value, channels = fields[name], fields["latent_channels"]
        if value is None:
            continue
        if not isinstance(value, tuple) or len(value) != channels or not all(map(_is_number, value)):
            raise _error(name, value, f"one number per latent channel ({channels})")
        if name == "latents_std" and min(value) < MIN_DIVISOR:
            raise _error(name, value, "positive numbers")
    if (fields["latents_mean"] is None) != (fields["latents_std"] is None):
        raise ConfigError("latents_mean and latents_std belong together: give both or neither.")
    _require_batch_norm(fields)


def _require_widths(name: str, widths: Any) -> None:
    if not isinstance(widths, tuple) or not widths or not all(_is_count(width, MAX_CHANNELS) for width in widths):
        raise _error(name, widths, f"one positive width per level, {MAX_CHANNELS:,} at most")
    if len(widths) > MAX_LEVELS:
        raise ConfigError(f"{name} has {len(widths):,} levels: expected {MAX_LEVELS} at most.")


def _require_batch_norm(fields: Mapping[str, Any]) -> None:
    patch = fields["patch_size"]
    if patch is None:
        for name in ("batch_norm_eps", "batch_norm_momentum"):
            if fields[name] is not None:
                raise _error(name, fields[name], "null unless patch_size is set (FLUX.2)")
        return
    if not (isinstance(patch, tuple) and len(patch) == 2 and all(_is_count(side, MAX_PATCH) for side in patch)):
        raise _error("patch_size", patch, f"a pair of positive integers, {MAX_PATCH} at most")
    eps, momentum = fields["batch_norm_eps"], fields["batch_norm_momentum"]
    if not (_is_number(eps) and eps >= MIN_DIVISOR):
        raise _error("batch_norm_eps", eps, "a positive number, since patch_size is set")
    if momentum is not None and not (_is_number(momentum) and 0 <= momentum <= 1):
        raise _error("batch_norm_momentum", momentum, "a number from 0 to 1")
    scale = fields["scaling_factor"]
    if scale is not None:
        raise _error("scaling_factor", scale, "null if patch_size is set, since FLUX.2 scales by batch norm")


def _error(name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"{name}={brief(value)}: expected {expected}.")


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most


def _is_number(value: object) -> bool:
    """Whether this is a finite number; NaN is in no order, and an integer may be too large for a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER

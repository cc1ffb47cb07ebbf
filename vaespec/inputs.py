"""Checks of what users give to a model: arrays of any framework or pictures -> ValidatedInput, or InputError."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from vaespec import pictures
from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError, NonFiniteError, VaespecError
from vaespec.ops import Array
from vaespec.reference import ReferenceOps


class ValidatedInput:
    """Validated images or latents. Indexing converts that part to an array of the backend.

    `source[...]` is the whole, `source[:, :, start:stop, :]` a band. Raises NonFiniteError for NaN or infinity in it.
    """

    def __init__(self, x: Any, name: str, ops: ReferenceOps) -> None:
        self.x, self.name, self.ops = x, name, ops
        self.shape: tuple[int, int, int, int] = tuple(x.shape)

    def __getitem__(self, index: Any) -> Array:
        part, origin = self.x[index], [0] * 4 if index is ... else [axis.start or 0 for axis in index]
        _require_finite(part, self.name, self.ops, origin)
        converted = self.ops.from_numpy(part) if isinstance(part, np.ndarray) else self.ops.cast(part)
        _require_finite(converted, f"{self.name}, as {self.ops.dtype},", self.ops, origin)
        return converted

    def items(self) -> list[ValidatedInput]:
        """Each item of the batch, as a batch of one."""
        if self.shape[0] == 1:
            return [self]
        return [ValidatedInput(self.x[i : i + 1, ...], self.name, self.ops) for i in range(self.shape[0])]


def as_images(x: Any, config: AutoencoderConfig, ops: ReferenceOps) -> ValidatedInput:
    """Images (B, in_channels, H, W) in [-1, 1], at least f × f px: floats of any framework, or Pillow pictures.

    Pictures become grey, RGB or RGBA for a model of 1, 3 or 4 channels. Raises InputError for a wrong rank, channel
    count, size or dtype.
    """
    if pictures.is_picture(x) or (isinstance(x, list | tuple) and x and all(map(pictures.is_picture, x))):
        channels = config.in_channels if config.in_channels in pictures.CHANNELS else 3  # which is refused below
        x = pictures.Pixels(x if isinstance(x, list | tuple) else [x], channels)
    return _as_map(x, "images", config.in_channels, config.downsampling_factor, ops)


def as_latents(z: Any, config: AutoencoderConfig, ops: ReferenceOps) -> ValidatedInput:
    """Latents (B, latent_channels, h, w), at least 1 × 1. Raises InputError as `as_images` does."""
    return _as_map(z, "latents", config.latent_channels, 1, ops)


def as_diffusion_latents(z: Any, config: AutoencoderConfig, ops: ReferenceOps) -> ValidatedInput:
    """Latents of the diffusion model: FLUX.2's hold p₁ × p₂ patches in their channels. Raises as `as_images` does."""
    p1, p2 = config.patch_size or (1, 1)
    return _as_map(z, "latents", config.latent_channels * p1 * p2, 1, ops)


def _as_map(x: Any, name: str, channels: int, smallest: int, ops: ReferenceOps) -> ValidatedInput:
    dtype = getattr(x, "dtype", None)
    x = as_array(x, name, ops)
    shape = tuple(x.shape)
    if len(shape) != 4:
        raise InputError(f"{name} of shape {shape}: expected (B, {channels}, height, width).")
    if not is_floating(x):
        hint = " in [-1, 1]; for 0..255 use x / 127.5 - 1" if name == "images" else ""
        raise InputError(f"{name} of dtype {dtype or x.dtype}: expected floats{hint}.")
    if shape[0] == 0:
        raise InputError(f"{name} of shape {shape}: the batch is empty.")
    if shape[1] != channels:
        hint = " (channels come before height and width)" if shape[3] == channels else ""
        raise InputError(f"{name} of shape {shape}: expected {channels} channels, got {shape[1]}{hint}.")
    if min(shape[2:]) < smallest:
        raise InputError(f"{name} of {shape[2]} x {shape[3]}: expected at least {smallest} x {smallest}.")
    return ValidatedInput(x, name, ops)


def _require_finite(x: Array, name: str, ops: ReferenceOps, origin: Sequence[int]) -> None:
    """Raises NonFiniteError with the count of bad numbers and the index of the first; x begins at `origin`."""
    if ops.all_finite(x):
        return
    raise NonFiniteError(f"the {name} hold {_not_finite(x, ops, origin)}: give finite numbers.")


def require_finite_scaled(z: Array, done: str, ops: ReferenceOps) -> None:
    """Raises NonFiniteError if latents of finite numbers are not finite after they were `done`, such as "unscaled"."""
    if not ops.all_finite(z):
        raise NonFiniteError(
            f"the latents, {done} in {ops.dtype}, hold {_not_finite(z, ops)}: check the latents and the scale in the "
            "config, or take a wider dtype."
        )


def _not_finite(x: Array, ops: ReferenceOps, origin: Sequence[int] = (0, 0, 0, 0)) -> str:
    """How many numbers are NaN or infinite, and the index of the first, in words; x begins at `origin`."""
    bad = np.argwhere(~np.isfinite(x if isinstance(x, np.ndarray) else ops.to_numpy(x)))
    place = ", ".join(map(str, bad[0] + origin))
    numbers = "NaN or an infinite number" if len(bad) == 1 else f"{len(bad)} NaN or infinite numbers, the first"
    return f"{numbers} at index ({place})"


def as_array(x: Any, name: str, ops: ReferenceOps) -> Array:
    """x as an array of NumPy or the backend: x itself, else without a copy (DLPack), else through NumPy."""
    if isinstance(x, np.ma.MaskedArray):
        raise InputError(f"{name} are a masked array: give all of its numbers, as x.filled(0) does.")
    if isinstance(x, np.ndarray | pictures.Pixels) or ops.is_array(x):
        return x
    if not hasattr(x, "__dlpack__") and not hasattr(x, "__array__"):
        raise InputError(f"{name} are a {type(x).__name__}: expected an array (B, C, height, width) of floats.")
    with suppress(Exception):  # strides, dtypes or devices that are not supported; frameworks raise different errors
        return ops.from_dlpack(x)
    try:
        if str(getattr(x, "dtype", "")).endswith("bfloat16"):  # NumPy has no such type; float32 holds every value
            x = array_namespace(x).astype(x, array_namespace(x).float32)
        return np.asarray(x)
    except (MemoryError, VaespecError):
        raise
    except Exception as error:  # any framework's, or the object's own
        place = f" on {x.device}" if hasattr(x, "device") else ""
        reason = str(error).rstrip(".")
        raise InputError(f"{name}{place} cannot be read as an array ({reason}): move or convert them first.") from None


def is_floating(x: Array) -> bool:
    """Whether x, of any framework, holds floats, bfloat16 among them."""
    if isinstance(x.dtype, np.dtype):
        return np.issubdtype(x.dtype, np.floating) or x.dtype.name == "bfloat16"  # ml_dtypes' type is not np.floating
    return bool(array_namespace(x).isdtype(x.dtype, "real floating"))

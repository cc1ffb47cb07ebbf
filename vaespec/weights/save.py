"""Writing weights: the inverse of reading, through the same tables. Files appear whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vaespec.architecture import parameters
from vaespec.config import AutoencoderConfig
from vaespec.errors import NonFiniteError, WeightFileError
from vaespec.files import written_whole
from vaespec.parameters import Parameter, storage_dtype
from vaespec.weights.dialects import DIALECTS, DIFFUSERS, Dialect


def save_folder(
    folder: Path, config: AutoencoderConfig, weights: Mapping[str, np.ndarray], dtype: str | None = None
) -> None:
    """config.json and diffusion_pytorch_model.safetensors, as diffusers' from_pretrained reads them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightFileError(f"cannot make the folder {folder} ({error.strerror}).") from None
    save_file(folder / "diffusion_pytorch_model.safetensors", config, weights, dtype=dtype)
    with written_whole(folder / "config.json") as part:
        part.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")


def save_file(
    path: Path,
    config: AutoencoderConfig,
    weights: Mapping[str, np.ndarray],
    *,
    dialect: str = DIFFUSERS.name,
    prefix: str = "",
    dtype: str | None = None,
) -> None:
    """One .safetensors file in a dialect's names. NonFiniteError names a tensor that does not fit the dtype."""
    from safetensors import SafetensorError  # imported here: only who writes a file waits for it
    from safetensors.numpy import save_file as write_safetensors

    words = DIALECTS[dialect]
    stored = {
        prefix + words.stored(name, config.levels): _as_stored(weights[name], name, parameter, words, dtype)
        for name, parameter in parameters(config).items()
    }
    try:
        with written_whole(path) as part:
            write_safetensors(stored, part, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:  # the latter for a full disk
        raise WeightFileError(f"cannot write {path} ({error}).") from None


def _as_stored(a: np.ndarray, name: str, parameter: Parameter, dialect: Dialect, dtype: str | None) -> np.ndarray:
    """Contiguous, in the dtype asked for, in the dialect's shape."""
    if parameter.shape == ():
        return a.astype(np.int64)  # the batch counter of FLUX.2, an integer in every dtype
    if dtype is not None:
        with np.errstate(over="ignore"):
            cast = a.astype(storage_dtype(dtype))
        if not np.isfinite(cast).all() and np.isfinite(a).all():
            raise NonFiniteError(f"{name} does not fit {dtype}: its largest magnitude is {np.abs(a).max():g}.")
        a = cast
    if parameter.role == "linear" and dialect.attention_kernel == "conv":
        a = a[:, :, None, None]
    return np.ascontiguousarray(a)

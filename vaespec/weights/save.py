"""Writing weights: the inverse of reading, through the same tables. Files appear whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from vaespec.architecture import halves_among, parameters
from vaespec.config import AutoencoderConfig
from vaespec.dtypes import storage_dtype
from vaespec.errors import InputError, NonFiniteError, WeightFileError
from vaespec.files import written_whole
from vaespec.parameter import Parameter
from vaespec.weights.containers import quantise, write_msgpack, write_safetensors
from vaespec.weights.containers.quantised import GROUP
from vaespec.weights.dialects import DIALECTS, DIFFUSERS, Dialect, known_dialect
from vaespec.weights.layouts import to_stored
from vaespec.weights.load import CONFIG_KEY

METADATA = {"format": "pt"}  # as diffusers writes it
WEIGHTS = "diffusion_pytorch_model.safetensors"  # in a folder
SUFFIX = {"safetensors": ".safetensors", "msgpack": ".msgpack"}
"""What a file of each container is called."""


def save_folder(
    folder: Path, config: AutoencoderConfig, weights: Mapping[str, np.ndarray], dtype: str | None = None
) -> None:
    """config.json and diffusion_pytorch_model.safetensors, as diffusers' from_pretrained reads them.

    Neither takes its place before both are written. WeightFileError for a folder that has an index of shards: diffusers
    would go on reading those.
    """
    tensors = _stored(config, weights, DIFFUSERS, "", dtype)
    if folder.is_file():
        raise WeightFileError(f"{folder} is a file: give a folder to write config.json and the weights to.")
    if (index := folder / f"{WEIGHTS}.index.json").exists():
        raise WeightFileError(f"{index} is there, whose shards diffusers would read instead: name another folder.")
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (
            written_whole(folder / WEIGHTS) as weights_part,
            written_whole(folder / "config.json") as config_part,
        ):
            write_safetensors(weights_part, tensors, METADATA)
            config_part.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")


def save_file(
    path: Path,
    config: AutoencoderConfig,
    weights: Mapping[str, np.ndarray],
    *,
    dialect: str = DIFFUSERS.name,
    prefix: str = "",
    dtype: str | None = None,
    bits: int | None = None,
) -> None:
    """One file in a dialect's names, layout and container: Flax's is a .msgpack, the others' a .safetensors.

    A .safetensors has the config in its metadata, for what weights do not show. With `bits` (4 or 8), the linear maps
    are quantised as MLX does, for mflux.

    InputError for an unknown dialect or another suffix, NonFiniteError for a tensor that does not fit the dtype.
    """
    written = known_dialect(dialect)
    if path.suffix != (suffix := SUFFIX[written.container]):
        raise InputError(f"{path}: a file in the names of {dialect} is a {suffix}; name it so.")
    tensors = _stored(config, weights, written, prefix, dtype)
    if bits is not None:
        tensors = _quantised(tensors, written, bits)
    with _told(path), written_whole(path) as part:
        if written.container == "msgpack":
            write_msgpack(part, tensors)
        else:
            write_safetensors(part, tensors, METADATA | {CONFIG_KEY: json.dumps(config.to_dict())})


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the system says against writing, as WeightFileError."""
    try:
        yield
    except OSError as error:
        raise WeightFileError(f"cannot write {error.filename2 or path} ({error.strerror or error}).") from None


def _stored(
    config: AutoencoderConfig, weights: Mapping[str, np.ndarray], dialect: Dialect, prefix: str, dtype: str | None
) -> dict[str, np.ndarray]:
    """The tensors of a file: the dialect's names, shapes and layout."""
    table = parameters(config, halves_among(weights, config))
    return {
        prefix + dialect.stored(name, config.levels): _as_stored(weights[name], name, row, dialect, dtype)
        for name, row in table.items()
    }


def _quantised(tensors: dict[str, np.ndarray], dialect: Dialect, bits: int) -> dict[str, np.ndarray]:
    """With words, scales and biases for each linear map: these are the only weights of two axes."""
    if bits not in (4, 8) or not dialect.quantisable:
        able = ", ".join(name for name, known in DIALECTS.items() if known.quantisable)
        raise InputError(f"bits={bits} in the dialect {dialect.name}: expected 4 or 8, in {able}.")
    changed = dict(tensors)
    for name, a in tensors.items():
        if a.ndim == 2:
            if a.shape[1] % GROUP:
                raise InputError(f"{name} has {a.shape[1]} inputs: MLX quantises {GROUP} at a time; leave out bits=.")
            layer = name.removesuffix(".weight")
            changed[name], changed[f"{layer}.scales"], changed[f"{layer}.biases"] = quantise(a, bits)
    return changed


def _as_stored(a: np.ndarray, name: str, row: Parameter, dialect: Dialect, dtype: str | None) -> np.ndarray:
    """Contiguous, in the dtype asked for, in the dialect's shape."""
    if row.is_counter:
        return a.astype(np.int64)
    if dtype is not None:
        with np.errstate(over="ignore"):
            cast = a.astype(storage_dtype(dtype))
        if not np.isfinite(cast).all() and np.isfinite(a).all():
            raise NonFiniteError(f"{name} does not fit {dtype}: its largest magnitude is {np.abs(a).max():g}.")
        a = cast
    return np.ascontiguousarray(to_stored(a, row, dialect.layout, dialect.axes(row)))

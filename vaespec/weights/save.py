"""Writing weights: the inverse of reading, by the same tables. A file appears whole or not at all."""

from __future__ import annotations

import errno
import json
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vaespec.architecture import parameters, parameters_among
from vaespec.config import UNFINISHED, AutoencoderConfig
from vaespec.dtypes import storage_dtype
from vaespec.errors import InputError, NonFiniteError, WeightFileError
from vaespec.files import folder_made, require_writable, written_whole
from vaespec.layouts import OIHW
from vaespec.parameter import Parameter
from vaespec.weights.config_from_weights import CONFIG_KEY
from vaespec.weights.containers import CONTAINERS, quantize, write_safetensors
from vaespec.weights.containers.quantized import GROUP
from vaespec.weights.dialects import DIALECTS, DIFFUSERS, Dialect, known_dialect
from vaespec.weights.folders import CONFIG
from vaespec.weights.layouts import to_stored

METADATA = {"format": "pt"}  # as diffusers writes it
WEIGHTS = "diffusion_pytorch_model.safetensors"  # in a folder
INTERRUPTED = f"{WEIGHTS} and this file were not both replaced: save the model again."


def save_folder(
    folder: Path, config: AutoencoderConfig, weights: Mapping[str, np.ndarray], dtype: str | None = None
) -> None:
    """Write config.json and diffusion_pytorch_model.safetensors, for diffusers' from_pretrained.

    Neither file appears before both are written. While one is replaced after the other, config.json is one that neither
    vaespec nor diffusers loads, so that a config is never loaded with the weights of another model, even if the process
    is killed. Raises WeightFileError for a folder with an index of shards, which diffusers would read instead.
    """
    tensors = _stored(config, weights, DIFFUSERS, "", dtype)
    if folder.is_file():
        raise WeightFileError(f"{folder} is a file: give a folder to write config.json and the weights to.")
    if (index := folder / f"{WEIGHTS}.index.json").exists():
        raise WeightFileError(f"{index} exists, and diffusers would read its shards instead: name another folder.")
    with _write_errors(folder), folder_made(folder):
        for path in (folder / CONFIG, folder / WEIGHTS):
            _require_regular(path)
        with (
            _written_json(folder / CONFIG, config.to_dict()),
            _kept_after_errors(folder / CONFIG, folder / WEIGHTS),
            written_whole(folder / WEIGHTS) as part,
        ):
            write_safetensors(part, tensors, METADATA)
            with _written_json(folder / CONFIG, {**config.to_dict(), "_class_name": None, UNFINISHED: INTERRUPTED}):
                pass  # which nobody loads, until the weights and then the config are replaced


@contextmanager
def _written_json(path: Path, content: Mapping[str, Any]) -> Iterator[None]:
    """Writes the content to a temporary file at once, which replaces `path` at the end."""
    with written_whole(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        yield


@contextmanager
def _kept_after_errors(config: Path, weights: Path) -> Iterator[None]:
    """Restores the old config after an error, unless the weights have been replaced."""
    content, state = config.read_bytes() if config.exists() else None, _state(weights)
    try:
        yield
    except BaseException:
        if _state(weights) == state and content is None:
            config.unlink(missing_ok=True)
        elif _state(weights) == state and config.read_bytes() != content:
            with written_whole(config) as part:
                part.write_bytes(content or b"")
        raise


def _state(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced; empty if there is none."""
    state = require_writable(path)
    return () if state is None else (state.st_ino, state.st_size, state.st_mtime_ns)


def _require_regular(path: Path) -> None:
    """Raises OSError for a pipe or a device, which would not be replaced."""
    state = require_writable(path)
    if state is not None and not stat.S_ISREG(state.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device: name another folder", str(path))


def save_file(
    path: Path,
    config: AutoencoderConfig,
    weights: Mapping[str, np.ndarray],
    *,
    dialect: str = DIFFUSERS.name,
    prefix: str = "",
    dtype: str | None = None,
    bits: int | None = None,
) -> int:
    """Write one file in a dialect's names, layout and container: Flax's is a .msgpack, the others' a .safetensors.

    Returns the number of bytes.

    A .safetensors has the config in its metadata, since weights do not show all of it. `bits` (4 or 8) quantizes the
    linear maps as MLX does, for mflux.

    Raises InputError for an unknown dialect or another suffix, NonFiniteError for a tensor that overflows the dtype.
    """
    names = known_dialect(dialect)
    if path.suffix != names.suffix:
        raise InputError(f"{path}: a file in the names of {dialect} is a {names.suffix}; name it so.")
    tensors = _stored(config, weights, names, prefix, dtype)
    if bits is not None:
        tensors = _quantized(tensors, names, bits)
    write = next(row.write for row in CONTAINERS if row.write and names.suffix in row.suffixes)
    with _write_errors(path), written_whole(path) as part:
        write(part, tensors, METADATA | {CONFIG_KEY: json.dumps(config.to_dict())})
        return part.stat().st_size


def stored(
    config: AutoencoderConfig,
    weights: Mapping[str, np.ndarray],
    *,
    dialect: str = DIFFUSERS.name,
    prefix: str = "",
    dtype: str | None = None,
) -> dict[str, np.ndarray]:
    """Canonical weights in a dialect's names, layouts and shapes: the tensors that `save_file` would write.

    For a loader that takes a dictionary, such as that of a port. The arrays are copies, contiguous as in a file, since
    some frameworks take arrays of NumPy without a copy. A tensor that the config lacks, or has in another shape, is
    passed on: whether to refuse it is the loader's decision. Raises InputError for an unknown dialect.
    """
    names, table = known_dialect(dialect), parameters(config)
    named = {}
    for name, a in weights.items():
        row = table.get(name)
        fits = row and row.shape == a.shape
        tensor = _as_stored(a, name, row, names, dtype) if row and fits else OIHW.convert(a, names.layout)
        named[prefix + names.stored(name, config.levels)] = np.array(tensor, order="C")
    return named


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Raises the system's errors as WeightFileError."""
    try:
        yield
    except OSError as error:
        place = error.filename2 or error.filename or path
        raise WeightFileError(f"cannot write {place} ({error.strerror or error}).") from None


def _stored(
    config: AutoencoderConfig, weights: Mapping[str, np.ndarray], dialect: Dialect, prefix: str, dtype: str | None
) -> dict[str, np.ndarray]:
    """The tensors of a file: the dialect's names, shapes and layout."""
    table = parameters_among(weights, config)
    return {
        prefix + dialect.stored(name, config.levels): _as_stored(weights[name], name, row, dialect, dtype)
        for name, row in table.items()
    }


def _quantized(tensors: dict[str, np.ndarray], dialect: Dialect, bits: int) -> dict[str, np.ndarray]:
    """The tensors with each linear map as words, scales and biases; no other weight has two axes."""
    if bits not in (4, 8) or not dialect.quantizable:
        possible = ", ".join(name for name, known in DIALECTS.items() if known.quantizable)
        raise InputError(f"bits={bits} in the dialect {dialect.name}: expected 4 or 8, in {possible}.")
    quantized = dict(tensors)
    for name, a in tensors.items():
        if a.ndim == 2:
            if a.shape[1] % GROUP:
                raise InputError(f"{name} has {a.shape[1]} inputs: MLX quantizes {GROUP} at a time; leave out bits=.")
            layer = name.removesuffix(".weight")
            quantized[name], quantized[f"{layer}.scales"], quantized[f"{layer}.biases"] = quantize(a, bits)
    return quantized


def _as_stored(a: np.ndarray, name: str, row: Parameter, dialect: Dialect, dtype: str | None) -> np.ndarray:
    """A tensor in the requested dtype and the dialect's shape, contiguous."""
    if row.is_counter:
        return a.astype(np.int64)
    if dtype is not None:
        with np.errstate(over="ignore"):
            cast = a.astype(storage_dtype(dtype))
        if not np.isfinite(cast).all() and np.isfinite(a).all():
            raise NonFiniteError(f"{name} does not fit {dtype}: its largest magnitude is {np.abs(a).max():g}.")
        a = cast
    return np.ascontiguousarray(to_stored(a, row, dialect.layout, dialect.axes(row)))

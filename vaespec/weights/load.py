"""Reading weights: every tensor of the model filled once and every tensor of the file used, or all problems told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vaespec.architecture import parameters
from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError, NonFiniteError, WeightFileError, WeightMapError
from vaespec.parameters import Parameter
from vaespec.weights.containers import SafetensorsFile
from vaespec.weights.dialects import IGNORED
from vaespec.weights.inference import Located, contradictions, infer_config, locate

SHOWN = 10  # problems of one kind that an error lists

Weights = dict[str, np.ndarray]


def load(path: Path, family: str | None = None) -> tuple[AutoencoderConfig, Weights]:
    """A diffusers folder, whose config.json says everything, or a single file, to which `family` may add."""
    if not path.is_dir():
        return load_file(path, family=family)
    if family is not None:
        raise InputError(f"family={family!r} is for single files: {path} is a folder with its own config.json.")
    return load_folder(path)


def load_folder(folder: Path, variant: str | None = None) -> tuple[AutoencoderConfig, Weights]:
    """A diffusers folder: config.json and diffusion_pytorch_model[.variant].safetensors."""
    if not folder.is_dir():
        raise WeightFileError(f"no folder {folder}.")
    if not (folder / "config.json").exists():
        inside = f": its VAE is in {folder / 'vae'}, name that" if (folder / "vae" / "config.json").exists() else ""
        raise WeightFileError(f"{folder} is not a diffusers VAE folder: it has no config.json{inside}.")
    config = AutoencoderConfig.from_json(folder / "config.json")
    infix = f".{variant}" if variant else ""
    path = folder / f"diffusion_pytorch_model{infix}.safetensors"
    if not path.exists():
        there = ", ".join(sorted(p.name for p in folder.glob("*.safetensors"))) or "no .safetensors at all"
        raise WeightFileError(f"no {path.name} in {folder}: it has {there}.")
    return config, read(locate(SafetensorsFile(path)), config)


def load_file(
    path: Path, config: AutoencoderConfig | None = None, family: str | None = None
) -> tuple[AutoencoderConfig, Weights]:
    """One .safetensors file; the config is inferred unless given (see `infer_config`)."""
    if config is not None and family is not None:
        raise InputError(f"give config= or family={family!r}, not both: either says everything.")
    here = locate(SafetensorsFile(path))
    if config is None:
        config = infer_config(here, family)
    return config, read(here, config)


def read(here: Located, config: AutoencoderConfig) -> Weights:
    """The canonical weights. WeightMapError lists everything missing, misshapen or unexpected, in the file's names."""
    table = parameters(config)
    names = {name: here.prefix + here.dialect.stored(name, config.levels) for name in table}
    missing = [
        f"missing     {stored}   (needed for {name})"
        for name, stored in names.items()
        if stored not in here.file and table[name].role != "counter"  # nothing reads it, and some writers drop it
    ]
    misshapen = [
        f"shape       {stored}   file {here.file.shape(stored)}, config wants {table[name].shape}"
        for name, stored in names.items()
        if stored in here.file and not _fits(here.file.shape(stored), table[name])
    ]
    problems = [*_shortened(missing), *_shortened(misshapen), *_shortened(_unexpected(here, set(names.values())))]
    if problems:
        hints = [f"hint        {words}" for words in contradictions(config, here)]
        count = f"{len(missing) + len(misshapen)} tensors missing or misshapen"
        head = f'{here.file.path} does not fit the config (dialect "{here.dialect.name}", {count})'
        raise WeightMapError("\n  ".join([f"{head}:", *problems, *hints]))
    zero = np.zeros((), np.int64)  # of a counter that is not there
    weights = {name: here.file.get(stored, zero) for name, stored in names.items()}
    _require_finite(weights, names)
    return {name: weights[name].reshape(parameter.shape) for name, parameter in table.items()}


def require_complete(weights: Mapping[str, np.ndarray], config: AutoencoderConfig) -> None:
    """WeightMapError unless these canonical weights are all that the config's model has, in its shapes, and no more."""
    table = parameters(config)
    problems = [
        *_shortened([f"missing     {name}" for name in table if name not in weights]),
        *_shortened(
            [
                f"shape       {name}   given {weights[name].shape}, config wants {row.shape}"
                for name, row in table.items()
                if name in weights and weights[name].shape != row.shape
            ]
        ),
        *_shortened([f"unexpected  {name}" for name in weights if name not in table]),
    ]
    if problems:
        raise WeightMapError("\n  ".join(["the weights do not fit the config:", *problems]))


def _fits(shape: tuple[int, ...], parameter: Parameter) -> bool:
    """Whether a stored shape is the parameter's; linear maps may be stored as 1 × 1 convolutions."""
    if parameter.role == "linear" and set(shape[2:]) <= {1}:
        shape = shape[:2]
    return shape == parameter.shape


def _unexpected(here: Located, used: set[str]) -> list[str]:
    """What lies under the VAE's prefix and is neither used nor known to be harmless."""
    harmless = tuple(here.prefix + name for name in IGNORED)
    left = [key for key in here.file if key.startswith(here.prefix) and key not in used]
    return [f"unexpected  {key}" for key in left if not key.startswith(harmless)]


def _shortened(lines: list[str]) -> list[str]:
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"... and {len(lines) - SHOWN} more"]


def _require_finite(weights: Weights, names: dict[str, str]) -> None:
    bad = [names[name] for name, array in weights.items() if not np.isfinite(array).all()]
    if bad:
        raise NonFiniteError(f"NaN or infinity in {len(bad)} tensors: {', '.join(_shortened(bad))}.")

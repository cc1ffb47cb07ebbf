"""Reading weights: every tensor of the model filled once and every tensor of the file used, or all problems told."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np

from vaespec.architecture import halves_among, parameters
from vaespec.config import AutoencoderConfig
from vaespec.dtypes import STORAGE_DTYPES
from vaespec.errors import InputError, NonFiniteError, WeightFileError, WeightMapError
from vaespec.weights.config_from_weights import contradictions, infer_config
from vaespec.weights.containers import open_tensors, require_plain
from vaespec.weights.folders import choose
from vaespec.weights.layouts import canonical_shape, to_canonical
from vaespec.weights.locate import Located, locate

LOG = logging.getLogger("vaespec")
CONFIG_KEY = "vaespec.config"  # in the metadata of a file
VARIANCE = "bn.running_var"
SHOWN = 10  # problems of one kind that an error lists


class Reading(TypedDict, total=False):
    """How to read a file, where it leaves that open.

    `prefix` of the VAE to take, where there are several; `dialect`, where names do not tell; `use_ema`: the moving
    average instead of the weights; `strict=False`: tensors that are not the model's are left out with a warning,
    instead of refused; `allow_nonfinite`: NaN and infinity are taken.
    """

    prefix: str | None
    dialect: str | None
    use_ema: bool
    strict: bool
    allow_nonfinite: bool


def load(path: Path, family: str | None = None, **how: Unpack[Reading]) -> tuple[AutoencoderConfig, CanonicalWeights]:
    """A folder or a single file; `family` adds what a config.json would say."""
    return load_folder(path, family=family, **how) if path.is_dir() else load_file(path, family=family, **how)


def load_folder(
    folder: Path, variant: str | None = None, family: str | None = None, **how: Unpack[Reading]
) -> tuple[AutoencoderConfig, CanonicalWeights]:
    """A folder with weights in one file or in shards, plain or of a variant; its config.json says the config."""
    files = choose(folder, variant)
    if files.config is not None and family is not None:
        raise InputError(f"family={family!r} is for weights alone: {folder} has its own config.json.")
    config = None if files.config is None else AutoencoderConfig.from_json(files.config)
    return load_file(files.weights, config, family, **how)


def load_file(
    path: Path, config: AutoencoderConfig | None = None, family: str | None = None, **how: Unpack[Reading]
) -> tuple[AutoencoderConfig, CanonicalWeights]:
    """One file of any kind; the config is that given, or the file's own, or inferred (see `infer_config`)."""
    if config is not None and family is not None:
        raise InputError(f"give config= or family={family!r}, not both: either says everything.")
    here = open_vae(path, **how)
    config = config or (own_config(here) if family is None else None) or infer_config(here, family)
    numbers = [here.stored(name) for name, row in parameters(config, here.halves).items() if not row.is_counter]
    require_plain(here.file, filter(here.file.__contains__, numbers))
    left = unexpected(here, config)
    never_spare = [key for key in left if "attn" in key or "attention" in key]
    refused = [f"unexpected  {key}" for key in (left if how.get("strict", True) else never_spare)]
    if problems := [*misfits(here, config), *_shortened(refused)]:
        head = f'{path} does not fit the config (dialect "{here.dialect.name}")'
        raise WeightMapError("\n  ".join([f"{head}:", *problems]))
    if left:
        LOG.warning("%s: left out %d tensors that are not the model's: %s", path, len(left), ", ".join(left[:SHOWN]))
    return config, CanonicalWeights(here, config, how.get("allow_nonfinite", False))


def own_config(here: Located) -> AutoencoderConfig | None:
    """The config that `save_file` leaves in a file's metadata, if it does."""
    if (text := here.file.metadata.get(CONFIG_KEY)) is None:
        return None
    try:
        return AutoencoderConfig.from_dict(json.loads(text))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:  # anybody may have written it
        told = f"{here.file.path} has a damaged config in its metadata ({error}): give config= or family=."
        raise WeightFileError(told) from None


def open_vae(path: Path, **how: Unpack[Reading]) -> Located:
    """The VAE in a file, found and not yet read."""
    return locate(
        open_tensors(path),
        prefix=how.get("prefix"),
        dialect=how.get("dialect"),
        use_ema=how.get("use_ema", False),
    )


class CanonicalWeights(Mapping[str, np.ndarray]):
    """The weights in a file by their canonical names, each read and checked when asked for; its shapes are known."""

    def __init__(self, here: Located, config: AutoencoderConfig, allow_nonfinite: bool) -> None:
        self.here, self.table, self.allow_nonfinite = here, parameters(config, here.halves), allow_nonfinite

    def __getitem__(self, name: str) -> np.ndarray:
        """In the file's dtype; what no backend stores (float8) as float32."""
        row, stored = self.table[name], self.here.stored(name)
        if row.is_counter and stored not in self.here.file:
            return np.zeros((), np.int64)  # nothing reads it, and some writers drop it
        array = to_canonical(self.here.file[stored], row, self.here.layout)
        if not row.is_counter and array.dtype.name not in STORAGE_DTYPES:
            array = array.astype(np.float32)
        if not self.allow_nonfinite and not np.isfinite(array).all():
            self._refuse_nonfinite()
        if name == VARIANCE and not (array > 0).all():
            raise WeightMapError(f"{stored} of {self.here.file.path} has {array.min()} in it: a variance is positive.")
        return array

    def __contains__(self, name: object) -> bool:
        return name in self.table  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def _refuse_nonfinite(self) -> None:
        file = self.here.file
        bad = [name for name in map(self.here.stored, self.table) if name in file and not np.isfinite(file[name]).all()]
        raise NonFiniteError(
            f"NaN or infinity in {len(bad)} tensors of {file.path}: {', '.join(_shortened(bad))}; "
            "allow_nonfinite=True takes them."
        )


def require_complete(weights: Mapping[str, np.ndarray], config: AutoencoderConfig) -> None:
    """WeightMapError unless these canonical weights are all that the model has, or a half of it, and no more."""
    if isinstance(weights, CanonicalWeights):
        return  # found so when the file was opened
    table = parameters(config, halves_among(weights, config))
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


def misfits(here: Located, config: AutoencoderConfig) -> list[str]:
    """What the file lacks or has otherwise than the config wants, a line for each, in the file's own names."""
    rows = [(name, here.stored(name), row) for name, row in parameters(config, here.halves).items()]
    missing = [
        f"missing     {stored}   (needed for {name})"
        for name, stored, row in rows
        if stored not in here.file and not row.is_counter
    ]
    shapes = [
        f"shape       {stored}   file {shape}, config wants {row.shape}"
        for _, stored, row in rows
        if stored in here.file and canonical_shape(shape := here.file.shape(stored), row, here.layout) != row.shape
    ]
    told = [f"config      {words}" for words in contradictions(config, here)]
    return [line for lines in (missing, shapes, told) for line in _shortened(lines)]


def unexpected(here: Located, config: AutoencoderConfig) -> list[str]:
    """The names under the VAE's prefix that are neither the model's nor known to be harmless."""
    plain = replace(here, ema=False)
    known = {plain.stored(name) for name in parameters(config)} | set(here.ignored())
    return [key for key in here.file if key.startswith(here.prefix) and key not in known]


def _shortened(lines: list[str]) -> list[str]:
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"... and {len(lines) - SHOWN} more"]

"""Reading weights: a file or a folder -> its config, and its weights by canonical name."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError, WeightFileError
from vaespec.weights.canonical import CanonicalWeights
from vaespec.weights.fit import fit, require_fit
from vaespec.weights.folders import choose
from vaespec.weights.locate import Reading, open_vae

Loaded = tuple[AutoencoderConfig, CanonicalWeights]


def load_weights(path: Path, family: str | None = None, **options: Unpack[Reading]) -> Loaded:
    """Load a folder or a single file; `family` adds what a config.json would say."""
    return load_folder(path, None, family, **options) if path.is_dir() else load_file(path, None, family, **options)


def load_folder(
    folder: Path, variant: str | None = None, family: str | None = None, **options: Unpack[Reading]
) -> Loaded:
    """Load a folder with its weights in one file or in shards, plain or of a variant, and its config.json if any.

    Raises WeightFileError if another process saves a model there meanwhile.
    """
    files = choose(folder, variant)
    config = files.read_config(family)
    loaded = load_file(files.weights, config, family, **options)
    if files.read_config(family) != config:  # the weights, which are open by now, may be of either model
        raise WeightFileError(f"{files.config} has changed since it was read: load the folder again.")
    return loaded


def load_file(
    path: Path, config: AutoencoderConfig | None = None, family: str | None = None, **options: Unpack[Reading]
) -> Loaded:
    """Load one file of any kind; the config is the given one, the file's own, or inferred (see `infer_config`).

    Reads headers only: the weights are read when they are indexed. Raises WeightFileError for a file that cannot be
    read, WeightMapError for one that does not fit.
    """
    if config is not None and family is not None:
        raise InputError(f"give config= or family={family!r}, not both: either says everything.")
    vae = open_vae(path, **options)
    fitted = fit(vae, config, family)
    require_fit(vae, fitted, strict=options.get("strict", True))
    return fitted.config, CanonicalWeights(fitted.vae, fitted.table, options.get("allow_nonfinite", False))

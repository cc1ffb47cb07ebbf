"""The file between `vaespec encode` and `vaespec decode`: one .safetensors with the latents of many pictures.

Tensors, one per picture: "INDEX-STEM" (C, h, w), INDEX from 0, padded with zeros to one length. All of one dtype.
With `values` = "normalized" they are as the diffusion model wants them (FLUX.2: patchified), with "raw" as the
encoder makes them. Metadata, all strings as safetensors demands:

    format      "vaespec-latents"
    version     "1"
    written_by  "vaespec 0.1.0"
    config      JSON: the model's config.json, as diffusers writes it
    f           "8": pixels per latent, along each side
    values      "normalized" or "raw"
    posterior   "mode" or "sample"
    pictures    JSON: a list, one object per tensor:
                tensor         its name
                file           the picture's file name, without folder
                height, width  the picture's size in px, as it is to be seen (turned as its EXIF says)
                pad            "floor" or "edge" (see vaespec.cli.framing)
                seed           of the sample, an integer; null for the mode
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vaespec.cli.framing import Pad, latent_shape
from vaespec.cli.paths import written
from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError, VaespecError
from vaespec.families import SCALING
from vaespec.weights.containers import open_tensors, require_plain, write_safetensors

FORMAT, VERSION = "vaespec-latents", "1"


@dataclass(frozen=True)
class Entry:
    """What the metadata say about one picture."""

    tensor: str
    file: str
    height: int
    width: int
    pad: Pad
    seed: int | None


@dataclass(frozen=True)
class Latents:
    """The content of a latents file."""

    config: AutoencoderConfig
    normalized: bool
    entries: tuple[Entry, ...]
    tensors: Mapping[str, np.ndarray]  # (C, h, w) each


def tensor_names(files: list[Path]) -> list[str]:
    """ "INDEX-STEM" for every picture."""
    digits = len(str(len(files) - 1))
    return [f"{i:0{digits}}-{file.stem}" for i, file in enumerate(files)]


def save(path: Path, latents: Latents) -> None:
    """Write the file, whole or not at all; its folder is made if need be."""
    from vaespec import __version__

    sampled = any(entry.seed is not None for entry in latents.entries)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "written_by": f"vaespec {__version__}",
        "config": json.dumps(latents.config.to_dict()),
        "f": str(latents.config.downsampling_factor),
        "values": "normalized" if latents.normalized else "raw",
        "posterior": "sample" if sampled else "mode",
        "pictures": json.dumps([dataclasses.asdict(entry) for entry in latents.entries]),
    }
    with written(path) as part:
        write_safetensors(part, latents.tensors, metadata)


def load(path: Path) -> Latents:
    """Read the file. WeightFileError if it is damaged, InputError if it holds no latents of this format."""
    tensors = open_tensors(path)
    metadata = tensors.metadata
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} holds no latents of `vaespec encode` (its metadata say no format {FORMAT!r}).")
    if metadata.get("version") != VERSION:
        raise InputError(
            f"{path} is of version {metadata.get('version')!r}, this vaespec reads {VERSION!r}: update it."
        )
    try:
        config = AutoencoderConfig.from_dict(json.loads(metadata["config"]))
        entries = tuple(_entry(fields) for fields in json.loads(metadata["pictures"]))
        normalized = {"normalized": True, "raw": False}[metadata["values"]]
    except (KeyError, TypeError, ValueError, VaespecError) as error:
        raise InputError(f"{path} has damaged metadata ({type(error).__name__}: {error}).") from None
    if not entries:
        raise InputError(f"{path} holds no pictures.")
    require_plain(tensors, tensors)
    latents = Latents(config, normalized, entries, {name: tensors[name] for name in tensors})
    for entry in entries:
        _require_shape(path, entry, latents)
    return latents


def misfits(latents: Latents, weights: AutoencoderConfig) -> list[str]:
    """Why these weights cannot decode these latents, in words; empty if they can."""
    fields = ["latent_channels", "downsampling_factor"]
    if latents.normalized:
        fields += [*SCALING, "patch_size"]
    pairs = ((field, getattr(latents.config, field), getattr(weights, field)) for field in fields)
    return [
        f"{field} is {made!r} in the latents, {here!r} in the weights" for field, made, here in pairs if made != here
    ]


def _entry(fields: Mapping[str, object]) -> Entry:
    entry = Entry(**fields)  # type: ignore[arg-type]
    if not (re.fullmatch(r"[^/\\\0]+", entry.tensor) and entry.height > 0 and entry.width > 0):
        raise ValueError(f"picture {entry.tensor!r} of {entry.height} x {entry.width} px")
    return dataclasses.replace(entry, pad=Pad(entry.pad))


def _require_shape(path: Path, entry: Entry, latents: Latents) -> None:
    if entry.tensor not in latents.tensors:
        raise InputError(f"{path} has no tensor {entry.tensor!r}, which its metadata name.")
    shape = latents.tensors[entry.tensor].shape
    expected = latent_shape(entry.height, entry.width, latents.config, entry.pad, latents.normalized)
    if shape != expected:
        raise InputError(f"{path}: tensor {entry.tensor!r} is {shape}, its metadata say {expected}.")

"""The file between `vaespec encode` and `vaespec decode`: one .safetensors with the latents of many pictures.

Tensors, one per picture: "INDEX-STEM" (C, h, w), INDEX from 0, padded with zeros to one length. All have one dtype.
`values` = "normalized": as the diffusion model takes them (FLUX.2: patchified). "raw": as the encoder returns them.
Metadata, all strings, as safetensors demands:

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
                height, width  the picture's size in px, after the rotation that its EXIF demands
                pad            "floor" or "edge" (see vaespec.cli.picture_files)
                seed           the sample's seed, an integer; null for the mode
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vaespec import strict_json
from vaespec.cli import picture_files
from vaespec.cli.paths import written
from vaespec.cli.picture_files import Pad, framed_size
from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError, VaespecError, WeightFileError
from vaespec.families import SCALING
from vaespec.weights.containers import HEADER_LIMIT, TensorFile, open_tensors, require_plain, write_safetensors

FORMAT, VERSION = "vaespec-latents", "1"
VALUES = {"normalized": True, "raw": False}
KINDS: dict[str, Any] = {"tensor": str, "file": str, "height": int, "width": int, "pad": str, "seed": int | None}


@dataclass(frozen=True)
class Entry:
    """The metadata of one picture."""

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


def tensor_names(pictures: Sequence[Path]) -> list[str]:
    """A tensor's name for each picture."""
    digits = len(str(len(pictures) - 1))
    return [f"{i:0{digits}}-{as_text(picture.stem)}" for i, picture in enumerate(pictures)]


def as_text(name: str) -> str:
    """A file's name as text that every system and every file of latents can hold: bytes that are none become U+FFFD."""
    return os.fsencode(name).decode("utf-8", "replace").replace("\\", "_")


def save(path: Path, latents: Latents) -> int:
    """Writes the file, complete or not at all; creates its folder. Returns the number of bytes."""
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
        return part.stat().st_size


def load(path: Path) -> Latents:
    """Reads the file. Raises WeightFileError if it is damaged, InputError if it is not a file of `vaespec encode`."""
    try:
        tensors = open_tensors(path)
    except WeightFileError:
        if picture_files.is_picture(path):
            raise InputError(
                f"{path} is a picture: `vaespec decode` takes the file that `vaespec encode` writes; encode it first."
            ) from None
        raise
    metadata = tensors.metadata
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path} is not a file of `vaespec encode`, since its metadata do not name the format {FORMAT!r}: encode "
            "pictures, and give that file."
        )
    if metadata.get("version") != VERSION:
        version = metadata.get("version")
        raise InputError(f"{path} has version {version!r}, but this vaespec reads version {VERSION!r}: update vaespec.")
    try:
        config = AutoencoderConfig.from_dict(strict_json.parse(metadata["config"]))
        pictures = strict_json.parse(metadata["pictures"], HEADER_LIMIT)
        if not isinstance(pictures, list):
            raise ValueError("'pictures' is no list")
        entries = tuple(map(_entry, pictures))
        if metadata["values"] not in VALUES:
            raise ValueError(f"'values' is {metadata['values']!r}, not one of {', '.join(VALUES)}")
        normalized = VALUES[metadata["values"]]
    except KeyError as error:
        raise InputError(f"{path} has damaged metadata (no {error}): encode the pictures again.") from None
    except (ValueError, VaespecError) as error:
        reason = str(error).rstrip(".")
        raise InputError(f"{path} has damaged metadata ({reason}): encode the pictures again.") from None
    if not entries:
        raise InputError(f"{path} has no pictures: encode some.")
    for entry in entries:
        _require_shape(path, entry, tensors, config, normalized)
    require_plain(tensors, [entry.tensor for entry in entries])
    return Latents(config, normalized, entries, tensors)


def mismatches(latents: Latents, config: AutoencoderConfig) -> list[str]:
    """Why weights with this config cannot decode these latents, a sentence each; empty if they can."""
    fields = ["latent_channels", "downsampling_factor"]
    if latents.normalized:
        fields += [*SCALING, "patch_size"]
    pairs = ((name, getattr(latents.config, name), getattr(config, name)) for name in fields)
    return [
        f"{name} is {ours!r} in the latents, {theirs!r} in the weights"
        for name, ours, theirs in pairs
        if ours != theirs
    ]


def _entry(fields: object) -> Entry:
    if not isinstance(fields, dict) or fields.keys() != KINDS.keys():
        raise ValueError(f"a picture is no object with the fields {', '.join(KINDS)}")
    for field, kind in KINDS.items():
        if not isinstance(fields[field], kind) or isinstance(fields[field], bool):
            raise ValueError(f"the {field} of a picture is {fields[field]!r:.80}")
    if fields["pad"] not in list(Pad):
        raise ValueError(f"the pad of a picture is {fields['pad']!r:.80}, not one of {', '.join(Pad)}")
    entry = Entry(**fields)
    if not (re.fullmatch(r"[^/\\\0]+", entry.tensor) and entry.height > 0 and entry.width > 0):
        raise ValueError(f"picture {entry.tensor!r} of {entry.height} x {entry.width} px")
    if "\0" in entry.file or not os.fsencode(entry.file):  # it raises ValueError for what no system can name
        raise ValueError(f"picture {entry.tensor!r} of the file {entry.file!r}")
    return dataclasses.replace(entry, pad=Pad(entry.pad))


def _require_shape(path: Path, entry: Entry, tensors: TensorFile, config: AutoencoderConfig, normalized: bool) -> None:
    if entry.tensor not in tensors:
        raise InputError(f"{path} has no tensor {entry.tensor!r}, which its metadata name: encode the pictures again.")
    shape, expected = tensors.shape(entry.tensor), _shape(entry, config, normalized)
    if shape != expected:
        raise InputError(f"{path}: tensor {entry.tensor!r} is {shape}, but its metadata say {expected}.")


def _shape(entry: Entry, config: AutoencoderConfig, normalized: bool) -> tuple[int, ...]:
    """(C, h, w) of a picture's latents; normalized latents of FLUX.2 are patchified."""
    f = config.downsampling_factor
    h, w = (side // f for side in framed_size(entry.height, entry.width, config, entry.pad))
    p1, p2 = (config.patch_size or (1, 1)) if normalized else (1, 1)
    return config.latent_channels * p1 * p2, h // p1, w // p2

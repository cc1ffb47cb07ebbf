"""`vaespec decode`: a file of latents -> pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from vaespec.autoencoder import AutoencoderKL
from vaespec.cli import latents_file, options, paths, picture_files, text
from vaespec.cli.console import print_json, print_table, progress
from vaespec.cli.failures import about
from vaespec.cli.latents_file import Entry, Latents
from vaespec.cli.model import described, open_model
from vaespec.errors import InputError
from vaespec.families import SCALING


def decode(
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="A file of `vaespec encode`.", show_default=False)],
    output: options.Folder = Path("."),
    weights: options.Weights = "tiny",
    family: options.Family = None,
    backend: options.BackendName = None,
    device: options.Device = None,
    dtype: options.Dtype = "float32",
    precision: options.Precision = "default",
    max_memory: options.MaxMemory = None,
    as_json: options.Json = False,
) -> None:
    """Decode latents: writes NAME-vae.png for each picture, in its original size if it was padded with edge."""
    content = latents_file.load(latents)
    targets = _targets(output, content)
    vae = open_model(weights, family, backend, device, dtype, precision)
    if vae.config.scaling_factor is None and vae.config.patch_size is None:  # the file says what the weights do not
        vae.register_to_config(**{field: getattr(content.config, field) for field in SCALING})
    if problems := latents_file.misfits(content, vae.config):
        raise InputError(f"{latents} was not made by a VAE like {weights}: {'; '.join(problems)}.")
    if vae.config.out_channels != 3:
        raise InputError(f"{weights} makes images of {vae.config.out_channels} channels: pictures have 3.")
    rows: list[dict[str, Any]] = []
    with progress("decode", len(targets)) as step:
        vae.enable_tiling("auto", max_memory=max_memory, progress=step.part)
        for entry, target in zip(content.entries, targets, strict=True):
            with about(latents):
                pixels = _decode(vae, content, entry)
            picture_files.write(target, pixels)
            rows.append({"tensor": entry.tensor, "output": str(target), "size": list(pixels.shape[:2])})
            step()
    if as_json:
        print_json({"weights": weights, "backend": vae.backend, "pictures": rows})
        return
    cells = [[row["tensor"], row["output"], text.pixels(*row["size"])] for row in rows]
    print_table(("tensor", "written", "px"), cells, numbers=(2,))
    print(f"{weights}, {described(vae)}")


def _decode(vae: AutoencoderKL, latents: Latents, entry: Entry) -> np.ndarray:
    """(H, W, 3) uint8, no larger than the original."""
    z = latents.tensors[entry.tensor][None]
    return picture_files.developed(vae.decode_bands(z, normalized=latents.normalized), vae, entry.height, entry.width)


def _targets(folder: Path, latents: Latents) -> list[Path]:
    """Names of the pictures where they differ, else names of the tensors, which always do."""
    stems = [Path(entry.file).stem for entry in latents.entries]
    if len({stem.casefold() for stem in stems}) < len(stems):
        stems = [entry.tensor for entry in latents.entries]
    return paths.targets(folder, [Path(f"{stem}.png") for stem in stems])

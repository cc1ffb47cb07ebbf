"""`vaespec decode`: a file of latents -> pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from vaespec.autoencoder import AutoencoderKL
from vaespec.cli import latents_file, options, paths, picture_files, text
from vaespec.cli.console import print_json, print_lines, print_table, progress
from vaespec.cli.failures import Failures, name_in_errors
from vaespec.cli.latents_file import Entry, Latents
from vaespec.cli.limits import Limits, latent_tasks
from vaespec.cli.loading import open_weights, outline, place, placement
from vaespec.errors import InputError
from vaespec.families import SCALING


def decode(
    latents: Annotated[
        Path, typer.Argument(metavar="LATENTS", help="A file that `vaespec encode` wrote.", show_default=False)
    ],
    output: options.OutputFolder = Path("."),
    weights: options.Weights = "tiny",
    family: options.Family = None,
    strict: options.Strict = True,
    backend: options.BackendName = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    precision: options.Precision = "default",
    max_memory: options.MaxMemory = None,
    offload_folder: options.OffloadFolder = None,
    as_json: options.Json = False,
) -> None:
    """Decode latents. Write NAME-vae.png for each picture, in its original size if it was encoded with --pad edge.

    Pictures that fail are left out and listed, and the exit code is 1.
    """
    content = latents_file.load(latents)
    outputs = _outputs(output, content)
    opened, limits = open_weights(weights, family, strict), Limits(max_memory, offload_folder)
    model = outline(opened, backend, device, dtype, precision)
    limits.require(model, latent_tasks(model, latents, content))
    vae = place(weights, opened, backend, device, dtype, precision)
    _require_fit(vae, latents, content, weights)
    rows: list[dict[str, Any]] = []
    failures = Failures()
    with progress("decode", len(outputs)) as step:
        limits.apply(vae, step)
        for entry, target in zip(content.entries, outputs, strict=True):
            with failures.caught(entry.tensor):
                with name_in_errors(f"{latents}, tensor {entry.tensor!r}"):
                    pixels = _decode(vae, content, entry)
                picture_files.write(target, pixels)
                rows.append({"tensor": entry.tensor, "output": str(target), "size": list(pixels.shape[:2])})
            step()
    if rows:
        _report(rows, failures, vae, weights, as_json)
    failures.raise_any()


def _report(rows: list[dict[str, Any]], failures: Failures, vae: AutoencoderKL, weights: str, as_json: bool) -> None:
    """Prints a row for each picture."""
    if as_json:
        print_json({"weights": weights, "backend": vae.backend, "pictures": rows, "failed": failures.document()})
        return
    cells = [[row["tensor"], row["output"], text.pixels(*row["size"])] for row in rows]
    print_table(("tensor", "written", "px"), cells, numbers=(2,))
    print_lines(f"{weights}, {placement(vae)}")


def _require_fit(vae: AutoencoderKL, path: Path, content: Latents, weights: str) -> None:
    """Raises InputError if these weights cannot decode the file's latents to RGB; a scale they lack is the file's."""
    if vae.config.scaling_factor is None and vae.config.patch_size is None:
        vae.register_to_config(**{field: getattr(content.config, field) for field in SCALING})
    if mismatches := latents_file.mismatches(content, vae.config):
        raise InputError(f"{weights} cannot decode {path}: {'; '.join(mismatches)}.")
    if vae.config.out_channels != 3:
        raise InputError(f"{weights} returns images of {vae.config.out_channels} channels, but pictures have 3.")


def _decode(vae: AutoencoderKL, content: Latents, entry: Entry) -> np.ndarray:
    """Decodes one picture to (H, W, 3) uint8, no larger than the original."""
    bands = vae.decode_bands(content.tensors[entry.tensor][None], normalized=content.normalized)
    return picture_files.joined(bands, vae, entry.height, entry.width)


def _outputs(folder: Path, content: Latents) -> list[Path]:
    """Names the outputs after the pictures if their names differ, else after the tensors, whose names always do."""
    stems = [Path(entry.file).stem for entry in content.entries]
    if len({stem.casefold() for stem in stems}) < len(stems):
        stems = [entry.tensor for entry in content.entries]
    return paths.picture_outputs(folder, [Path(f"{stem}.png") for stem in stems])

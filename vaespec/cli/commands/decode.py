"""`vaespec decode`: a file of latents -> pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from vaespec.autoencoder import AutoencoderKL
from vaespec.cli import latents_file, options, paths, picture_files, picture_writing, text
from vaespec.cli.console import print_json, print_lines, print_table, progress
from vaespec.cli.failures import Failures, name_in_errors
from vaespec.cli.latents_file import Entry, Latents
from vaespec.cli.limits import Limits, latent_tasks
from vaespec.cli.loading import open_weights, outline, place, placement
from vaespec.cli.picture_writing import Depth
from vaespec.errors import InputError
from vaespec.families import SCALING


def decode(
    latents: Annotated[
        Path, typer.Argument(metavar="LATENTS", help="A file that `vaespec encode` wrote.", show_default=False)
    ],
    output: options.OutputFolder = Path("."),
    depth: options.OutputDepth = Depth.EIGHT,
    weights: options.Weights = "tiny",
    family: options.Family = None,
    strict: options.Strict = True,
    backend: options.BackendName = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    precision: options.Precision = "default",
    padding: options.PaddingMode = "zeros",
    max_memory: options.MaxMemory = None,
    offload_folder: options.OffloadFolder = None,
    as_json: options.Json = False,
) -> None:
    """Decode latents. Write NAME-vae.png for each picture, in its original size if it was encoded with --pad edge.

    With --depth float the files are NAME-vae.tif. Pictures that fail are left out and listed, and the exit code is 1.
    """
    content = latents_file.load(latents)
    outputs = _outputs(output, content, depth)
    opened, limits = open_weights(weights, family, strict), Limits(max_memory, offload_folder)
    model = outline(opened, backend, device, dtype, precision, padding)
    limits.require(model, latent_tasks(model, latents, content))
    vae = place(weights, opened, backend, device, dtype, precision, padding)
    _require_fit(vae, latents, content, weights)
    rows: list[dict[str, Any]] = []
    failures = Failures()
    with progress("decode", len(outputs)) as step:
        limits.apply(vae, step)
        for entry, target in zip(content.entries, outputs, strict=True):
            with failures.caught(entry.tensor):
                picture_writing.require_room(target, entry.height, entry.width, vae.config.out_channels, depth)
                parts = _decode(vae, latents, content, entry, depth)
                size = picture_writing.write_rows(target, parts, depth)
                rows.append({"tensor": entry.tensor, "output": str(target), "size": list(size)})
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
    """Raises InputError if these weights cannot decode the latents to pictures, after giving them a scale they lack."""
    if vae.config.scaling_factor is None and vae.config.patch_size is None:
        vae.register_to_config(**{field: getattr(content.config, field) for field in SCALING})
    if mismatches := latents_file.mismatches(content, vae.config):
        raise InputError(f"{weights} cannot decode {path}: {'; '.join(mismatches)}.")
    picture_files.require_channels(vae.config, vae.config.out_channels)


def _decode(vae: AutoencoderKL, path: Path, content: Latents, entry: Entry, depth: Depth) -> Iterator[np.ndarray]:
    """Decodes one picture to rows (h, W, C), no larger than the original."""
    with name_in_errors(f"{path}, tensor {entry.tensor!r}"):
        bands = vae.decode_bands(content.tensors[entry.tensor][None], normalized=content.normalized)
        yield from picture_files.decoded_rows(bands, vae, entry.height, entry.width, depth)


def _outputs(folder: Path, content: Latents, depth: Depth) -> list[Path]:
    """Names the outputs after the pictures if their names differ, else after the tensors, whose names always do."""
    stems = [Path(entry.file).stem for entry in content.entries]
    if len({stem.casefold() for stem in stems}) < len(stems):
        stems = [entry.tensor for entry in content.entries]
    return paths.picture_outputs(folder, [Path(f"{stem}.png") for stem in stems], depth.suffix)

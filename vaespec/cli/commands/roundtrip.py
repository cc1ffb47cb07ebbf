"""`vaespec roundtrip`: encodes and decodes pictures, and measures what the VAE loses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vaespec.architecture import DECODER, ENCODER
from vaespec.autoencoder import AutoencoderKL
from vaespec.cli import options, paths, picture_files, picture_writing, text
from vaespec.cli.console import Steps, print_json, print_lines, print_table, progress
from vaespec.cli.failures import Failures, name_in_errors
from vaespec.cli.limits import Limits, picture_tasks
from vaespec.cli.loading import open_weights, outline, place, placement
from vaespec.cli.picture_files import Pad
from vaespec.cli.picture_writing import Depth
from vaespec.ops import Array
from vaespec.pictures import Pixels, SquaredError


def roundtrip(
    pictures: options.Pictures,
    output: options.OutputFolder = Path("."),
    depth: options.OutputDepth = Depth.EIGHT,
    pad: options.Padding = Pad.FLOOR,
    sample: options.Sample = False,
    seed: options.SeedNumber = None,
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
    """Encode and decode pictures. Write NAME-vae.png for each, and print its PSNR.

    With --depth float the files are NAME-vae.tif. Pictures that fail are left out and listed, and the exit code is 1.
    """
    seeds = options.seeds(len(pictures), sample, seed)
    failures = Failures()
    headers = picture_files.read_headers(pictures, failures)
    outputs = paths.picture_outputs(output, pictures, depth.suffix)
    opened, limits = open_weights(weights, family, strict), Limits(max_memory, offload_folder)
    model = outline(opened, backend, device, dtype, precision, padding)
    picture_files.require_channels(model.config, model.config.in_channels, model.config.out_channels)
    headers = picture_files.fitting(headers, model.config, pad, failures)
    headers = limits.affordable(model, headers, picture_tasks(model, headers, pad, [ENCODER, DECODER]), failures)
    vae = place(weights, opened, backend, device, dtype, precision, padding)
    rows: list[dict[str, Any]] = []
    good = {header.path for header in headers}
    work = [task for task in zip(pictures, outputs, seeds, strict=True) if task[0] in good]
    with progress("roundtrip", 2 * len(work)) as step:
        limits.apply(vae, step)
        for picture, target, its_seed in work:
            with failures.caught(str(picture)):
                rows.append(_roundtrip(vae, picture, target, depth, pad, its_seed, step))
    if rows:
        _report(rows, failures, vae, weights, as_json)
    failures.raise_any()


def _roundtrip(
    vae: AutoencoderKL, picture: Path, target: Path, depth: Depth, pad: Pad, seed: int | None, step: Steps
) -> dict[str, Any]:
    """Encodes and decodes one picture, in two steps; returns its row of the report."""
    channels, out_channels = vae.config.in_channels, vae.config.out_channels
    pixels = picture_files.read(picture, channels, step.say)
    height, width, _ = pixels.shape
    picture_writing.require_room(target, height, width, out_channels, depth)
    original = pixels if channels == out_channels else picture_files.read(picture, out_channels)
    with name_in_errors(picture):
        posterior = vae.encode(Pixels.of(picture_files.framed(pixels, vae.config, pad)))[0]
        step()
        z = posterior.mode() if seed is None else posterior.sample(seed=[seed])
    error = SquaredError()
    parts = _compared(_decoded(vae, picture, z, (height, width), depth), original, error)
    h, w = picture_writing.write_rows(target, parts, depth)
    step()
    ratio = error.psnr()
    return {
        "picture": str(picture),
        "output": str(target),
        "size": [height, width],
        "output_size": [h, w],
        "psnr": ratio if math.isfinite(ratio) else None,
    }


def _decoded(vae: AutoencoderKL, picture: Path, z: Array, size: tuple[int, int], depth: Depth) -> Iterator[np.ndarray]:
    with name_in_errors(picture):
        yield from picture_files.decoded_rows(vae.decode_bands(z), vae, *size, depth)


def _compared(parts: Iterable[np.ndarray], original: np.ndarray, error: SquaredError) -> Iterator[np.ndarray]:
    """Passes on parts of a picture, top down, and adds their differences from the original."""
    top = 0
    for part in parts:
        error.add(original[top : top + len(part), : part.shape[1]], part)
        top += len(part)
        yield part


def _report(rows: list[dict[str, Any]], failures: Failures, vae: AutoencoderKL, weights: str, as_json: bool) -> None:
    """Prints a row for each picture, and their mean PSNR."""
    finite = [row["psnr"] for row in rows if row["psnr"] is not None]
    mean = sum(finite) / len(finite) if finite else None
    if as_json:
        figures = {"mean_psnr": mean, "failed": failures.document()}
        print_json({"weights": weights, "backend": vae.backend, "pictures": rows, **figures})
        return
    cells = [
        [
            row["picture"],
            text.pixels(*row["size"]),
            row["output"],
            text.pixels(*row["output_size"]),
            text.decibels(row["psnr"]),
        ]
        for row in rows
    ]
    if len(rows) > 1:
        cells.append(["mean", "", "", "", text.decibels(mean)])
    print_table(("picture", "px", "written", "px", "PSNR"), cells, numbers=(1, 3, 4))
    print_lines(f"{weights}, {placement(vae)}")

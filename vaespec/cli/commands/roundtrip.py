"""`vaespec roundtrip`: encodes and decodes pictures, and measures what the VAE loses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from vaespec.autoencoder import AutoencoderKL
from vaespec.cli import options, paths, picture_files, text
from vaespec.cli.console import Steps, print_json, print_table, progress
from vaespec.cli.failures import name_in_errors
from vaespec.cli.loading import open_model, placement
from vaespec.cli.picture_files import Pad
from vaespec.pictures import psnr


def roundtrip(
    pictures: options.Pictures,
    output: options.OutputFolder = Path("."),
    pad: options.Padding = Pad.FLOOR,
    sample: options.Sample = False,
    seed: options.SeedNumber = None,
    weights: options.Weights = "tiny",
    family: options.Family = None,
    strict: options.Strict = True,
    backend: options.BackendName = None,
    device: options.Device = None,
    dtype: options.Dtype = "float32",
    precision: options.Precision = "default",
    max_memory: options.MaxMemory = None,
    as_json: options.Json = False,
) -> None:
    """Encode and decode pictures. Write NAME-vae.png for each, and print its PSNR."""
    seeds = options.seeds(len(pictures), sample, seed)
    headers = picture_files.read_headers(pictures)
    outputs = paths.picture_outputs(output, pictures)
    vae = open_model(weights, family, backend, device, dtype, precision, strict)
    picture_files.require_fit(headers, vae.config, pad)
    rows = []
    with progress("roundtrip", 2 * len(pictures)) as step:
        vae.enable_tiling("auto", max_memory=max_memory, progress=step.part)
        for picture, target, its_seed in zip(pictures, outputs, seeds, strict=True):
            rows.append(_roundtrip(vae, picture, target, pad, its_seed, step))
    _report(rows, vae, weights, as_json)


def _roundtrip(
    vae: AutoencoderKL, picture: Path, target: Path, pad: Pad, seed: int | None, step: Steps
) -> dict[str, Any]:
    """Encodes and decodes one picture, in two steps; returns its row of the report."""
    original = picture_files.read(picture)
    with name_in_errors(picture):
        posterior = vae.encode(picture_files.framed(original, vae.config, pad))[0]
        step()
        z = posterior.mode() if seed is None else posterior.sample(seed=[seed])
        pixels = picture_files.joined(vae.decode_bands(z), vae, original.height, original.width)
        step()
    picture_files.write(target, pixels)
    h, w = pixels.shape[:2]
    ratio = psnr(np.asarray(original)[:h, :w], pixels)
    return {
        "picture": str(picture),
        "output": str(target),
        "size": [original.height, original.width],
        "output_size": [h, w],
        "psnr": ratio if math.isfinite(ratio) else None,
    }


def _report(rows: list[dict[str, Any]], vae: AutoencoderKL, weights: str, as_json: bool) -> None:
    """Prints a row for each picture, and their mean PSNR."""
    finite = [row["psnr"] for row in rows if row["psnr"] is not None]
    mean = sum(finite) / len(finite) if finite else None
    if as_json:
        print_json({"weights": weights, "backend": vae.backend, "pictures": rows, "mean_psnr": mean})
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
    print(f"{weights}, {placement(vae)}")

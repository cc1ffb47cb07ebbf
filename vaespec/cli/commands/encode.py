"""`vaespec encode`: pictures -> one file of latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from vaespec.architecture import ENCODER
from vaespec.autoencoder import AutoencoderKL
from vaespec.cli import latents_file, options, paths, picture_files, text
from vaespec.cli.console import print_json, print_lines, print_table, progress
from vaespec.cli.failures import Failures, name_in_errors
from vaespec.cli.latents_file import Entry, Latents
from vaespec.cli.limits import Limits, picture_tasks
from vaespec.cli.loading import open_weights, outline, place, placement, require_scale
from vaespec.cli.picture_files import Pad
from vaespec.ops import Array
from vaespec.pictures import Pixels


def encode(
    pictures: options.Pictures,
    output: options.OutputFile = Path("latents.safetensors"),
    raw: Annotated[
        bool, typer.Option("--raw", help="Write latents as the encoder returns them, not scaled for a diffusion model.")
    ] = False,
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
    """Encode pictures of any sizes into one .safetensors file. Decode it with the same --weights and --padding.

    Pictures that fail are left out and listed, and the exit code is 1.
    """
    seeds = options.seeds(len(pictures), sample, seed)
    failures = Failures()
    headers = picture_files.read_headers(pictures, failures)
    paths.require_file(output, ".safetensors")
    paths.require_apart(pictures, [output])
    opened, limits = open_weights(weights, family, strict), Limits(max_memory, offload_folder)
    model = outline(opened, backend, device, dtype, precision, padding)
    picture_files.require_channels(model.config, model.config.in_channels)
    headers = picture_files.fitting(headers, model.config, pad, failures)
    if not raw:
        require_scale(model.config, weights, "--raw for latents that are not scaled")
    headers = limits.affordable(model, headers, picture_tasks(model, headers, pad, [ENCODER]), failures)
    vae = place(weights, opened, backend, device, dtype, precision, padding)
    good = {header.path for header in headers}
    names = latents_file.tensor_names(pictures)
    work = [task for task in zip(names, pictures, seeds, strict=True) if task[1] in good]
    latents = _encode(vae, work, pad, raw, limits, failures)
    if latents.entries:
        size = latents_file.save(output, latents)
        _report(output, size, latents, failures, vae, as_json)
    failures.raise_any()


def _encode(
    vae: AutoencoderKL,
    work: Sequence[tuple[str, Path, int | None]],
    pad: Pad,
    raw: bool,
    limits: Limits,
    failures: Failures,
) -> Latents:
    """Returns the latents (C, h, w) of each picture that can be read, with the size of its pixels.

    The work is the name of a tensor, a picture, and a seed, for each.
    """
    tensors, entries = {}, []
    with progress("encode", len(work)) as step:
        limits.apply(vae, step)
        for name, picture, seed in work:
            with failures.caught(str(picture)):
                pixels = picture_files.read(picture, vae.config.in_channels, step.say)
                with name_in_errors(picture):
                    z = _latents(vae, picture_files.framed(pixels, vae.config, pad), seed, raw)
                tensors[name] = np.ascontiguousarray(vae.to_numpy(z)[0])
                height, width, _ = pixels.shape
                entries.append(Entry(name, latents_file.as_text(picture.name), height, width, pad, seed))
            step()
    return Latents(vae.config, not raw, tuple(entries), tensors)


def _latents(vae: AutoencoderKL, pixels: np.ndarray, seed: int | None, raw: bool) -> Array:
    """Encodes one picture (H, W, C) to (1, C, h, w)."""
    seeds = None if seed is None else [seed]
    if not raw:
        return vae.encode_latents(Pixels.of(pixels), seed=seeds)
    posterior = vae.encode(Pixels.of(pixels))[0]
    return posterior.mode() if seeds is None else posterior.sample(seed=seeds)


def _report(output: Path, size: int, latents: Latents, failures: Failures, vae: AutoencoderKL, as_json: bool) -> None:
    """Prints a row for each picture."""
    values = "normalized" if latents.normalized else "raw"
    pairs = [(entry, latents.tensors[entry.tensor].shape) for entry in latents.entries]
    if as_json:
        rows = [
            {"tensor": e.tensor, "file": e.file, "size": [e.height, e.width], "shape": list(shape)}
            for e, shape in pairs
        ]
        facts = {"output": str(output), "bytes": size, "values": values, "backend": vae.backend}
        print_json({**facts, "pictures": rows, "failed": failures.document()})
        return
    cells = [[e.file, text.pixels(e.height, e.width), e.tensor, text.shape(shape)] for e, shape in pairs]
    print_table(("picture", "px", "tensor", "shape"), cells, numbers=(1, 3))
    print_lines(f"{output}: {size:,} bytes, {values} latents, {placement(vae)}")

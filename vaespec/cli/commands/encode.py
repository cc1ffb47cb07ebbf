"""`vaespec encode`: pictures -> one file of latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from vaespec.autoencoder import AutoencoderKL
from vaespec.cli import latents_file, options, paths, picture_files, text
from vaespec.cli.console import print_json, print_table, progress
from vaespec.cli.failures import name_in_errors
from vaespec.cli.latents_file import Entry, Latents
from vaespec.cli.loading import open_model, placement, require_scale
from vaespec.cli.picture_files import Pad


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
    dtype: options.Dtype = "float32",
    precision: options.Precision = "default",
    max_memory: options.MaxMemory = None,
    as_json: options.Json = False,
) -> None:
    """Encode pictures of any sizes into one .safetensors file, with all that `vaespec decode` needs."""
    seeds = options.seeds(len(pictures), sample, seed)
    headers = picture_files.read_headers(pictures)
    paths.require_file(output, ".safetensors")
    paths.require_apart(pictures, [output])
    vae = open_model(weights, family, backend, device, dtype, precision, strict)
    picture_files.require_fit(headers, vae.config, pad)
    if not raw:
        require_scale(vae.config, weights, "--raw for latents that are not scaled")
    entries = latents_file.entries(headers, pad, seeds)
    latents = Latents(vae.config, not raw, entries, _encode(vae, pictures, entries, raw, max_memory))
    latents_file.save(output, latents)
    _report(output, latents, vae, as_json)


def _encode(
    vae: AutoencoderKL, pictures: Sequence[Path], entries: Sequence[Entry], raw: bool, max_memory: str | None
) -> dict[str, np.ndarray]:
    """Returns the latents (C, h, w) of each picture in the model's dtype, by the tensor's name."""
    tensors = {}
    with progress("encode", len(pictures)) as step:
        vae.enable_tiling("auto", max_memory=max_memory, progress=step.part)
        for entry, picture in zip(entries, pictures, strict=True):
            images = picture_files.framed(picture_files.read(picture), vae.config, entry.pad)
            seeds = None if entry.seed is None else [entry.seed]
            with name_in_errors(picture):
                if not raw:
                    z = vae.encode_latents(images, seed=seeds)
                else:
                    posterior = vae.encode(images)[0]
                    z = posterior.mode() if seeds is None else posterior.sample(seed=seeds)
            tensors[entry.tensor] = np.ascontiguousarray(vae.to_numpy(z)[0])
            step()
    return tensors


def _report(output: Path, latents: Latents, vae: AutoencoderKL, as_json: bool) -> None:
    """Prints a row for each picture."""
    size, values = output.stat().st_size, "normalized" if latents.normalized else "raw"
    pairs = [(entry, latents.tensors[entry.tensor].shape) for entry in latents.entries]
    if as_json:
        rows = [
            {"tensor": e.tensor, "file": e.file, "size": [e.height, e.width], "shape": list(shape)}
            for e, shape in pairs
        ]
        print_json({"output": str(output), "bytes": size, "values": values, "backend": vae.backend, "pictures": rows})
        return
    cells = [[e.file, text.pixels(e.height, e.width), e.tensor, text.shape(shape)] for e, shape in pairs]
    print_table(("picture", "px", "tensor", "shape"), cells, numbers=(1, 3))
    print(f"{output}: {size:,} bytes, {values} latents, {placement(vae)}")

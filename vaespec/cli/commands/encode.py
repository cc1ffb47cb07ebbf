"""`vaespec encode`: pictures -> one file of latents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from vaespec.autoencoder import AutoencoderKL
from vaespec.cli import latents_file, options, paths, picture_files, text
from vaespec.cli.console import print_json, print_table, progress
from vaespec.cli.failures import about
from vaespec.cli.framing import Pad, frame
from vaespec.cli.latents_file import Entry, Latents
from vaespec.cli.model import described, open_model, require_scale


def encode(
    pictures: options.Pictures,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")] = Path(
        "latents.safetensors"
    ),
    raw: Annotated[
        bool, typer.Option("--raw", help="Latents as the encoder makes them, not scaled for a diffusion model.")
    ] = False,
    pad: options.Padding = Pad.FLOOR,
    sample: options.Sample = False,
    seed: options.SeedNumber = None,
    weights: options.Weights = "tiny",
    family: options.Family = None,
    backend: options.BackendName = None,
    device: options.Device = None,
    dtype: options.Dtype = "float32",
    precision: options.Precision = "default",
    max_memory: options.MaxMemory = None,
    as_json: options.Json = False,
) -> None:
    """Encode pictures of any sizes into one .safetensors: a tensor for each, and all that `vaespec decode` needs."""
    seeds = options.seeds(len(pictures), sample, seed)
    found = picture_files.look_at(pictures)
    paths.require_file(output, ".safetensors")
    paths.require_apart(pictures, [output])
    vae = open_model(weights, family, backend, device, dtype, precision)
    picture_files.require_fit(found, vae.config, pad)
    if not raw:
        require_scale(vae.config, weights, ", or --raw for latents that are not scaled")
    names = latents_file.tensor_names(pictures)
    entries = tuple(
        Entry(name, picture.path.name, picture.height, picture.width, pad, its_seed)
        for name, picture, its_seed in zip(names, found, seeds, strict=True)
    )
    tensors = {}
    with progress("encode", len(pictures)) as step:
        vae.enable_tiling("auto", max_memory=max_memory, progress=step.part)
        for entry, picture in zip(entries, pictures, strict=True):
            tensors[entry.tensor] = _encode(vae, picture, pad, entry.seed, raw)
            step()
    latents = Latents(vae.config, not raw, entries, tensors)
    latents_file.save(output, latents)
    _report(output, latents, vae, as_json)


def _encode(vae: AutoencoderKL, picture: Path, pad: Pad, seed: int | None, raw: bool) -> np.ndarray:
    """(C, h, w), in the model's dtype."""
    images = frame(picture_files.read(picture), vae.config, pad)
    seeds = None if seed is None else [seed]
    with about(picture):
        if not raw:
            z = vae.encode_latents(images, seed=seeds)
        else:
            posterior = vae.encode(images)[0]
            z = posterior.mode() if seeds is None else posterior.sample(seed=seeds)
    return np.ascontiguousarray(vae.to_numpy(z)[0])


def _report(output: Path, latents: Latents, vae: AutoencoderKL, as_json: bool) -> None:
    """A row per picture."""
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
    print(f"{output}: {size:,} bytes, {values} latents, {described(vae)}")

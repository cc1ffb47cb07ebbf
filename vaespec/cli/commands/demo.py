"""`vaespec demo`: a photograph through the embedded VAE, in one line and without a framework."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from vaespec.autoencoder import AutoencoderKL
from vaespec.cli import options, paths, picture_files, picture_writing, text
from vaespec.cli.console import print_facts, print_json, progress
from vaespec.cli.loading import open_model, placement
from vaespec.cli.picture_grid import amplified, picture_grid
from vaespec.pictures import Pixels, psnr, to_pixels

FACTOR = 5  # of the difference, so that it can be seen


def demo(
    output: options.OutputFile = Path("vaespec-demo.png"),
    backend: options.BackendName = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    precision: options.Precision = "default",
    as_json: options.Json = False,
) -> None:
    """Encode and decode the embedded photograph with the embedded VAE. Write original, result and difference."""
    paths.require_file(output, ".png")
    vae = open_model("tiny", None, backend, device, dtype, precision)
    with progress("encode and decode"):
        original = picture_files.read(picture_files.PHOTOGRAPH)
        result, document = _measure(vae, original)
    picture_writing.write(output, _side_by_side(original, result, document["psnr"]))
    document["output"] = str(output)
    if as_json:
        print_json(document)
    else:
        print_facts(_facts(vae, document))


def _measure(vae: AutoencoderKL, original: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns the reconstruction (H, W, 3) uint8, and the figures."""
    images = Pixels.of(original)[...]
    start = time.perf_counter()
    latents = vae.to_numpy(vae.encode(images)[0].mode())
    encoded = time.perf_counter()
    sample = vae.to_numpy(vae.decode(latents)[0])
    decoded = time.perf_counter()
    pixels = to_pixels(sample)[0]
    return pixels, {
        "psnr": psnr(original, pixels),
        "image": list(images.shape[1:]),
        "latent": list(latents.shape[1:]),
        "compression": images.size / latents.size,
        "parameters": vae.num_parameters(),
        "backend": vae.backend,
        "device": str(vae.device or "cpu"),
        "dtype": vae.dtype,
        "encode_seconds": encoded - start,
        "decode_seconds": decoded - encoded,
    }


def _facts(vae: AutoencoderKL, document: dict[str, Any]) -> dict[str, str]:
    image, latent = (text.shape(document[key]) for key in ("image", "latent"))
    return {
        "image": f"{image} numbers",
        "latent": f"{latent} numbers, {document['compression']:g} times fewer",
        "PSNR": f"{document['psnr']:.2f} dB",
        "encode": f"{document['encode_seconds']:.2f} s",
        "decode": f"{document['decode_seconds']:.2f} s",
        "backend": placement(vae),
        "model": f"tiny, {document['parameters']:,} parameters",
        "written": f"{document['output']}: original, result, difference x {FACTOR}",
    }


def _side_by_side(original: np.ndarray, result: np.ndarray, ratio: float) -> np.ndarray:
    """Draws the original, the result and their difference."""
    difference = amplified(result.astype(int) - original, FACTOR)
    captions = "original", f"encoded and decoded: {ratio:.1f} dB", f"difference x {FACTOR}"
    return picture_grid([dict(zip(captions, (original, result, difference), strict=True))])

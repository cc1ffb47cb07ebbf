"""`vaespec compare --tiling`: shows that blended tiles change a picture, and that exact bands do not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from vaespec.autoencoder import AutoencoderKL
from vaespec.cli import options, paths, picture_files, picture_writing
from vaespec.cli.console import print_json, print_lines, print_table, progress
from vaespec.cli.failures import name_in_errors
from vaespec.cli.loading import open_model, placement
from vaespec.cli.picture_grid import amplified, picture_grid
from vaespec.errors import InputError
from vaespec.pictures import Pixels, to_pixels
from vaespec.pictures.values import with_channels

FACTOR = 20  # of the differences, so that seams can be seen
LEVELS = 127.5  # of 255, for a difference of 1 in [-1, 1]
BAND_ROWS = 16


def compare(
    picture: Annotated[
        Path, typer.Argument(metavar="PICTURE", help="A picture file; by default the demo's.", show_default=False)
    ] = picture_files.PHOTOGRAPH,
    tiling: Annotated[
        bool, typer.Option("--tiling", help="Compare no tiling, diffusers' blended tiles, and exact bands.")
    ] = False,
    tile: Annotated[
        int | None,
        typer.Option(
            "--tile", metavar="PX", min=1, help="Size of the blended tiles; by default two or more fit in the picture."
        ),
    ] = None,
    output: options.OutputFile = Path("vaespec-tiling.png"),
    weights: options.Weights = "tiny",
    family: options.Family = None,
    strict: options.Strict = True,
    backend: options.BackendName = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    precision: options.Precision = "default",
    padding: options.PaddingMode = "zeros",
    as_json: options.Json = False,
) -> None:
    """Encode and decode a picture untiled, in blended tiles and in exact bands. Write all results and differences.

    Errors are differences from the untiled result, on a scale of 0 to 255.
    """
    if not tiling:
        raise typer.BadParameter("choose a comparison: --tiling.", param_hint="--tiling")
    if "circular" in padding:
        raise typer.BadParameter(
            f"{padding}: blended tiles cannot be padded with their other end; choose another padding.",
            param_hint="--padding",
        )
    paths.require_file(output, ".png")
    paths.require_apart([picture], [output])
    header = picture_files.read_header(picture)
    vae = open_model(weights, family, backend, device, dtype, precision, strict, padding)
    picture_files.require_channels(vae.config, vae.config.in_channels, vae.config.out_channels)
    picture_files.require_fit(header, vae.config, pad=None)
    with progress("reading") as step:
        pixels = picture_files.read(picture, vae.config.in_channels, step.say)
    with name_in_errors(picture):
        images = _images(vae, pixels, tile or _tile(vae, min(pixels.shape[:2])))
    errors = _errors(images)
    picture_writing.write(output, _page(images, errors))
    _report(picture, output, errors, vae, as_json)


def _tile(vae: AutoencoderKL, side: int) -> int:
    """diffusers' tile size, or the largest that fits twice; its overlap, a quarter, is a whole number of latents."""
    unit = 4 * vae.config.downsampling_factor
    if side <= unit:
        raise InputError(f"one tile holds a picture with a side of {side} px: give one with more than {unit} px.")
    size = vae.config.sample_size
    return min(max(size if isinstance(size, tuple) else (size,)), max(unit, side // 2 // unit * unit))


def _images(vae: AutoencoderKL, pixels: np.ndarray, tile: int) -> dict[str, np.ndarray]:
    """Encodes and decodes the picture with each kind of tiling, the untiled result first."""
    images = {}
    with progress("comparing", 3) as step:
        for name, settings in (
            ("untiled", {"use_tiling": False}),
            (f"blended tiles of {tile} px", {"use_tiling": "blend", "tile_sample_min_size": tile}),
            (f"exact bands of {BAND_ROWS} rows", {"use_tiling": "exact", "band_rows": BAND_ROWS}),
        ):
            vae.enable_tiling(**settings)
            images[name] = vae.to_numpy(vae(Pixels.of(pixels))[0]).astype(np.float64)
            step()
    return images


def _errors(images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Differences from the first image, in levels of 255."""
    untiled, *others = images
    return {name: (images[name] - images[untiled]) * LEVELS for name in others}


def _page(images: dict[str, np.ndarray], errors: dict[str, np.ndarray]) -> np.ndarray:
    """Draws the results, and below them the differences."""
    (untiled,) = images.keys() - errors.keys()
    results = {name: with_channels(to_pixels(image)[0], 3) for name, image in images.items()}
    blank = {f"differences x {FACTOR}": np.full_like(results[untiled], 255)}
    differences = {
        f"mean {np.abs(error).mean():.2g}, max {np.abs(error).max():.2g} of 255": amplified(
            error[0].transpose(1, 2, 0), FACTOR
        )
        for error in errors.values()
    }
    return picture_grid([results, blank | differences])


def _report(picture: Path, output: Path, errors: dict[str, np.ndarray], vae: AutoencoderKL, as_json: bool) -> None:
    """Prints a row for each kind of tiling."""
    rows: list[dict[str, Any]] = [
        {"tiling": name, "mean": float(np.abs(error).mean()), "max": float(np.abs(error).max())}
        for name, error in errors.items()
    ]
    if as_json:
        print_json({"picture": str(picture), "output": str(output), "backend": vae.backend, "errors": rows})
        return
    cells = [[row["tiling"], f"{row['mean']:.2g}", f"{row['max']:.2g}"] for row in rows]
    print_table(("compared with untiled", "mean error of 255", "max"), cells, numbers=(1, 2))
    print_lines(f"{output}: results, and differences x {FACTOR}; {placement(vae)}")

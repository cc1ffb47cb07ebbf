"""`vaespec compare --tiling`: what tiles do to a picture, and that bands do nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from vaespec.autoencoder import AutoencoderKL
from vaespec.cli import options, paths, picture_files
from vaespec.cli.commands.demo import PICTURE
from vaespec.cli.console import print_json, print_table, progress
from vaespec.cli.failures import about
from vaespec.cli.framing import Pad
from vaespec.cli.model import described, open_model
from vaespec.cli.sheet import amplified, sheet
from vaespec.errors import InputError
from vaespec.pictures import to_pixels

AMPLIFIED = 20  # times, so that seams can be seen
LEVELS = 127.5  # of 255, for a difference of 1 in [-1, 1]
BAND_ROWS = 16


def compare(
    picture: Annotated[
        Path, typer.Argument(metavar="PICTURE", help="A picture file; by default the demo's.", show_default=False)
    ] = PICTURE,
    tiling: Annotated[bool, typer.Option("--tiling", help="Untiled, diffusers' blended tiles, exact bands.")] = False,
    tile: Annotated[
        int | None,
        typer.Option("--tile", metavar="PX", help="Size of the blended tiles; by default two or more fit the picture."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PNG", help="The file to write.")] = Path(
        "vaespec-tiling.png"
    ),
    weights: options.Weights = "tiny",
    family: options.Family = None,
    backend: options.BackendName = None,
    device: options.Device = None,
    dtype: options.Dtype = "float32",
    precision: options.Precision = "default",
    as_json: options.Json = False,
) -> None:
    """Encode and decode a picture untiled, in blended tiles and in exact bands: writes all three, and how they differ.

    Errors are differences from the untiled result, of 255.
    """
    if not tiling:
        raise typer.BadParameter("say what is to be compared: --tiling.", param_hint="--tiling")
    paths.require_file(output, ".png")
    paths.require_apart([picture], [output])
    found = picture_files.look_at([picture])
    vae = open_model(weights, family, backend, device, dtype, precision)
    picture_files.require_fit(found, vae.config, Pad.FLOOR)
    tile = tile or _tile(vae, min(found[0].height, found[0].width))
    images: dict[str, np.ndarray] = {}
    with about(picture), progress("comparing", 3) as step:
        original = picture_files.read(picture)
        for name, how in (
            ("untiled", {"use_tiling": False}),
            (f"blended tiles of {tile} px", {"use_tiling": "blend", "tile_sample_min_size": tile}),
            (f"exact bands of {BAND_ROWS} rows", {"use_tiling": "exact", "band_rows": BAND_ROWS}),
        ):
            vae.enable_tiling(**how)
            images[name] = vae.to_numpy(vae(original)[0]).astype(np.float64)
            step()
    errors = _errors(images)
    picture_files.write(output, _page(images, errors))
    _report(picture, output, errors, vae, as_json)


def _tile(vae: AutoencoderKL, side: int) -> int:
    """diffusers' own size, or the largest of which two fit; a quarter of it, the overlap, is whole latents."""
    unit = 4 * vae.config.downsampling_factor
    if side <= unit:
        raise InputError(f"a picture of {side} px on one side is one tile: give one of more than {unit} px.")
    size = vae.config.sample_size
    return min(max(size if isinstance(size, tuple) else (size,)), max(unit, side // 2 // unit * unit))


def _errors(images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Differences from the first, of 255."""
    untiled, *others = images
    return {name: (images[name] - images[untiled]) * LEVELS for name in others}


def _page(images: dict[str, np.ndarray], errors: dict[str, np.ndarray]) -> np.ndarray:
    """Results above, differences below."""
    (untiled,) = images.keys() - errors.keys()
    results = {name: to_pixels(image)[0] for name, image in images.items()}
    blank = {f"differences x {AMPLIFIED}": np.full_like(results[untiled], 255)}
    differences = {
        f"mean {np.abs(error).mean():.2g}, max {np.abs(error).max():.2g} of 255": amplified(
            error[0].transpose(1, 2, 0), AMPLIFIED
        )
        for error in errors.values()
    }
    return sheet([results, blank | differences])


def _report(picture: Path, output: Path, errors: dict[str, np.ndarray], vae: AutoencoderKL, as_json: bool) -> None:
    """A row for each way."""
    rows: list[dict[str, Any]] = [
        {"tiling": name, "mean": float(np.abs(error).mean()), "max": float(np.abs(error).max())}
        for name, error in errors.items()
    ]
    if as_json:
        print_json({"picture": str(picture), "output": str(output), "backend": vae.backend, "errors": rows})
        return
    cells = [[row["tiling"], f"{row['mean']:.2g}", f"{row['max']:.2g}"] for row in rows]
    print_table(("against the untiled result", "mean error of 255", "max"), cells, numbers=(1, 2))
    print(f"{output}: results, and differences x {AMPLIFIED}; {described(vae)}")

"""Picture files: reading, fitting to the model, and writing; a sentence for everything that is wrong with a file."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vaespec.autoencoder import AutoencoderKL
from vaespec.cli.failures import name_in_errors
from vaespec.cli.paths import written
from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError
from vaespec.ops import Array
from vaespec.pictures import as_rgb, to_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

# Eileen Collins, NASA 1992, public domain; scikit-image's `astronaut`, resized with Lanczos; not used in training.
PHOTOGRAPH = Path(__file__).parents[1] / "assets" / "astronaut.png"
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap height and width


class Pad(StrEnum):
    """What to do with a side that is not a multiple of f."""

    FLOOR = "floor"  # nothing: each level rounds down and drops the last rows and columns (as diffusers 0.42)
    EDGE = "edge"  # repeat the last row and column, below and to the right; crop after decoding


@dataclass(frozen=True)
class PictureFile:
    """A picture's size as its header says, after the rotation that its EXIF demands."""

    path: Path
    height: int
    width: int


def read_headers(paths: Sequence[Path]) -> list[PictureFile]:
    """Reads only the headers, so that a wrong file is reported before any work. Raises InputError."""
    headers = []
    for path in paths:
        with _opened(path) as picture:
            width, height = picture.size
            if picture.getexif().get(ORIENTATION) in SIDEWAYS:
                width, height = height, width
        headers.append(PictureFile(path, height, width))
    return headers


def require_fit(pictures: Sequence[PictureFile], config: AutoencoderConfig, pad: Pad | None) -> None:
    """Raises InputError if a picture is smaller than f, or if the model's images are not RGB. None: no padding."""
    if (config.in_channels, config.out_channels) != (3, 3):
        channels = f"{config.in_channels} channels in and {config.out_channels} out"
        raise InputError(f"the weights have {channels}, but pictures have 3: use the Python API.")
    f, remedy = config.downsampling_factor, "" if pad is None else ", or give --pad edge"
    for picture in pictures:
        if pad is not Pad.EDGE and min(picture.height, picture.width) < f:
            size = f"{picture.width} x {picture.height} px"
            raise InputError(
                f"{picture.path} is {size}, but the weights need at least {f} x {f} px: use a larger picture{remedy}."
            )


def read(path: Path) -> Image:
    """Reads a picture as 8-bit RGB, rotated as its EXIF demands (see `pictures.as_rgb`). Raises InputError."""
    with name_in_errors(path), _opened(path) as picture:
        picture.load()
        return as_rgb(picture)


def framed_size(height: int, width: int, config: AutoencoderConfig, pad: Pad) -> tuple[int, int]:
    """The size that the encoder gets: with EDGE a multiple of f px, times the patch of FLUX.2."""
    if pad is Pad.FLOOR:
        return height, width
    f, (p1, p2) = config.downsampling_factor, config.patch_size or (1, 1)
    return -(-height // (f * p1)) * f * p1, -(-width // (f * p2)) * f * p2


def framed(picture: Image, config: AutoencoderConfig, pad: Pad) -> Image:
    """Pads a picture to the size that the encoder gets."""
    from PIL import Image

    height, width = framed_size(picture.height, picture.width, config, pad)
    missing = (0, height - picture.height), (0, width - picture.width), (0, 0)
    if not any(map(any, missing)):
        return picture
    return Image.fromarray(np.pad(np.asarray(picture), missing, mode="edge"))


def joined(bands: Iterable[Array], vae: AutoencoderKL, height: int, width: int) -> np.ndarray:
    """Joins bands of an image, top down, to (H, W, 3) uint8, cropped to height x width; frees each before the next."""
    rows = (np.ascontiguousarray(to_pixels(vae.to_numpy(band))[0, :, :width]) for band in bands)
    return np.concatenate(list(rows))[:height]


def write(path: Path, pixels: np.ndarray) -> None:
    """Writes (H, W, 3) uint8 as a PNG, complete or not at all; creates its folder."""
    from PIL import Image

    with written(path) as part:
        Image.fromarray(pixels).save(part, format="PNG")


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    from PIL import Image, UnidentifiedImageError

    if path.is_dir():
        raise InputError(f"{path} is a folder: name the pictures in it, e.g. {path / '*.png'}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about size and odd metadata
            with Image.open(path) as picture:
                yield picture
    except FileNotFoundError:
        raise InputError(f"there is no file {path}: check the name.") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is not a picture that Pillow can read: give a PNG, JPEG, WebP or TIFF.") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} is too large ({error}): give a smaller picture.") from None
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise almost anything for damaged data
        if getattr(error, "errno", None) is not None:
            raise
        raise InputError(f"{path} is a damaged picture ({error}): copy or download it again.") from None

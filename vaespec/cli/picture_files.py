"""Picture files in and out, with a sentence for everything that is wrong with one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vaespec.autoencoder import AutoencoderKL
from vaespec.cli.failures import about
from vaespec.cli.framing import Pad
from vaespec.cli.paths import written
from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError
from vaespec.ops import Array
from vaespec.pictures import as_rgb, to_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap height and width


@dataclass(frozen=True)
class PictureFile:
    """A picture whose header has been read: its size as it is to be seen."""

    path: Path
    height: int
    width: int


def look_at(paths: Sequence[Path]) -> list[PictureFile]:
    """Read the headers, so that a wrong file is told before any work. Raises InputError."""
    found = []
    for path in paths:
        with _opened(path) as picture:
            width, height = picture.size
            if picture.getexif().get(ORIENTATION) in SIDEWAYS:
                width, height = height, width
        found.append(PictureFile(path, height, width))
    return found


def require_fit(pictures: Sequence[PictureFile], config: AutoencoderConfig, pad: Pad) -> None:
    """InputError for a model of other than colour pictures, or a picture that is smaller than f."""
    if (config.in_channels, config.out_channels) != (3, 3):
        raise InputError(
            f"the weights map {config.in_channels} channels to {config.out_channels}: the command line has pictures, "
            "which have 3; use the Python API."
        )
    f = config.downsampling_factor
    for picture in pictures:
        if pad is Pad.FLOOR and min(picture.height, picture.width) < f:
            size = f"{picture.width} x {picture.height} px"
            raise InputError(f"{picture.path} is {size}: the weights need {f} x {f} px at least; or give --pad edge.")


def read(path: Path) -> Image:
    """The picture as it is to be seen, 8-bit RGB (see `pictures.as_rgb`). Raises InputError."""
    with about(path), _opened(path) as picture:
        picture.load()
        return as_rgb(picture)


def developed(bands: Iterable[Array], vae: AutoencoderKL, height: int, width: int) -> np.ndarray:
    """Bands of an image, from the top down -> (H, W, 3) uint8, no larger than that; each is let go before the next."""
    rows = (np.ascontiguousarray(to_pixels(vae.to_numpy(band))[0, :, :width]) for band in bands)
    return np.concatenate(list(rows))[:height]


def write(path: Path, pixels: np.ndarray) -> None:
    """(H, W, 3) uint8 -> a PNG, whole or not at all; its folder is made if need be."""
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
        raise InputError(f"no file {path}.") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is not a picture that Pillow can read.") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} is too large a picture ({error}).") from None
    except (InputError, MemoryError):
        raise
    except Exception as error:  # for damaged data, Pillow's readers raise almost anything
        if getattr(error, "errno", None) is not None:
            raise
        raise InputError(f"{path} is a damaged picture ({error}).") from None

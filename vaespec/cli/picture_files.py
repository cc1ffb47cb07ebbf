"""Picture files: reading, fitting to the model, and writing; a sentence for everything that is wrong with a file."""

from __future__ import annotations

import io
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vaespec.autoencoder import AutoencoderKL
from vaespec.cli.failures import Failures, name_in_errors
from vaespec.cli.picture_writing import Depth
from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError
from vaespec.escaping import escaped
from vaespec.files import open_at_once
from vaespec.ops import Array
from vaespec.pictures import CHANNELS, as_pixels, header_size, reading, reading_bytes, to_pixels, value_bytes
from vaespec.pictures.tiff import FloatTiff
from vaespec.pictures.tiff import opened as float_tiff
from vaespec.weights.containers.safetensors import SAFETENSORS

if TYPE_CHECKING:
    from PIL.Image import Image

# Eileen Collins, NASA 1992, public domain; scikit-image's `astronaut`, resized with Lanczos; not used in training.
PHOTOGRAPH = Path(__file__).parents[1] / "assets" / "astronaut.png"

# The formats that are opened, by Pillow's names: pixels alone, decoded in this process. Left out are those for which
# Pillow starts a program (EPS) or asks the system to draw (WMF), its stubs (BUFR, GRIB, HDF5), and rare ones. TGA is
# the last, as it has no magic number.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "ICO", "TGA")
ANY_PICTURE = 192 << 20  # bytes that reading a picture may take, whatever the size of its file
MAX_RATIO = 4096  # beyond them, for each byte of the file; a PNG of one colour takes 2,400, a photograph less than 100
START = 16  # bytes by which another kind of file is recognized

# Pillow logs some damage before it raises an error; a logger without a handler prints on stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class Pad(StrEnum):
    """What to do with a side that is not a multiple of f."""

    FLOOR = "floor"  # nothing: each level rounds down and drops the last rows and columns (as diffusers 0.42)
    EDGE = "edge"  # repeat the last row and column, below and to the right; crop after decoding


@dataclass(frozen=True)
class PictureFile:
    """What a picture's header says: its size after the rotation that its EXIF demands, and the bytes to read it.

    `reading_bytes` holds them by the model's count of channels; `value_bytes` are those of each value that was read.
    The header serves for plans; the picture may be replaced before its pixels are read, whose size is the right one.
    """

    path: Path
    height: int
    width: int
    reading_bytes: Mapping[int, int]
    value_bytes: int = 1


def read_header(path: Path) -> PictureFile:
    """Reads only the header, so that a wrong file is reported before any work. Raises InputError."""
    with _opened(path) as (picture, size):
        needs = {channels: reading_bytes(picture, size, channels) for channels in CHANNELS}
        value = value_bytes(picture)
        return PictureFile(path, *header_size(picture), needs, value)  # the size last: for it Pillow may read a PNG


def read_headers(paths: Sequence[Path], failures: Failures) -> list[PictureFile]:
    """Reads the headers that can be read, and notes the files in which that fails.

    Raises InputError if a path names no file at all, or a folder or a pipe: that is a mistake in the command, whereas
    damage is a fault of one picture. Raises SomeFailedError if no picture is left.
    """
    for path in paths:
        _require_file(path)
    headers = []
    for path in paths:
        with failures.caught(str(path)):
            headers.append(read_header(path))
    failures.require_any(headers)
    return headers


def require_channels(config: AutoencoderConfig, *counts: int) -> None:
    """Raises InputError if the counts, of the channels of the model's images, are not those of pictures."""
    if not set(counts) <= set(CHANNELS):
        channels = f"{config.in_channels} channels in and {config.out_channels} out"
        raise InputError(
            f"the weights have {channels}, but pictures have 3, or 1 (grey) or 4 (with alpha): use the Python API."
        )


def require_fit(picture: PictureFile, config: AutoencoderConfig, pad: Pad | None) -> None:
    """Raises InputError if the picture is smaller than f. None: no padding."""
    f, remedy = config.downsampling_factor, "" if pad is None else ", or give --pad edge"
    if pad is not Pad.EDGE and min(picture.height, picture.width) < f:
        size = f"{picture.width} x {picture.height} px"
        raise InputError(
            f"{picture.path} is {size}, but the weights need at least {f} x {f} px: use a larger picture{remedy}."
        )


def fitting(
    pictures: Sequence[PictureFile], config: AutoencoderConfig, pad: Pad, failures: Failures
) -> list[PictureFile]:
    """The pictures that are not smaller than f; the others are noted as failures.

    Raises SomeFailedError if no picture is left.
    """
    large_enough = []
    for picture in pictures:
        with failures.caught(str(picture.path)):
            require_fit(picture, config, pad)
            large_enough.append(picture)
    failures.require_any(large_enough)
    return large_enough


def is_picture(path: Path) -> bool:
    """Whether a file begins like a picture."""
    try:
        with _opened(path):
            return True
    except InputError:
        return False


def read(path: Path, channels: int = 3, say: Callable[[str], None] = lambda line: None) -> np.ndarray:
    """Reads a picture as (H, W, channels) uint8, uint16 or float32, as a viewer shows it: see `pictures.as_pixels`.

    `say` gets a line about what was not kept. Raises InputError.
    """
    with (
        name_in_errors(path),
        _opened(path) as (picture, _),
        _silent_libtiff() if picture.format == "TIFF" else nullcontext(),
    ):
        return as_pixels(picture, channels, lambda line: say(escaped(f"{path}: {line}")))


def framed_size(height: int, width: int, config: AutoencoderConfig, pad: Pad) -> tuple[int, int]:
    """The size that the encoder gets: with EDGE a multiple of f px, times the patch of FLUX.2."""
    if pad is Pad.FLOOR:
        return height, width
    f, (p1, p2) = config.downsampling_factor, config.patch_size or (1, 1)
    return -(-height // (f * p1)) * f * p1, -(-width // (f * p2)) * f * p2


def framed(picture: np.ndarray, config: AutoencoderConfig, pad: Pad) -> np.ndarray:
    """Pads a picture (H, W, C) to the size that the encoder gets."""
    height, width, _ = picture.shape
    framed_height, framed_width = framed_size(height, width, config, pad)
    missing = (0, framed_height - height), (0, framed_width - width), (0, 0)
    return np.pad(picture, missing, mode="edge") if any(map(any, missing)) else picture


def decoded_rows(
    bands: Iterable[Array], vae: AutoencoderKL, height: int, width: int, depth: Depth
) -> Iterator[np.ndarray]:
    """The rows (h, W, C) of bands of an image, top down, cropped to height x width; frees each before the next."""
    left = height
    for band in bands:
        rows = np.ascontiguousarray(to_pixels(vae.to_numpy(band), depth)[0, :left, :width])
        del band
        left -= len(rows)
        if len(rows):
            yield rows


@contextmanager
def _silent_libtiff() -> Iterator[None]:
    """Hides what libtiff, the C library, prints on stderr about a damaged picture: the error says it once."""
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed, and prints nothing
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Image | FloatTiff, int]]:
    """A picture, its header read, and the size of its file in bytes. A TIFF that Pillow cannot open is a FloatTiff."""
    from PIL import Image, UnidentifiedImageError

    with reading(str(path)), _regular_file(path) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            Image.init()
            opened = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
        except UnidentifiedImageError:
            floats = float_tiff(file)
            if floats is None:
                file.seek(0)
                raise InputError(_no_picture(path, file.read(START))) from None
            _require_plausible(path, floats, size)
            yield floats, size
            return
        with opened as picture:
            _require_plausible(path, picture, size)
            yield picture, size


def _require_plausible(path: Path, picture: Image | FloatTiff, size: int) -> None:
    """Raises InputError if a few bytes announce more pixels than any picture but one of a single colour has in them."""
    need = reading_bytes(picture, size)
    if need > max(ANY_PICTURE, MAX_RATIO * size):
        raise InputError(
            f"{path} announces {picture.width} x {picture.height} px in {size:,} bytes, which would take "
            f"{need / 2**30:.1f} GiB to read: if they are all of one colour, save it as a PNG of 8 bits per channel."
        )


def _no_picture(path: Path, start: bytes) -> str:
    """Says what to do with a file that is no picture."""
    if SAFETENSORS.begins(start):
        return f"{path} holds tensors, not a picture: give pictures; latents are for `vaespec decode`, weights for -w."
    return f"{path} is not a picture of a kind that is read: give a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file."


class _ReadFile(io.BufferedReader):
    """A file that Pillow reads and does not map into memory: if it is cut meanwhile, a map would end the process."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self._end = self.seek(0, os.SEEK_END)
        self.seek(0)

    def fileno(self) -> int:
        raise io.UnsupportedOperation("a file to read")

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads no more than there is: Python takes the memory for `size` first, and a damaged file may say any."""
        left = max(0, self._end - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


@contextmanager
def _regular_file(path: Path) -> Iterator[io.BufferedReader]:
    """The file, open for reading. Raises InputError for what is no file, which may make us wait."""
    _require_file(path)  # before: to open a device may change it
    with _ReadFile(io.FileIO(path, opener=_open_regular)) as file:
        yield file


def _require_file(path: Path) -> None:
    """Raises InputError unless the path names a file."""
    with reading(str(path)):
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            raise InputError(f"there is no file {path}: check the name.") from None
        _require_regular(path, mode)


def _open_regular(path: str, flags: int) -> int:
    """Opens a file at once. Raises InputError for what has taken its place and is none."""
    descriptor = open_at_once(path, flags)
    try:
        _require_regular(Path(path), os.fstat(descriptor).st_mode)
    except InputError:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise InputError(f"{path} is a folder: name the pictures in it, e.g. {path / '*.png'}.")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is a pipe, a socket or a device: save the picture in a file, and name that file.")

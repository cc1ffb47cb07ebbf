"""Pillow's pictures <-> arrays in [-1, 1]. Pillow is imported only when there is a picture to convert."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from vaespec.errors import InputError, VaespecError

if TYPE_CHECKING:
    from PIL.Image import Image

ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap height and width
STRIP = 1 << 16  # pixels that are converted at one time

# Bytes per pixel that Pillow's decoders hold besides the picture: these need the whole of it at once. Measured.
WHOLE = {"WEBP": 12, "AVIF": 6}
JPEG2000_CHANNEL, PROGRESSIVE_JPEG = 5, 3

STRETCHED = {"L;2": 85, "L;4": 17}  # greys of 2 and 4 bits in a file -> 8 bits in memory


def is_picture(x: Any) -> bool:
    """Whether x is a Pillow image; looks at the names of its classes, so that Pillow is not imported."""
    return any(base.__module__ == "PIL.Image" and base.__name__ == "Image" for base in type(x).__mro__)


class Pixels:
    """Pictures of one size, stored in 8 bits; indexing converts that part to float32.

    An array (B, 3, H, W) in [-1, 1]: v / 127.5 - 1 for each value v of `as_rgb`. Raises InputError if sizes differ.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, pictures: Sequence[Image]) -> None:
        with reading("the input"):
            arrays = [as_rgb(picture) for picture in pictures]
        sizes = {(a.shape[1], a.shape[0]) for a in arrays}
        if len(sizes) > 1:
            raise InputError(f"pictures of sizes {sorted(sizes)} in one batch: give pictures of one size.")
        self._store(np.stack(arrays) if len(arrays) > 1 else arrays[0][None])

    @classmethod
    def of(cls, rgb: np.ndarray) -> Self:
        """One picture that was read before: (H, W, 3) uint8, which is not copied."""
        pixels = cls.__new__(cls)
        pixels._store(rgb[None])
        return pixels

    def _store(self, values: np.ndarray) -> None:
        """Store (B, H, W, 3) uint8."""
        self.values = values.transpose(0, 3, 1, 2)
        self.shape = self.values.shape

    def __getitem__(self, index: Any) -> np.ndarray:
        scaled = self.values[index] / np.float32(127.5)
        scaled -= np.float32(1.0)
        return np.ascontiguousarray(scaled)


def to_array(pictures: Sequence[Image]) -> np.ndarray:
    """Pictures of one size -> (B, 3, H, W) float32 in [-1, 1]."""
    return Pixels(pictures)[...]


def as_rgb(picture: Image) -> np.ndarray:
    """The picture as a viewer shows it: rotated as its EXIF says, on white if transparent, 8 bits: (H, W, 3) uint8.

    Damaged EXIF counts as none. Raises InputError if the white is not known, and Pillow's errors if damaged: `reading`.
    """
    with _quiet():
        transparent = _transparent_value(picture)  # before the pixels are read, as Pillow then forgets their depth
        picture.load()
        orientation = _orientation(picture)  # after: Pillow turns a TIFF itself, and then says that it is upright
        if picture.mode == "F" or (picture.mode == "I" and picture.format != "PPM"):
            raise InputError(
                f"a picture in Pillow's mode {picture.mode!r} has no known white: give 8 or 16 bits per channel."
            )
        width, height = picture.size
        rgb = np.empty((width, height, 3) if orientation in SIDEWAYS else (height, width, 3), np.uint8)
        rows, most = _before_rotation(rgb, orientation), max(1, STRIP // width)
        for top in range(0, height, most):
            bottom = min(height, top + most)
            rows[top:bottom] = _strip_as_rgb(picture.crop((0, top, width, bottom)), transparent)
        return rgb


def header_size(picture: Image) -> tuple[int, int]:
    """(height, width) as the header says, before any pixel is read: right for a plan, but the pixels may differ."""
    width, height = picture.size
    turned = picture.format != "TIFF" and _orientation(picture) in SIDEWAYS  # Pillow has swapped a TIFF's size already
    return (width, height) if turned else (height, width)


def reading_bytes(picture: Image, file_size: int) -> int:
    """Bytes that `as_rgb` holds at one time, if the header is true.

    `picture` has just been opened, from a file of `file_size` bytes.
    """
    stored = {"1": 1, "L": 1, "P": 1}.get(picture.mode, 2 if picture.mode.startswith("I;16") else 4)
    decoder = WHOLE.get(picture.format or "", 0)
    if picture.format == "JPEG2000":
        decoder = JPEG2000_CHANNEL * len(picture.getbands())
    elif "progressive" in picture.info:
        decoder = PROGRESSIVE_JPEG
    elif picture.format == "TIFF" and _orientation(picture) != 1:
        decoder = stored  # Pillow turns the whole
    compressed = picture.format == "TIFF" and picture.info.get("compression") != "raw"  # then the file is read whole
    pixels = math.prod(picture.size)
    # What the decoder holds is free when the 3 bytes of each pixel are written.
    return pixels * stored + max(pixels * decoder, file_size * compressed, pixels * 3)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Raises whatever Pillow's readers raise, which for damaged data is almost anything, as InputError."""
    from PIL import Image

    try:
        with _quiet():
            yield
    except VaespecError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large ({error}): give a smaller picture.") from None
    except MemoryError:
        raise InputError(f"{name} takes more memory than there is: give a smaller picture.") from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror is not None:
            raise InputError(f"{name} cannot be read ({error.strerror}): check the file and its disk.") from None
        raise InputError(f"{name} is a damaged picture ({error}): copy or download it again.") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Pillow's warnings of sizes and of odd metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _orientation(picture: Image) -> int:
    """The EXIF orientation, 1 to 8: 1, upright, if there is none, or none that can be read."""
    try:
        with _quiet():
            value: Any = picture.getexif().get(ORIENTATION)
            return int(value) if value in range(2, 9) else 1
    except Exception:  # a viewer shows the picture all the same
        return 1


def _before_rotation(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """A view of (H, W, 3) in which the rows and columns are those of the picture before it was rotated."""
    return {
        1: lambda: rgb,
        2: lambda: rgb[:, ::-1],
        3: lambda: rgb[::-1, ::-1],
        4: lambda: rgb[::-1],
        5: lambda: rgb.swapaxes(0, 1),
        6: lambda: np.rot90(rgb),
        7: lambda: rgb[::-1, ::-1].swapaxes(0, 1),
        8: lambda: np.rot90(rgb, -1),
    }[orientation]()


def _transparent_value(picture: Image) -> Any:
    """The picture's one transparent value or colour, in the units of its pixels in memory.

    A PNG gives it in the units of the file, as Pillow does; Pillow's pixels of 2 and 4 bits are stretched to 8, and of
    three channels of 16 bits only the upper bytes are left.
    """
    value, tiles = picture.info.get("transparency"), getattr(picture, "tile", None)
    stored = str(tiles[0][3]) if tiles else ""  # Pillow's name for the form of the pixels in the file
    if isinstance(value, int) and stored in STRETCHED:
        return value * STRETCHED[stored]
    if isinstance(value, tuple) and stored == "RGB;16B":
        return tuple(channel >> 8 for channel in value)
    return value


def _strip_as_rgb(strip: Image, transparent: Any) -> np.ndarray:
    """A part of a picture -> (H, W, 3) uint8, on white if transparent."""
    from PIL import Image

    if strip.mode.startswith("I"):  # 16 bits, also in a PGM, which Pillow scales to them; it would clip at 255
        values = np.asarray(strip)
        grey = np.rint(values / 257).astype(np.uint8)
        if transparent is not None:
            grey[values == transparent] = 255
        return grey[..., None]
    if not strip.has_transparency_data:
        return np.asarray(strip.convert("RGB"))
    if transparent is not None:
        strip.info["transparency"] = transparent
    if strip.mode == "La":
        strip = strip.convert("LA")
    white = Image.new("RGBA", strip.size, "white")
    return np.asarray(Image.alpha_composite(white, strip.convert("RGBA")).convert("RGB"))


def to_pixels(images: np.ndarray) -> np.ndarray:
    """(B, C, H, W), about [-1, 1] -> (B, H, W, C) uint8: clipped, then rounded."""
    scaled = np.clip(images.astype(np.float32), -1.0, 1.0) * np.float32(127.5) + np.float32(127.5)
    return np.rint(scaled).astype(np.uint8).transpose(0, 2, 3, 1)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures, dB: 10 log₁₀(255² / mean squared difference)."""
    squares = sum(int(np.sum((one.astype(np.int64) - other) ** 2)) for one, other in zip(a, b, strict=True))
    return float("inf") if squares == 0 else float(10.0 * np.log10(255.0**2 * a.size / squares))

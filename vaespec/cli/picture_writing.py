"""Writing pictures, row by row: PNG of 8 and 16 bits, TIFF of floats. Pillow writes no colours of more than 8 bits."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vaespec.cli.paths import written
from vaespec.errors import InputError

Size = tuple[int, int]  # (height, width)
PIECE = 1 << 20  # values


class Depth(StrEnum):
    """How the values of a picture are written."""

    EIGHT = "8"  # PNG
    SIXTEEN = "16"  # PNG
    FLOAT = "float"  # TIFF of float32 in which 1 is white, as the model returned them: beyond 0 and 1 as well

    @property
    def suffix(self) -> str:
        """The suffix of the files."""
        return ".tif" if self is Depth.FLOAT else ".png"


def write(path: Path, pixels: np.ndarray) -> None:
    """Writes (H, W, C) uint8 as a PNG, complete or not at all; creates its folder."""
    write_rows(path, [pixels], Depth.EIGHT)


def write_rows(path: Path, parts: Iterable[np.ndarray], depth: Depth) -> Size:
    """Writes parts (rows, W, C) of a picture, top down, complete or not at all; creates its folder.

    The values are those of `pictures.to_pixels` for the depth. Of 16 bits and floats, one part is in memory at a time.
    Returns (height, width).
    """
    with written(path) as part:
        return WRITERS[depth](part, _pieces(parts))


def require_room(path: Path, height: int, width: int, channels: int, depth: Depth) -> None:
    """Raises InputError for a picture that is too large for its file."""
    if depth is Depth.FLOAT and 4 * height * width * channels > LARGEST_TIFF:
        raise InputError(f"{path} of {width} x {height} px would exceed the 4 GiB of a TIFF: give --depth 16.")


def _pieces(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Cuts rows into parts of at most about PIECE values."""
    for part in parts:
        rows = max(1, PIECE // part[0].size)
        yield from (part[top : top + rows] for top in range(0, len(part), rows))


def _write_8(path: Path, parts: Iterator[np.ndarray]) -> Size:
    """Writes a PNG by Pillow, which needs the whole picture."""
    from PIL import Image

    pixels = np.concatenate(list(parts))
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path, format="PNG")
    height, width = pixels.shape[:2]
    return height, width


# -- PNG of 16 bits: https://www.w3.org/TR/png-3 -----------------------------------------------------------------------

SIGNATURE, UP = b"\x89PNG\r\n\x1a\n", 2  # the filter: each row is stored as its difference from the row above
COLOUR_TYPES = {1: 0, 3: 2, 4: 6}  # by channels


def _write_16(path: Path, parts: Iterator[np.ndarray]) -> Size:
    compressor, above = zlib.compressobj(), np.zeros((1, 1), np.uint8)
    height, width, channels = 0, 0, 0
    with path.open("wb") as file:
        file.write(SIGNATURE)
        _write_chunk(file, b"IHDR", bytes(13))  # for the place; the height is known at the end
        for part in parts:
            rows = np.ascontiguousarray(part.astype(">u2")).reshape(len(part), -1).view(np.uint8)
            before = np.concatenate((np.broadcast_to(above, rows[:1].shape), rows[:-1]))
            filtered = np.insert(rows - before, 0, UP, axis=1)
            if data := compressor.compress(filtered.tobytes()):
                _write_chunk(file, b"IDAT", data)
            above, channels = rows[-1:], part.shape[2]
            height, width = height + len(part), part.shape[1]
        _write_chunk(file, b"IDAT", compressor.flush())
        _write_chunk(file, b"IEND", b"")
        file.seek(len(SIGNATURE))
        _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, 0))
    return height, width


def _write_chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind)
    file.write(data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))


# -- TIFF of floats: TIFF 6.0 ------------------------------------------------------------------------------------------

START, LARGEST_TIFF = 8, 2**32 - 2**20  # bytes; offsets have 32 bits, and tags follow the pixels
STRIP_BYTES, LONG = 1 << 18, 4  # the type of a tag's values: 32 bits


def _write_float(path: Path, parts: Iterator[np.ndarray]) -> Size:
    """Writes the rows, not compressed, and the tags behind them."""
    height, width, channels = 0, 0, 0
    with path.open("wb") as file:
        file.write(bytes(START))
        for part in parts:
            file.write(np.ascontiguousarray(part, "<f4").data)
            height, width, channels = height + len(part), part.shape[1], part.shape[2]
        end = file.tell()
        file.write(_tags(height, width, channels, end))
        file.seek(0)
        file.write(struct.pack("<2sHI", b"II", 42, end))
    return height, width


def _tags(height: int, width: int, channels: int, offset: int) -> bytes:
    """The directory of a TIFF whose rows begin at START, and which is written at `offset`."""
    row = 4 * width * channels
    rows = max(1, min(height, STRIP_BYTES // row))
    tops = range(0, height, rows)
    tags: dict[int, Sequence[int]] = {
        256: [width],
        257: [height],
        258: [32] * channels,  # bits per sample
        259: [1],  # not compressed
        262: [1 if channels == 1 else 2],  # black is zero, or RGB
        273: [START + top * row for top in tops],
        277: [channels],
        278: [rows],
        279: [min(rows, height - top) * row for top in tops],
        284: [1],  # the channels of a pixel are together
        **({338: [2]} if channels == 4 else {}),  # alpha that is not multiplied into the colours
        339: [3] * channels,  # IEEE floats
    }
    entries, behind = b"", b""
    end = offset + 2 + 12 * len(tags) + 4
    for tag, values in tags.items():
        content = struct.pack(f"<{len(values)}I", *values)
        place = content if len(content) == 4 else struct.pack("<I", end + len(behind))
        behind += b"" if len(content) == 4 else content
        entries += struct.pack("<HHI", tag, LONG, len(values)) + place
    return struct.pack("<H", len(tags)) + entries + bytes(4) + behind


WRITERS: dict[Depth, Callable[[Path, Iterator[np.ndarray]], Size]] = {
    Depth.EIGHT: _write_8,
    Depth.SIXTEEN: _write_16,
    Depth.FLOAT: _write_float,
}

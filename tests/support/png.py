"""PNG files written by hand, chunk by chunk, of every depth and with any transparency."""

from __future__ import annotations

import struct
import zlib

import numpy as np

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


ADAM7 = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))  # y, x


def png(values: np.ndarray, depth: int, colour: int, interlaced: bool = False, **chunks: bytes) -> bytes:
    """A file of (H, W, C) integers of `depth` bits. `chunks` come before the pixels, by their names."""
    height, width, _ = values.shape
    passes = [values[y::dy, x::dx] for y, dy, x, dx in ADAM7] if interlaced else [values]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    pixels = zlib.compress(b"".join(_rows(part, depth) for part in passes if part.size))
    parts = {"IHDR": header, **chunks, "IDAT": pixels, "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name.encode(), data) for name, data in parts.items())


def _rows(values: np.ndarray, depth: int) -> bytes:
    height, width, channels = values.shape
    bits = np.unpackbits(values.astype(">u2").reshape(height, -1, 1).view(np.uint8), axis=2)[..., 16 - depth :]
    rows = np.packbits(bits.reshape(height, width * channels * depth), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in rows)  # filter 0


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

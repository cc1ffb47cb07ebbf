"""PNG files written by hand, chunk by chunk, of every depth and with any transparency."""

from __future__ import annotations

import struct
import zlib

import numpy as np

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


def png(values: np.ndarray, depth: int, colour: int, **chunks: bytes) -> bytes:
    """A file of (H, W, C) integers of `depth` bits. `chunks` come before the pixels, by their names."""
    height, width, channels = values.shape
    bits = np.unpackbits(values.astype(">u2").reshape(height, -1, 1).view(np.uint8), axis=2)[..., 16 - depth :]
    rows = np.packbits(bits.reshape(height, width * channels * depth), axis=1)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))  # filter 0
    parts = {"IHDR": header, **chunks, "IDAT": pixels, "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name.encode(), data) for name, data in parts.items())


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

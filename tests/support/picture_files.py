"""Small pictures of every format that vaespec reads, written by Pillow, as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def drawing(mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    """A ramp with some noise, so that every codec has work to do."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, size[0] * size[1] * 4).reshape(size[1], size[0], 4)
    picture = Image.fromarray((ramp + rng.integers(0, 55, ramp.shape)).astype(np.uint8), "RGBA")
    return picture.convert(mode)


def encoded(picture: Image.Image, kind: str, orientation: int | None = None, **options: object) -> bytes:
    """The bytes of the file that Pillow writes."""
    if orientation is not None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif.tobytes()
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _grey16() -> Image.Image:
    return Image.fromarray(np.arange(24 * 16, dtype=np.uint16).reshape(16, 24) * 170)


PICTURES: Mapping[str, bytes] = {
    "png": encoded(drawing(), "PNG"),
    "png, transparent": encoded(drawing("RGBA"), "PNG"),
    "png, palette": encoded(drawing("P"), "PNG", transparency=3),
    "png, 16-bit grey": encoded(_grey16(), "PNG"),
    "png, grey and alpha": encoded(drawing("LA"), "PNG"),
    "png, turned": encoded(drawing(), "PNG", orientation=6),
    "jpeg": encoded(drawing(), "JPEG"),
    "jpeg, progressive": encoded(drawing(), "JPEG", progressive=True),
    "jpeg, turned": encoded(drawing(), "JPEG", orientation=8),
    "jpeg, cmyk": encoded(drawing("CMYK"), "JPEG"),
    "webp": encoded(drawing(), "WEBP"),
    "webp, lossless": encoded(drawing("RGBA"), "WEBP", lossless=True),
    "tiff": encoded(drawing(), "TIFF"),
    "tiff, lzw": encoded(drawing(), "TIFF", compression="tiff_lzw"),
    "tiff, deflated": encoded(drawing("RGBA"), "TIFF", compression="tiff_deflate"),
    "tiff, turned": encoded(drawing(), "TIFF", orientation=5),
    "gif": encoded(drawing("P"), "GIF"),
    "bmp": encoded(drawing(), "BMP"),
    "ppm": encoded(drawing(), "PPM"),
}

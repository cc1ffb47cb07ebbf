"""Small pictures of every format that vaespec reads, as bytes: written by Pillow, or by tifffile, or by hand."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO

import numpy as np
from PIL import Image
from support.colour_profiles import rgb_profile
from support.png import GREY_ALPHA, RGB, png

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


def _values16(channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65536, (16, 24, channels))


def tiff(values: np.ndarray, **options: object) -> bytes:
    """The bytes of the TIFF of (H, W, C) values that tifffile writes."""
    import tifffile

    file = BytesIO()
    kind = "minisblack" if values.shape[2] < 3 else "rgb"
    extra = ["unassalpha"] if values.shape[2] % 2 == 0 else []
    values = values[..., 0] if values.shape[2] == 1 else values
    planar = "contig" if values.ndim == 3 else None
    tifffile.imwrite(file, values, photometric=kind, planarconfig=planar, extrasamples=extra, **options)
    return file.getvalue()


PICTURES: Mapping[str, bytes] = {
    "png": encoded(drawing(), "PNG"),
    "png, transparent": encoded(drawing("RGBA"), "PNG"),
    "png, palette": encoded(drawing("P"), "PNG", transparency=3),
    "png, 16-bit grey": encoded(_grey16(), "PNG"),
    "png, 16-bit colours": png(_values16(3), 16, RGB),
    "png, 16-bit grey and alpha": png(_values16(2), 16, GREY_ALPHA),
    "png, Adobe RGB": encoded(drawing(), "PNG", icc_profile=rgb_profile("Adobe RGB (1998)")),
    "png, grey and alpha": encoded(drawing("LA"), "PNG"),
    "png, turned": encoded(drawing(), "PNG", orientation=6),
    "jpeg": encoded(drawing(), "JPEG"),
    "jpeg, Display P3": encoded(drawing(), "JPEG", icc_profile=rgb_profile("Display P3")),
    "jpeg, progressive": encoded(drawing(), "JPEG", progressive=True),
    "jpeg, turned": encoded(drawing(), "JPEG", orientation=8),
    "jpeg, cmyk": encoded(drawing("CMYK"), "JPEG"),
    "webp": encoded(drawing(), "WEBP"),
    "webp, lossless": encoded(drawing("RGBA"), "WEBP", lossless=True),
    "tiff": encoded(drawing(), "TIFF"),
    "tiff, lzw": encoded(drawing(), "TIFF", compression="tiff_lzw"),
    "tiff, deflated": encoded(drawing("RGBA"), "TIFF", compression="tiff_deflate"),
    "tiff, 16-bit colours": tiff(_values16(4).astype(np.uint16), rowsperstrip=5),
    "tiff, floats": tiff(np.random.default_rng(0).random((16, 24, 3)).astype(np.float32), rowsperstrip=5),
    "tiff, floats in deflated tiles": tiff(np.zeros((16, 24, 4), np.float32), tile=(16, 16), compression="zlib"),
    "tiff, turned": encoded(drawing(), "TIFF", orientation=5),
    "gif": encoded(drawing("P"), "GIF"),
    "bmp": encoded(drawing(), "BMP"),
    "ppm": encoded(drawing(), "PPM"),
}

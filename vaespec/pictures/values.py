"""The values of pixels: 0 to 255, 0 to 65535, or floats in which 1 is white; and what transparency does to them."""

from __future__ import annotations

import numpy as np

EIGHT, SIXTEEN, FLOAT = np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float32)
WHITE = {EIGHT: 255, SIXTEEN: 65535, FLOAT: 1}  # the value of white, and of opaque, by dtype
DEPTHS = {"8": EIGHT, "16": SIXTEEN, "float": FLOAT}
LUMA = (19595, 38470, 7471)  # of 65536: the weights of red, green and blue in a grey, those of Pillow's mode L
CHANNELS = (1, 3, 4)  # of images that are pictures: grey, RGB, RGBA


def scaled(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The values in another depth: white stays white. Integers are clipped, then rounded."""
    if values.dtype == dtype:
        return values
    return _as(dtype, values / np.float32(WHITE[values.dtype] / WHITE[dtype]))


def with_channels(samples: np.ndarray, channels: int) -> np.ndarray:
    """Samples (H, W, 1 to 4): grey, grey and alpha, RGB or RGBA -> (H, W, channels) of the same dtype.

    4: RGBA, opaque if there is no alpha. 3: RGB, laid on white. 1: grey, of RGB laid on white.
    """
    colours, alpha = split(samples)
    if channels == 4:
        rgb = np.broadcast_to(colours, (*colours.shape[:2], 3))
        return np.concatenate((rgb, opaque(colours) if alpha is None else alpha), axis=2)
    if alpha is not None:
        colours = _on_white(colours, alpha)
    if channels == 1:
        return colours if colours.shape[2] == 1 else _grey(colours)
    return np.broadcast_to(colours, (*colours.shape[:2], 3))


def split(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The grey or the colours, and alpha if the count of channels is even."""
    return (samples[..., :-1], samples[..., -1:]) if samples.shape[2] % 2 == 0 else (samples, None)


def opaque(colours: np.ndarray) -> np.ndarray:
    """An alpha channel (H, W, 1) that hides nothing."""
    return np.full_like(colours[..., :1], WHITE[colours.dtype])


def straight(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours that were multiplied by alpha, divided by it; black where alpha is 0."""
    white = WHITE[colours.dtype]
    divided = colours.astype(np.float64) * white / np.where(alpha > 0, alpha, np.inf)
    return (
        divided.astype(FLOAT) if colours.dtype == FLOAT else np.rint(np.minimum(divided, white)).astype(colours.dtype)
    )


def _on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    white = WHITE[colours.dtype]
    if colours.dtype == FLOAT:
        return 1 + (colours - 1) * alpha
    wide = np.uint16 if colours.dtype == EIGHT else np.uint32  # holds white² and a half, and no half is rounded
    laid = colours.astype(wide) * alpha + wide(white) * (wide(white) - alpha)
    return ((laid + wide(white // 2)) // wide(white)).astype(colours.dtype)


def _as(dtype: np.dtype, values: np.ndarray) -> np.ndarray:
    """Values on the scale of the dtype, which they may exceed: rounded and clipped, or floats."""
    return values.astype(FLOAT) if dtype == FLOAT else np.rint(np.clip(values, 0, WHITE[dtype])).astype(dtype)


def _grey(colours: np.ndarray) -> np.ndarray:
    if colours.dtype == FLOAT:
        return (colours @ (np.array(LUMA, np.float32) / np.float32(65536)))[..., None]
    return ((colours @ np.array(LUMA, np.uint64) + 32768) >> 16).astype(colours.dtype)[..., None]

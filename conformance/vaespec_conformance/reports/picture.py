"""A picture of where the error is, small enough to be part of a report."""

from __future__ import annotations

import base64
import io

import numpy as np

LARGEST = 144
"""Pixels along a side. A smaller map is magnified, a larger one shows the worst of each block."""
WITHIN, BUDGET, BEYOND, FAR = ((247, 251, 255), (158, 202, 225), (252, 146, 114), (203, 24, 29))
"""The colours of no error, just within the budget, just beyond it, and the greatest error."""
MISSING = (0, 0, 0)  # NaN or infinity


def error_picture(error: np.ndarray) -> str:
    """Errors of any shape, in units of the budget -> PNG as a data URI.

    (B, C, H, W) shows the worst of B and C for every pixel, (B, N, C) the worst of B. NaN and infinity are black.
    """
    from PIL import Image

    plane = _shrunk(_plane(np.where(np.isfinite(error), error, np.inf)))
    factor = max(1, LARGEST // max(plane.shape))
    magnified = plane.repeat(factor, 0).repeat(factor, 1)
    file = io.BytesIO()
    Image.fromarray(_coloured(magnified)).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _plane(error: np.ndarray) -> np.ndarray:
    """Reduces to the last two axes, by the worst error over the others."""
    error = error.reshape((1,) * (2 - error.ndim) + error.shape) if error.ndim < 2 else error
    return error.max(axis=tuple(range(error.ndim - 2)))


def _shrunk(plane: np.ndarray) -> np.ndarray:
    """Reduces each side to at most LARGEST, by the worst error of blocks of equal size; the last may be smaller."""
    for axis in (0, 1):
        step = -(-plane.shape[axis] // LARGEST)
        plane = np.maximum.reduceat(plane, np.arange(0, plane.shape[axis], step), axis=axis)
    return plane


def _coloured(plane: np.ndarray) -> np.ndarray:
    """(H, W) -> (H, W, 3) bytes: linear within the budget, logarithmic beyond it up to the greatest error."""
    beyond, greatest = plane > 1, plane[np.isfinite(plane)].max(initial=10.0)
    part = np.where(beyond, np.log(np.clip(plane, 1, greatest)) / np.log(greatest), plane)[..., np.newaxis]
    low, high = (np.where(beyond[..., np.newaxis], b, a) for a, b in ((WITHIN, BEYOND), (BUDGET, FAR)))
    colours = np.rint(low + part * (np.asarray(high, float) - low)).astype(np.uint8)
    return np.where(np.isinf(plane)[..., np.newaxis], np.array(MISSING, np.uint8), colours)

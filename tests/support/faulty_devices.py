"""Backends that are NumPy's, but fail from a size of their maps on, as devices do; and one that is right."""

from __future__ import annotations

import numpy as np

from vaespec import ReferenceOps
from vaespec_conformance.mutants.mutant import ChangedBackend, with_methods
from vaespec_numpy import backend as numpy_backend
from vaespec_numpy.ops import NumpyOps

FROM = 80
"""The height of a map from which on the faults show."""
FIRST_ROW, LAST_ROWS, TILE = 70, 5, (32, 64)


def in_convolutions(fault):
    """A backend whose large 3 x 3 convolutions go through fault(y, x), on copies in the order (B, C, H, W)."""

    def conv2d(self, x, w, b, *, stride, padding):
        y = NumpyOps.conv2d(self, x, w, b, stride=stride, padding=padding)
        image = np.array(self.to_numpy(self.to_nchw(y)))
        if image.shape[2] < FROM:
            return y
        return self.from_nchw(self.from_numpy(fault(image, self, x, w, b, stride, padding)))

    return ChangedBackend(numpy_backend, lambda ops: with_methods(ops, conv2d=conv2d))


def zeros_from_a_row(y, *_):
    y[:, :, FIRST_ROW:] = 0
    return y


def stale_last_rows(y, *_):
    y[:, :, -LAST_ROWS:] = y[:, :, :LAST_ROWS]
    return y


def wrapped_index(y, *_):
    flat = y.reshape(-1)
    flat[2**16 :] = flat[: max(0, flat.size - 2**16)]
    return y


def zero_tile(y, *_):
    y[:, :, slice(*TILE), slice(*TILE)] = 0
    return y


def narrow_products(y, ops, x, w, b, stride, padding):
    """TF32: 10 bits of each factor."""
    factors = (a.view(np.uint32) + np.uint32(0x1000) & np.uint32(0xFFFFE000) for a in map(np.array, (x, w)))
    short = [a.view(np.float32) for a in factors]
    return np.array(ops.to_nchw(NumpyOps.conv2d(ops, *short, b, stride=stride, padding=padding)))


def not_a_number(y, *_):
    y[:, :, -1, -1] = np.nan
    return y


def raising(y, *_):
    raise RuntimeError("MPSGraph does not support tensor dims larger than INT_MAX")


def refusing(y, *_):
    raise RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GiB)")


Clean = ChangedBackend(numpy_backend, lambda ops: with_methods(ops))
Elsewhere = ChangedBackend(numpy_backend, lambda ops: with_methods(ops, on_host=False))
Zeros, Stale, Wrapped, Tile, Narrow, Nan, Raising, Full = map(
    in_convolutions,
    (zeros_from_a_row, stale_last_rows, wrapped_index, zero_tile, narrow_products, not_a_number, raising, refusing),
)


class SmallBroken(ReferenceOps):
    """Wrong at every size: SiLU is a ReLU."""


Everywhere = ChangedBackend(numpy_backend, lambda ops: with_methods(ops, silu=lambda self, x: np.maximum(x, 0)))

"""The layout of the kernels in a file, detected by their shapes, and conversion to and from the canonical one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vaespec.errors import WeightMapError
from vaespec.layouts import HWIO, OHWI, OIHW, Layout
from vaespec.parameter import Parameter

Shape = tuple[int, ...]

LAYOUTS = (OIHW, OHWI, HWIO)


def oihw_shape(shape: Shape, layout: Layout) -> Shape:
    """The shape of a kernel in this layout, in canonical order."""
    return tuple(shape[axis] for axis in layout.permutation(len(shape), OIHW))


def canonical_shape(shape: Shape, row: Parameter, layout: Layout) -> Shape:
    """The shape of a stored tensor in canonical order; equal to `row.shape` if the tensor can be that parameter.

    Linear maps may be stored as 1 × 1 convolutions, and 1 × 1 convolutions as linear maps.
    """
    if row.is_counter and shape == (1,):
        return row.shape  # some writers have no 0-d arrays
    if row.role not in ("conv", "linear"):
        return shape
    ordered = oihw_shape(shape, layout)
    return row.shape if _kernel(ordered) == _kernel(row.shape) else ordered


def to_canonical(a: np.ndarray, row: Parameter, layout: Layout) -> np.ndarray:
    """A stored tensor in the parameter's shape; a view."""
    if row.role in ("conv", "linear"):
        a = layout.convert(a, OIHW)
    return a.reshape(row.shape)


def to_stored(a: np.ndarray, row: Parameter, layout: Layout, axes: int) -> np.ndarray:
    """A canonical kernel with 2 or 4 axes in this layout: undoes `to_canonical`; a view."""
    if row.role not in ("conv", "linear"):
        return a
    kernel = a.reshape(_kernel(row.shape)[:axes])
    return OIHW.convert(kernel, layout)


def _kernel(shape: Shape) -> Shape:
    """(O, I) as (O, I, 1, 1)."""
    return shape + (1,) * (4 - len(shape))


def detect(shapes: Iterable[tuple[str, Shape]], preferred: Layout, path: Path) -> Layout:
    """The layout in which these kernels of resnets are 3 × 3; `preferred` if several layouts are possible.

    Other kernels mislead: a first convolution of 3 channels has one shape in two layouts, and a 1 × 1 one of kl-f4
    with 3 channels looks like a 3 × 3 one. Raises WeightMapError if no layout explains all of them.
    """
    kernels = [(name, shape) for name, shape in shapes if len(shape) == 4]
    fit = [layout for layout in LAYOUTS if all(_is_3x3(shape, layout) for _, shape in kernels)]
    if not fit:
        examples = (next(((n, s) for n, s in kernels if _is_3x3(s, layout)), None) for layout in LAYOUTS)
        shown = ", ".join(f"{name} {shape}" for name, shape in filter(None, examples)) or f"{kernels[0]}"
        raise WeightMapError(f"the convolutions of {path} are not all in one layout ({shown}): get the file again.")
    return preferred if preferred in fit else fit[0]


def _is_3x3(shape: Shape, layout: Layout) -> bool:
    return tuple(shape[layout.conv.index(axis)] for axis in "HW") == (3, 3)

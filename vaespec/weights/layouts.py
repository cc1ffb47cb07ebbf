"""The order of a kernel's axes in a file, told from its shape; names say nothing about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vaespec.errors import WeightMapError
from vaespec.parameters import Parameter

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Convolution kernels and linear maps, as in `KernelLayout`: a permutation of "OIHW" and of "OI"."""

    conv_layout: str
    linear_layout: str = "OI"

    def canonical_axes(self, ndim: int) -> list[int]:
        """For each canonical axis of a stored kernel, where it is. What has three axes is a linear map (O, I, 1)."""
        if ndim == 4:
            return [self.conv_layout.index(axis) for axis in "OIHW"]
        if ndim == 2:
            return [self.linear_layout.index(axis) for axis in "OI"]
        return list(range(ndim))


OIHW = Layout("OIHW")  # PyTorch
OHWI = Layout("OHWI")  # MLX
HWIO = Layout("HWIO", "IO")  # Flax; its linear maps are square here, so no shape can tell
LAYOUTS = (OIHW, OHWI, HWIO)


def canonical_shape(shape: Shape, row: Parameter, layout: Layout) -> Shape:
    """The shape of a stored tensor in canonical order: `row.shape` if it is that parameter.

    Linear maps may be stored as 1 × 1 convolutions, and those as linear maps.
    """
    if row.role == "counter" and shape == (1,):
        return row.shape  # some writers have no 0-d arrays
    if row.role not in ("conv", "linear"):
        return shape
    ordered = tuple(shape[axis] for axis in layout.canonical_axes(len(shape)))
    return row.shape if _kernel(ordered) == _kernel(row.shape) else ordered


def to_canonical(a: np.ndarray, row: Parameter, layout: Layout) -> np.ndarray:
    """A stored tensor in the parameter's shape; a view."""
    if row.role in ("conv", "linear"):
        a = a.transpose(layout.canonical_axes(a.ndim))
    return a.reshape(row.shape)


def to_stored(a: np.ndarray, row: Parameter, layout: Layout, axes: int) -> np.ndarray:
    """The inverse: a canonical kernel with 2 or 4 axes in the order of the layout; a view."""
    if row.role not in ("conv", "linear"):
        return a
    kernel = a.reshape(_kernel(row.shape)[:axes])
    return kernel.transpose(np.argsort(layout.canonical_axes(axes)))


def _kernel(shape: Shape) -> Shape:
    """(O, I) as (O, I, 1, 1)."""
    return shape + (1,) * (4 - len(shape))


def detect(shapes: Iterable[tuple[str, Shape]], preferred: Layout) -> Layout:
    """The layout that the 3 × 3 kernels of resnets have; `preferred` where their shapes allow several.

    Others mislead: a first convolution of 3 channels looks the same in two layouts, and a 1 × 1 one of kl-f4, which
    has 3 channels, like a 3 × 3 one. WeightMapError where no layout has them all.
    """
    kernels = [(name, shape) for name, shape in shapes if len(shape) == 4]
    fit = [layout for layout in LAYOUTS if all(_is_3x3(shape, layout) for _, shape in kernels)]
    if not fit:
        examples = (next(((n, s) for n, s in kernels if _is_3x3(s, layout)), None) for layout in LAYOUTS)
        told = ", ".join(f"{name} {shape}" for name, shape in filter(None, examples)) or f"{kernels[0]}"
        raise WeightMapError(f"the convolutions are in no one layout ({told}): the file mixes several.")
    return preferred if preferred in fit else fit[0]


def _is_3x3(shape: Shape, layout: Layout) -> bool:
    return tuple(shape[layout.conv_layout.index(axis)] for axis in "HW") == (3, 3)

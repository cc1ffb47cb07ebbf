"""Layout: the order of axes in which a framework or a file stores its kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Layout:
    """The axes of convolution kernels, a permutation of "OIHW", and of linear maps, a permutation of "OI"."""

    conv: str = "OIHW"
    linear: str = "OI"

    def permutation(self, ndim: int, to: Layout) -> tuple[int, ...]:
        """The axes argument of transpose that brings a kernel of `ndim` axes from this layout to the layout `to`.

        An array with neither 4 nor 2 axes is no kernel, and its axes stay.
        """
        match ndim:
            case 4:
                return tuple(self.conv.index(axis) for axis in to.conv)
            case 2:
                return tuple(self.linear.index(axis) for axis in to.linear)
        return tuple(range(ndim))

    def convert(self, kernel: np.ndarray, to: Layout) -> np.ndarray:
        """Converts a kernel from this layout to the layout `to`; returns a view."""
        return kernel.transpose(self.permutation(kernel.ndim, to))


OIHW = Layout("OIHW", "OI")
"""The canonical layout, that is, diffusers' and PyTorch's."""
OHWI = Layout("OHWI", "OI")
"""MLX's layout."""
HWIO = Layout("HWIO", "IO")
"""The layout of JAX, Flax and vaespec's CPU engine."""

"""The operations of a run, put off until their results are read, so that fewer maps are written and read again.

A norm, an activation and a doubling are computed while the convolution behind them reads. A convolution is computed
when it is read, and where that is for the sum with a residual, it is added while the convolution stores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np

from vaespec.ops import Padding
from vaespec_cpu.lazy import Convolved, Doubled, Normalised, whole
from vaespec_cpu.threads import Scratch
from vaespec_numpy.ops import NumpyOps

Map = Any
"""An array (B, H, W, C), or one of vaespec_cpu.lazy."""


class FusedOps(NumpyOps):
    """NumpyOps for one run. Maps may be sources; tokens are arrays."""

    fuses = True

    def __init__(self, dtype: str, precision: str = "default") -> None:
        super().__init__(dtype, precision)
        self.scratch = Scratch(self.arithmetic)

    def inference_ops(self, params: Mapping[str, np.ndarray]) -> tuple[Self, Mapping[str, np.ndarray]]:
        """These."""
        return self, params

    def rows(self, x: Map, start: int, stop: int) -> Map:
        """Rows of a doubled map stay what they are: not computed yet."""
        return x.rows(start, stop) if isinstance(x, Doubled) else super().rows(whole(x), start, stop)

    def to_array(self, x: Map) -> np.ndarray:
        return whole(x)

    materialize = to_array

    def to_nchw(self, x: Map) -> np.ndarray:
        return super().to_nchw(whole(x))

    def conv2d(self, x: Map, w: np.ndarray, b: np.ndarray, *, stride: int, padding: Padding) -> Convolved:  # type: ignore[override]
        """Computed by the first who reads it."""
        x = x.whole() if isinstance(x, Convolved) else x
        conv2d = partial(super().conv2d, x, w, b, stride=stride, padding=padding)
        return Convolved(lambda residual: conv2d(residual=residual))

    def group_norm(  # type: ignore[override]
        self, x: Map, scale: np.ndarray, shift: np.ndarray, *, groups: int, eps: float
    ) -> Normalised:
        """Of moments that are known, computed by whoever reads it."""
        return self.group_normalised(whole(x), scale, shift, groups=groups, eps=eps)

    def normalize(  # type: ignore[override]
        self, x: Map, mean: np.ndarray, sigma2: np.ndarray, scale: np.ndarray, shift: np.ndarray, *, eps: float
    ) -> Normalised:
        return self.normalised(whole(x), mean, sigma2, scale, shift, eps=eps)

    def channel_statistics(self, x: Map) -> tuple[np.ndarray, np.ndarray]:
        return super().channel_statistics(whole(x))

    def silu(self, x: Map) -> Map:
        return self._activated("silu", x)

    def mish(self, x: Map) -> Map:
        return self._activated("mish", x)

    def gelu(self, x: Map) -> Map:
        return self._activated("gelu", x)

    def relu(self, x: Map) -> Map:
        return self._activated("relu", x)

    def _activated(self, name: str, x: Map) -> Map:
        """With the norm before it, where there is one."""
        if isinstance(x, Normalised) and x.activation is None:
            return replace(x, activation=self.activation(name))
        return getattr(super(), name)(whole(x))

    def upsample_nearest2x(self, x: Map) -> Doubled:  # type: ignore[override]
        return Doubled.of(whole(x))

    def add(self, x: Map, y: Map) -> np.ndarray:
        """By a convolution that nobody has read; of two, by the first, so that the source of the other is let go."""
        for one, other in ((x, y), (y, x)):
            if isinstance(one, Convolved) and one.compute is not None:
                return one.plus(whole(other))
        return super().add(whole(x), whole(y))

    def tokens(self, x: Map) -> np.ndarray:
        return super().tokens(whole(x))

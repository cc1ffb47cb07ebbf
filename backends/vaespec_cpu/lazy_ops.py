"""LazyOps: the operations of one run, deferred until their results are read, so that fewer maps are written and read.

A norm, an activation and an upsampling are computed while the next convolution reads. A convolution is computed when
its result is read; if the reader adds a residual, the residual is added while the convolution stores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np

from vaespec.ops import Padding
from vaespec_cpu.lazy import Convolved, Normalized, Upsampled2x, whole
from vaespec_cpu.memory import Array, Scratch
from vaespec_cpu.memory_model import LazyMemoryOps
from vaespec_cpu.ops import CpuOps

Map = Any
"""An array (B, H, W, C), or a lazy feature map of vaespec_cpu.lazy."""


class LazyOps(CpuOps):
    """CpuOps for one run, without gradients. Maps may be lazy; tokens are arrays.

    A framework whose arrays are in the memory of the process gives `as_numpy` and `as_array`, which convert the input
    and the result of the model.
    """

    def __init__(
        self,
        dtype: str,
        precision: str = "default",
        as_numpy: Callable[[Any], Array] = np.asarray,
        as_array: Callable[[Array], Any] = np.asarray,
    ) -> None:
        super().__init__(dtype, precision)
        self.as_numpy, self.as_array = as_numpy, as_array
        self.scratch = Scratch(self.arithmetic)

    def inference_ops(self, params: Mapping[str, Array]) -> tuple[Self, Mapping[str, Array]]:
        """Already prepared for one run: return self and params unchanged."""
        return self, params

    def shape_ops(self) -> LazyMemoryOps:
        return LazyMemoryOps(self, self.forms, self.arithmetic.itemsize)

    def rows(self, x: Map, start: int, stop: int) -> Map:
        """Return rows of a map; rows of an upsampled map are not computed yet."""
        return x.rows(start, stop) if isinstance(x, Upsampled2x) else super().rows(whole(x), start, stop)

    def materialize(self, x: Map) -> Array:
        return whole(x)

    def from_nchw(self, x: Any) -> Array:
        return super().from_nchw(self.as_numpy(x))

    def to_nchw(self, x: Map) -> Any:
        return self.as_array(super().to_nchw(whole(x)))

    def conv2d(self, x: Map, w: Array, b: Array, *, stride: int, padding: Padding) -> Convolved:  # type: ignore[override]
        """Defer the convolution until its result is read."""
        x = x.whole() if isinstance(x, Convolved) else x
        conv2d = partial(super().conv2d, x, w, b, stride=stride, padding=padding)
        return Convolved(lambda residual: conv2d(residual=residual))

    def group_norm(  # type: ignore[override]
        self, x: Map, scale: Array, shift: Array, *, groups: int, eps: float
    ) -> Normalized:
        return self.lazy_group_norm(whole(x), scale, shift, groups=groups, eps=eps)

    def channel_statistics(self, x: Map) -> tuple[Array, Array]:
        return super().channel_statistics(whole(x))

    def normalize(  # type: ignore[override]
        self, x: Map, mean: Array, sigma2: Array, scale: Array, shift: Array, *, eps: float
    ) -> Normalized:
        return self.lazy_normalize(whole(x), mean, sigma2, scale, shift, eps=eps)

    def silu(self, x: Map) -> Map:
        return self._activated("silu", x)

    def mish(self, x: Map) -> Map:
        return self._activated("mish", x)

    def gelu(self, x: Map) -> Map:
        return self._activated("gelu", x)

    def relu(self, x: Map) -> Map:
        return self._activated("relu", x)

    def _activated(self, name: str, x: Map) -> Map:
        """Join the activation to the norm before it, if there is one."""
        if isinstance(x, Normalized) and x.activation is None:
            return replace(x, activation=self.activation(name))
        return getattr(super(), name)(whole(x))

    def add(self, x: Map, y: Map) -> Array:
        """Add while a convolution stores that nobody has read yet: of two, the first, to free the other's input."""
        for one, other in ((x, y), (y, x)):
            if isinstance(one, Convolved) and one.compute is not None:
                return one.plus(whole(other))
        return super().add(whole(x), whole(y))

    def upsample_nearest2x(self, x: Map) -> Upsampled2x:  # type: ignore[override]
        return Upsampled2x.of(whole(x))

    def tokens(self, x: Map) -> Array:
        return super().tokens(whole(x))

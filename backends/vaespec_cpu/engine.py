"""Engine: the fast operations for a framework whose arrays are in the memory of the process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vaespec.layouts import HWIO, Layout
from vaespec.ops import Array
from vaespec.parameter import Parameter
from vaespec_cpu.lazy_ops import LazyOps


@dataclass(frozen=True)
class Engine:
    """Runs a model on a framework's arrays, in `dtype`. Nothing is recorded for gradients.

    `xp` is the framework's Array API namespace, `layout` the layout of its kernels. `as_numpy` returns an array's
    memory as NumPy's, without a copy, whatever the order of its axes in memory; `as_array` is its inverse.
    """

    xp: Any
    dtype: str
    layout: Layout
    as_numpy: Callable[[Array], np.ndarray]
    as_array: Callable[[np.ndarray], Array]

    def ops(self) -> LazyOps:
        """Return the operations for one run, which take and return the framework's arrays."""
        return LazyOps(self.dtype, as_numpy=self.as_numpy, as_array=self.as_array)

    def params(self, params: Mapping[str, Array]) -> dict[str, np.ndarray]:
        """Return the framework's weights as the operations read them: the same memory, kernels as HWIO and IO."""
        return {name: self.layout.convert(self.as_numpy(a), HWIO) for name, a in params.items()}

    def load_params(self, params: Mapping[str, np.ndarray], table: Mapping[str, Parameter]) -> dict[str, Array]:
        """Load canonical weights as the framework's arrays, whose memory is in the order that the operations read."""
        loaded = self.ops().load_params(params, table)
        return {name: self._in_layout(self.as_array(loaded.pop(name))) for name in params}

    def ordered(self, array: Array, contiguous: Callable[[Array], Array]) -> Array:
        """Return a parameter of the framework with its memory in the order that the operations read.

        `contiguous` copies an array, if necessary, so that its axes are in memory in their order.
        """
        axes = self.layout.permutation(array.ndim, HWIO)
        return self._in_layout(contiguous(self.xp.permute_dims(array, axes)))

    def _in_layout(self, array: Array) -> Array:
        """A kernel stored as HWIO, with its axes in the framework's order: a view."""
        return self.xp.permute_dims(array, HWIO.permutation(array.ndim, self.layout))

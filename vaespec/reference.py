"""ReferenceOps: the specification as a backend, and what every other backend inherits from it.

A backend subclasses it and overrides what its framework does faster; everything it leaves alone still works
(`provenance` says which is which).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vaespec.dtypes import all_finite
from vaespec.layouts import OIHW, Layout
from vaespec.machine import Memory, host_memory
from vaespec.ops import Array, Layer, Padding
from vaespec.parameter import Parameter
from vaespec.specification import Specification


class ReferenceOps(Specification):
    """The specification, on any Array API namespace `xp`, in the dtype of the arrays it is given.

    Statistics, softmax and exponentials run in float32 or better. Nothing is written in place.
    """

    conv_layout = "OIHW"
    linear_layout = "OI"
    fixed_shapes = False  # whether every new shape costs a compilation

    def __init__(self, xp: Any, dtype: str = "float64", device: Any = None) -> None:
        self.xp = xp
        self.dtype = dtype
        self.device = device

    @property
    def layout(self) -> Layout:
        """The layout of kernels on this backend."""
        return Layout(self.conv_layout, self.linear_layout)

    # -- around the model --------------------------------------------------------------------------------

    def compile(self, model: Layer) -> Callable[[Array, Mapping[str, Array]], Array]:
        """(x, params) -> model(x, params, self), made ready to be called often, outside the framework's transforms."""

        def run(x: Array, params: Mapping[str, Array]) -> Array:
            ops, arrays = self.inference_ops(params)
            return model(x, arrays, ops)

        return run

    def with_compiler(self) -> ReferenceOps:
        """These, for models that the framework compiles before they run; NotImplementedError where it compiles none."""
        raise NotImplementedError

    def inference_ops(self, params: Mapping[str, Array]) -> tuple[Any, Mapping[str, Array]]:
        """(ops, params) that compute a run outside the framework's transforms, without gradients.

        These, or others that take and return the same arrays at both ends; with working memory that goes with the run.
        """
        return self, params

    def run(self, layer: Layer, x: Array, params: Mapping[str, Array]) -> Array:
        return layer(x, params, self)

    def all_finite(self, x: Array) -> bool:
        """Whether x holds neither NaN nor infinity."""
        return all_finite(x)

    def provenance(self, op: str) -> str:
        """ "native" if this backend has its own `op`, "fallback" if it runs the reference's."""
        return "fallback" if getattr(type(self), op) is getattr(ReferenceOps, op) else "native"

    # -- in and out --------------------------------------------------------------------------------------

    def from_numpy(self, a: np.ndarray) -> Array:
        """A NumPy array -> the backend's own array on this device, in this dtype: a copy."""
        dtype = getattr(self.xp, self.dtype)
        return self.xp.asarray(np.asarray(a, order="C"), dtype=dtype, device=self.device, copy=True)

    def from_dlpack(self, x: Any) -> Array:
        """Another framework's array -> the backend's own, without a copy where they share memory."""
        return self.xp.from_dlpack(x)

    def to_numpy(self, x: Array) -> np.ndarray:
        """The backend's own array -> NumPy, same values."""
        return np.asarray(x)

    def from_host(self, a: np.ndarray) -> Array:
        """The inverse of `to_numpy`: the same numbers in the dtype they have, on this device."""
        return self.xp.asarray(a, device=self.device)

    def materialize(self, x: Array) -> Array:
        """x, computed by now, and holding nothing that it was made from."""
        return x

    # -- memory ------------------------------------------------------------------------------------------

    on_host = True
    """Whether arrays lie in the memory of the process."""

    def memory(self) -> Memory:
        """What the device, or the process where it has no memory of its own, holds now, and what is free."""
        return host_memory()

    def workspace(self, op: str, x: tuple[int, ...], y: tuple[int, ...], kernel: tuple[int, ...] = ()) -> int:
        """Bytes that `op` holds for a while beside its arguments and its result, both in reference order (B, C, …)."""
        return 0

    def convolution_form(
        self, x: tuple[int, ...], w: tuple[int, ...], *, stride: int, padding: Padding, doubled: bool = False
    ) -> tuple[str, Mapping[str, float], float | None] | None:
        """(form, costs, direct) of a convolution of shapes x (B, C, H, W) and w (O, C, kh, kw), if the backend chooses.

        `doubled` says that x is a map upsampled by 2. See vaespec.analysis.convolutions. None if the framework decides.
        """
        return None

    def cast(self, x: Array) -> Array:
        """The backend's own array -> the same on this device, in this dtype."""
        return self.xp.astype(x, getattr(self.xp, self.dtype))

    def is_array(self, x: object) -> bool:
        """Whether x is this backend's own kind of array."""
        return hasattr(x, "__array_namespace__") and x.__array_namespace__() is self.xp

    def load_params(self, params: Mapping[str, np.ndarray], table: Mapping[str, Parameter]) -> dict[str, Array]:
        """Canonical weights (diffusers' names, OIHW, NumPy) -> this backend's arrays in its kernel layouts."""
        return {
            name: self.xp.asarray(int(a))  # not to be rounded
            if table[name].is_counter
            else self.from_numpy(OIHW.convert(a, self.layout))
            for name, a in params.items()
        }

    def export_params(self, params: Mapping[str, Array], table: Mapping[str, Parameter]) -> dict[str, np.ndarray]:
        """The inverse of `prepare`: canonical NumPy weights, in the dtype the backend stores; views where it can."""
        exported = {name: self.layout.convert(self.to_numpy(x), OIHW) for name, x in params.items()}
        return {name: a.astype(np.int64) if table[name].is_counter else a for name, a in exported.items()}

    def from_nchw(self, x: Array) -> Array:
        return x

    def to_nchw(self, x: Array) -> Array:
        return x

"""ReferenceOps: the specification as a backend, and everything that another backend inherits from it.

A backend subclasses ReferenceOps and overrides the operations that its framework computes faster, and the methods below
if its arrays are not those of the Array API standard. What it does not override works as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from vaespec.arrays import on_device, own_namespace, to_host
from vaespec.copying import Portable
from vaespec.deprecation import warn_renamed
from vaespec.dtypes import NUMPY_DTYPES, all_finite, widen
from vaespec.layouts import OIHW, Layout
from vaespec.machine import MemoryUse, host_memory
from vaespec.ops import Array, Layer, Padding, Sides
from vaespec.parameter import Parameter
from vaespec.specification import Specification


class ReferenceOps(Portable, Specification):
    """The formulas of the specification on any Array API namespace `xp`, storing `dtype`, on `device`.

    Ops are pickled and copied with their attributes, as `vaespec.copying.portable` says.
    Methods of a subclass may take and return arrays of its own, but shapes that are given as tuples are always in
    reference order: maps (B, C, H, W), kernels (O, C, kh, kw).
    """

    conv_layout = "OIHW"
    linear_layout = "OI"
    fixed_shapes = False  # whether every new shape costs a compilation
    wraps_rows = False  # whether convolutions continue at the other end of a map: see vaespec.tiling.padding
    wide_maps = False  # whether maps are float32 or wider even if the dtype has 16 bits: see vaespec.upcast

    def __init__(self, xp: Any, dtype: str = "float64", device: Any = None) -> None:
        self.xp = xp
        self.dtype = dtype
        self.device = device

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _accept_old_names(cls)

    # -- running a model -----------------------------------------------------------------------------------------

    def compile(self, model: Layer) -> Callable[[Array, Mapping[str, Array]], Array]:
        """A function (x, params) -> model(x, params, self), to be called often, outside the framework's transforms."""

        def run(x: Array, params: Mapping[str, Array]) -> Array:
            ops, arrays = self.inference_ops(params)
            return model(x, arrays, ops)

        return run

    def with_compiler(self) -> ReferenceOps:
        """A copy whose models the framework compiles before running; NotImplementedError if it has no compiler."""
        raise NotImplementedError

    def inference_ops(self, params: Mapping[str, Array]) -> tuple[ReferenceOps, Mapping[str, Array]]:
        """(ops, params) that compute one run outside the framework's transforms, without gradients.

        The ops are `self`, or others that accept and return the same arrays at both ends of a model. Their scratch
        memory is freed with the run.
        """
        return self, params

    def run(self, layer: Layer, x: Array, params: Mapping[str, Array]) -> Array:
        """layer(x, params, self), in the framework's settings. Called with the layers of a model alone, and with maps.

        The place to look at each layer, or to do something before and after it.
        """
        return self.apply(lambda x, params: layer(x, params, self), x, params)

    def apply(self, function: Callable[[Any, Mapping[str, Array]], Any], x: Any, params: Mapping[str, Array]) -> Any:
        """function(x, params), in the framework's settings: the place to set its device and its precision.

        Layers, bands of rows and single operations are computed here.
        """
        return function(x, params)

    def materialize(self, x: Array) -> Array:
        return x

    def all_finite(self, x: Array) -> bool:
        """Whether x holds neither NaN nor infinity."""
        return all_finite(x)

    def provenance(self, op: str) -> str:
        """ "native" if this backend has its own `op`, "fallback" if it runs the specification's."""
        return "fallback" if getattr(type(self), op) is getattr(ReferenceOps, op) else "native"

    # -- arrays in and out ---------------------------------------------------------------------------------------

    def is_array(self, x: object) -> bool:
        """Whether x is this backend's own kind of array."""
        return own_namespace(x) is self._namespace

    @cached_property
    def _namespace(self) -> Any:
        """The namespace that the arrays of `xp` name as theirs."""
        return array_namespace(self.xp.asarray(0))

    def from_numpy(self, a: np.ndarray) -> Array:
        """A NumPy array -> the backend's own array on this device, in this dtype: a copy."""
        dtype, a = getattr(self.xp, self.dtype), np.asarray(a, order="C")
        with np.errstate(over="ignore"):  # numbers beyond float16 become infinity, which the caller reports
            a = a if a.dtype.name in NUMPY_DTYPES else a.astype(np.float32)  # few namespaces know ml_dtypes
            return self.xp.asarray(a, dtype=dtype, device=self.device, copy=True)

    def from_dlpack(self, x: Any) -> Array:
        """Another framework's array -> the backend's own, without a copy if both can use the same memory."""
        return self.xp.from_dlpack(x)

    def cast(self, x: Array) -> Array:
        """The backend's own array -> the same values on this device, in this dtype."""
        with np.errstate(over="ignore"):  # as in from_numpy
            return self.xp.astype(on_device(x, self.device), getattr(self.xp, self.dtype))

    def to_numpy(self, x: Array) -> np.ndarray:
        """The backend's own array -> NumPy, same values."""
        return to_host(x)

    def from_host(self, a: np.ndarray) -> Array:
        """The inverse of `to_numpy`: the same values in the dtype of `a`, on this device."""
        if a.dtype.name in NUMPY_DTYPES:
            return self.xp.asarray(a, device=self.device)
        return self.xp.asarray(a.astype(np.float32), dtype=getattr(self.xp, a.dtype.name), device=self.device)

    def from_nchw(self, x: Array) -> Array:
        return x

    def to_nchw(self, x: Array) -> Array:
        return x

    # -- weights in and out --------------------------------------------------------------------------------------

    @property
    def layout(self) -> Layout:
        """The layout of kernels on this backend."""
        return Layout(self.conv_layout, self.linear_layout)

    def load_params(self, params: Mapping[str, np.ndarray], table: Mapping[str, Parameter]) -> dict[str, Array]:
        """Canonical weights (diffusers' names, OIHW, NumPy) -> this backend's arrays in its kernel layouts."""
        return {
            name: self.xp.asarray(int(a))  # a counter is not rounded
            if table[name].is_counter
            else self.from_numpy(OIHW.convert(a, self.layout))
            for name, a in params.items()
        }

    def export_params(self, params: Mapping[str, Array], table: Mapping[str, Parameter]) -> dict[str, np.ndarray]:
        """The inverse of `load_params`: canonical NumPy weights, in the dtype the backend stores; views if possible."""
        exported = {name: self.layout.convert(self.to_numpy(x), OIHW) for name, x in params.items()}
        return {name: a.astype(np.int64) if table[name].is_counter else a for name, a in exported.items()}

    def copy(self, x: Array) -> Array:
        """The backend's own array -> the same numbers in memory of their own, one axis after the other.

        Gradients pass, here and through `store`, if the framework has them.
        """
        return self.from_numpy(self.to_numpy(x))

    def store(self, x: Array) -> Array:
        """The backend's own array -> a copy that is placed and ordered as by `load_params`."""
        return self.copy(self.cast(x))

    def widen(self, weight: Array) -> Array:
        """A weight -> the same numbers in float32 if it has 16 bits, as something that the operations take for it."""
        return widen(weight, self.xp)

    # -- parts of arrays, for bands and padding --------------------------------------------------------------------

    def padded(self, ops: Any) -> Any:
        """Other ops, padding as these do: see vaespec.tiling.padding."""
        return ops

    def pad_rows(self, x: Array, above: int, below: int, *, stride: int) -> Array:
        """A map with the rows that a convolution of this stride pads it with: zeros."""
        x = self.to_array(x)
        zeros = [self.zeros_like(self.rows(x, 0, 1))]
        return self.concat([*zeros * above, x, *zeros * below], axis=self.map_layout.index("H"))

    def require_size(self, height: int, width: int, what: str) -> None:
        """Raises InputError if a map of this size cannot be padded; `what` names the input that leads to such a map."""

    def rows(self, x: Array, start: int, stop: int) -> Array:
        """Rows start … stop - 1 of a map, along its height."""
        return x[(slice(None),) * self.map_layout.index("H") + (slice(start, stop), ...)]

    def concat(self, parts: Sequence[Array], axis: int) -> Array:
        """Join arrays along an axis of the backend's order; a single array is returned as it is."""
        return parts[0] if len(parts) == 1 else self.xp.concat(parts, axis=axis)

    def zeros_like(self, x: Array) -> Array:
        return self.xp.zeros_like(x)

    def surround(self, x: Array, *, axis: str, sides: Sides) -> Array:
        """A map with copies of some of its rows (axis "H") or columns ("W") in front of the first and behind the last.

        `sides` are the positions of these rows, in front and behind.
        """
        at, x = self.map_layout.index(axis), self.to_array(x)
        before, after = ([x[(slice(None),) * at + (slice(i, i + 1), ...)] for i in side] for side in sides)
        return self.concat([*before, x, *after], axis=at)

    def to_array(self, x: Array) -> Array:
        """x as an array: a map that the backend deferred is computed. Gradients pass, unlike through `materialize`."""
        return x

    # -- memory, and the forms of a convolution --------------------------------------------------------------------

    on_host = True
    """Whether arrays are in the memory of the process."""

    def memory(self) -> MemoryUse:
        """Bytes held and free on the device, or in the process if the device has no memory of its own."""
        return host_memory()

    def workspace(self, op: str, x: tuple[int, ...], y: tuple[int, ...], kernel: tuple[int, ...] = ()) -> int:
        """Bytes that `op` holds while it computes a result of shape y from an input of shape x, besides these two."""
        return 0

    def convolution_form(
        self, x: tuple[int, ...], w: tuple[int, ...], *, stride: int, padding: Padding, doubled: bool = False
    ) -> tuple[str, Mapping[str, float], float | None] | None:
        """(form, costs, direct) of a convolution of shapes x (B, C, H, W) and w (O, C, kh, kw), if the backend chooses.

        `doubled` says that x is a map upsampled by 2. See vaespec.analysis.convolutions. None if the framework decides.
        """
        return None


OLD_NAMES = {
    "for_one_run": "inference_ops",
    "settle": "materialize",
    "prepare": "load_params",
    "export": "export_params",
    "compiling": "with_compiler",
    "plan": "convolution_form",
    "moments": "channel_statistics",
}
"""Earlier names of hooks. A backend may override and call them for one more release, with a warning."""


def _accept_old_names(cls: type[ReferenceOps]) -> None:
    """A hook that `cls` overrides by its old name gets the new one; any other keeps the old one, also for super()."""
    for old, new in OLD_NAMES.items():
        if old not in vars(cls) and (new in vars(cls) or cls is ReferenceOps):
            setattr(cls, old, _warning(getattr(cls, new), old, new))
        elif old in vars(cls) and new not in vars(cls):
            warn_renamed(f"{cls.__name__}.{old}", new, stacklevel=4)
            setattr(cls, new, vars(cls)[old])


def _warning(hook: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    def warning(*args: Any, **kwargs: Any) -> Any:
        warn_renamed(old, new)
        return hook(*args, **kwargs)

    return warning


_accept_old_names(ReferenceOps)

"""Any namespace of the Array API as a backend: the formulas of the specification, on its arrays.

NumPy's is the backend named "reference": the specification itself, by which every other backend is judged.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import Any

import array_api_compat.numpy
import numpy as np

from vaespec.arrays import device_of, own_namespace
from vaespec.copying import Call, Portable, portable
from vaespec.errors import BackendError, VaespecError
from vaespec.ops import Array, Layer, Padding
from vaespec.reference import ReferenceOps

FUNCTIONS = (
    *("abs", "all", "any", "asarray", "astype", "broadcast_to", "concat", "exp", "expm1", "full_like", "isdtype"),
    *("isfinite", "log1p", "matmul", "max", "maximum", "mean", "minimum", "permute_dims", "reshape", "sqrt", "sum"),
    *("tanh", "var", "zeros", "zeros_like"),
)
"""The functions of the Array API that the specification, posteriors, latents and tiling call."""

ARGUMENTS = (("zeros", "device"), ("asarray", "device"), ("asarray", "copy"))
"""Arguments that not every namespace gives these functions."""

DTYPES = ("float64", "float32", "bfloat16", "float16")
"""The dtypes that a namespace may have, in the order in which a model prefers them; it needs float32."""


class NamespaceBackend(Portable):
    """The specification on the namespace `xp`: in float64 unless another dtype is requested, if `xp` has it.

    Raises BackendError if `xp` lacks what the specification needs.
    """

    def __init__(self, xp: Any, name: str | None = None) -> None:
        self.xp = _standard(xp)
        self.name = name or _name(self.xp)
        self.framework = _name(self.xp).removeprefix("array_api_compat.").partition(".")[0]

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes that the namespace has now: JAX has float64 only if a process enables it."""
        return tuple(name for name in DTYPES if _has_dtype(self.xp, name))

    @property
    def default_dtype(self) -> str:
        """The widest dtype."""
        return self.dtypes[0]

    def devices(self) -> tuple[str, ...]:
        """The names of the devices, the default one first."""
        return tuple(_devices(self.xp))

    def ops(self, device: str, dtype: str, precision: str) -> ReferenceOps:
        """The formulas on a device. Raises BackendError if they cannot be computed there."""
        if precision == "highest" and self.xp not in (np, array_api_compat.numpy):
            raise BackendError(
                f"backend {self.name!r} has no precision 'highest': a namespace alone decides how it multiplies; leave "
                "out precision=, or choose another backend."
            )
        devices = _devices(self.xp)
        place = devices.get(device, next((d for name, d in devices.items() if name.split(":")[0] == device), None))
        ops = NamespaceOps(self.xp, dtype, place)
        if problem := _problem(ops):
            raise BackendError(f"{self.name} cannot compute the specification in {dtype} on {device}: {problem}.")
        return ops


class NamespaceOps(ReferenceOps):
    """ReferenceOps whose device is pickled by its name; and what a namespace needs that defers, and cuts into pieces.

    Joined arrays are one piece, because uneven ones cannot be reshaped. Each layer is computed at once: the graph of a
    whole model takes longer to order than to compute.
    """

    def run(self, layer: Layer, x: Array, params: Mapping[str, Array]) -> Array:
        """layer(x, params, self), computed at once."""
        return self.materialize(super().run(layer, x, params))

    def materialize(self, x: Array) -> Array:
        """x, computed if the namespace defers."""
        return x.persist() if hasattr(x, "persist") else x

    def _pad(self, x: Array, padding: Padding) -> Array:
        return _in_one_piece(super()._pad(x, padding))

    def concat(self, parts: Sequence[Array], axis: int) -> Array:
        """The parts joined along an axis, in one piece."""
        return _in_one_piece(super().concat(parts, axis))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"device": Call(_device, portable(self.xp), device_name(self.device))}


def _in_one_piece(x: Array) -> Array:
    return x.rechunk(-1) if hasattr(x, "rechunk") else x


def _device(xp: Any, name: str | None) -> Any:
    """The device of that name. Raises BackendError if the namespace does not have it here."""
    devices: dict[str | None, Any] = {None: None} | _devices(xp)
    if name not in devices:
        raise BackendError(f"{_name(xp)} has no device {name!r} here: move the model with to('cpu') before pickling.")
    return devices[name]


def _devices(xp: Any) -> dict[str, Any]:
    """The devices of a namespace by name, the default one first."""
    info = xp.__array_namespace_info__() if hasattr(xp, "__array_namespace_info__") else None
    with warnings.catch_warnings():  # of old names of devices, which are asked for
        warnings.simplefilter("ignore")
        listed = (device_of(xp.asarray(0)), *(info.devices() if info else ()))
    return {str(device_name(d)): d for d in listed if d is not None} or {"cpu": None}


def device_name(device: Any) -> str | None:
    """The name of a device: its text, or the first word in the brackets of its text, as in Device('CPU_DEVICE')."""
    text = str(device)
    bracketed = re.search(r"\(\W*(\w+)", text)
    if device is None or " object at 0x" in text:  # a device without a name
        return None if device is None else "default"
    return bracketed[1] if bracketed else text


def imported_namespace(path: str) -> NamespaceBackend | None:
    """The namespace of that import path as a backend; None if there is no such module.

    Raises BackendError if it cannot be imported, or is no namespace.
    """
    if not all(word.isidentifier() for word in path.split(".")):
        return None
    try:
        module = import_module(path)
    except ModuleNotFoundError as error:
        if error.name and f"{path}.".startswith(f"{error.name}."):
            return None
        raise BackendError(f"module {path!r} needs {error.name}, which is not installed: install it.") from error
    except MemoryError:
        raise
    except Exception as error:  # somebody's module can raise anything
        raise BackendError(f"module {path!r} cannot be imported ({error!r}): repair or remove it.") from error
    return NamespaceBackend(module)


def missing(xp: Any) -> list[str]:
    """What the specification needs and `xp` lacks: functions, float32, and arguments of functions."""
    lacks = [name for name in (*FUNCTIONS, "float32") if not hasattr(xp, name)]
    return lacks or [f"{name}({argument}=)" for name, argument in ARGUMENTS if not _accepts(xp, name, argument)]


def _accepts(xp: Any, name: str, argument: str) -> bool:
    """Whether a function that creates an array has the argument, which may be None."""
    try:
        getattr(xp, name)((1,), **{argument: None})
    except TypeError:
        return False
    return True


def _standard(xp: Any) -> Any:
    """The namespace, or what array-api-compat has in its place, as for torch. Raises BackendError if it lacks names."""
    wrapper = None
    with suppress(Exception):  # whatever a stranger's asarray raises, what is missing is listed below
        wrapper = own_namespace(xp.asarray(0))
    if isinstance(xp, ModuleType) and _name(wrapper).startswith("array_api_compat."):
        xp = wrapper
    if lacks := missing(xp):
        listed = ", ".join(lacks) if len(lacks) < len(FUNCTIONS) else "all functions that the specification calls"
        raise BackendError(
            f"{_name(xp)} is no Array API namespace that the specification can run on: it lacks {listed}; choose "
            "another, such as array_api_strict, or a backend by name."
        )
    return xp


def _name(xp: Any) -> str:
    return str(getattr(xp, "__name__", type(xp).__name__))


def _has_dtype(xp: Any, name: str) -> bool:
    """Whether the namespace has the dtype, and does not put a narrower one in its place."""
    dtype = getattr(xp, name, None)
    with suppress(Exception), warnings.catch_warnings():  # frameworks raise different errors
        warnings.simplefilter("ignore")
        return dtype is not None and bool(xp.zeros((1,), dtype=dtype).dtype == dtype)
    return False


def _problem(ops: ReferenceOps) -> str | None:
    """Why a norm, a convolution and attention of ones cannot be computed; None if they can."""
    ones = np.ones((1, 2, 2, 3), np.float32)
    try:
        x, scale, w = (ops.from_numpy(a) for a in (ones, ones[0, :, 0, 0], np.ones((2, 2, 3, 3), np.float32)))
        y = ops.silu(ops.group_norm(x, scale, scale, groups=1, eps=1e-6))
        y = ops.upsample_nearest2x(ops.conv2d(y, w, scale, stride=1, padding=((1, 1), (1, 1))))
        t = ops.tokens(y)
        y = ops.to_numpy(ops.add(y, ops.pixels(ops.attention(t, t, t, scale=1.0), like=y)))
        return None if y.shape == (1, 2, 4, 6) and np.isfinite(y.astype(np.float64)).all() else "the results are wrong"
    except MemoryError:
        raise
    except VaespecError as error:
        return str(error).rstrip(".")
    except Exception as error:  # frameworks raise different errors
        return f"{type(error).__name__}, {str(error).splitlines()[0].rstrip('.')}" if str(error) else repr(error)

"""Parameter: one row of the parameter table, and the axis order it has in each framework."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from vaespec.errors import InputError

STORAGE_DTYPES = ("float32", "float64", "float16", "bfloat16")

Role = Literal["conv", "linear", "bias", "norm_scale", "norm_shift", "statistic", "counter"]


class KernelLayout(Protocol):
    """How a backend wants its kernels: a permutation of the canonical "OIHW" and "OI"."""

    conv_layout: str
    linear_layout: str


@dataclass(frozen=True)
class Parameter:
    """Shape in canonical order (convolutions OIHW, linear maps OI) and what the numbers are for.

    `fan_in` is the number of inputs each output sums over (0 where nothing is summed): it sets the initial values.
    FLUX.2's batch-norm brings two "statistic" tensors and a "counter", an integer: stored, but not trained.
    """

    shape: tuple[int, ...]
    role: Role
    fan_in: int = 0

    @property
    def trained(self) -> bool:
        """Whether it is a parameter of the model, to be trained and counted."""
        return self.role not in ("statistic", "counter")

    def to_layout(self, a: np.ndarray, layout: KernelLayout) -> np.ndarray:
        """Canonical axes -> the axes of `layout`; a view."""
        match self.role:
            case "conv":
                return a.transpose(["OIHW".index(axis) for axis in layout.conv_layout])
            case "linear":
                return a.transpose(["OI".index(axis) for axis in layout.linear_layout])
        return a

    def from_layout(self, a: np.ndarray, layout: KernelLayout) -> np.ndarray:
        """The axes of `layout` -> canonical axes; a view."""
        match self.role:
            case "conv":
                return a.transpose([layout.conv_layout.index(axis) for axis in "OIHW"])
            case "linear":
                return a.transpose([layout.linear_layout.index(axis) for axis in "OI"])
        return a


def storage_dtype(name: str) -> np.dtype:
    """NumPy's dtype of that name; its bfloat16 is ml_dtypes'. InputError for what weights cannot be stored in."""
    if name not in STORAGE_DTYPES:
        raise InputError(f"dtype {name!r}: weights are stored as {', '.join(STORAGE_DTYPES)}.")
    if name == "bfloat16":
        import ml_dtypes  # only those who store bfloat16 wait for it

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def dtype_name(dtype: Any) -> str:
    """ "float16" from "float16", numpy.float16, numpy.dtype("float16") or a framework's own float16."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", str(dtype))
    return name.rpartition(".")[2]

"""Dtypes by name; and widening: statistics, exponentials and scaling of 16-bit floats run in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace

from vaespec.errors import InputError

STORAGE_DTYPES = ("float32", "float64", "float16", "bfloat16")
INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
NUMPY_DTYPES = INTEGERS | {"bool", "float16", "float32", "float64", "complex64", "complex128"}
ML_DTYPES = {"bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"}
KNOWN_DTYPES = NUMPY_DTYPES | ML_DTYPES
"""Every dtype that a tensor in a file may have."""


def widen(x: Any, xp: Any) -> Any:
    """16-bit floats -> float32; wider dtypes stay. xp is the namespace of x."""
    return x if x.dtype in (xp.float32, getattr(xp, "float64", None)) else xp.astype(x, xp.float32)


def narrow(x: Any, like: Any, xp: Any) -> Any:
    """Converts x back to the dtype of `like`, after `widen`."""
    return x if x.dtype == like.dtype else xp.astype(x, like.dtype)


def all_finite(x: Any) -> bool:
    """Whether x, of any framework, holds neither NaN nor infinity."""
    xp = array_namespace(x)
    return bool(xp.all(xp.isfinite(x)))


def storage_dtype(name: str) -> np.dtype:
    """NumPy's dtype of that name. Raises InputError if weights cannot be stored in it."""
    if name not in STORAGE_DTYPES:
        raise InputError(f"dtype {name!r}: choose {', '.join(STORAGE_DTYPES)}.")
    return numpy_dtype(name)


def numpy_dtype(name: str) -> np.dtype:
    """NumPy's dtype of that name, one of KNOWN_DTYPES; the package ml_dtypes adds bfloat16 and float8."""
    if name in NUMPY_DTYPES:
        return np.dtype(name)
    import ml_dtypes  # imported only if such a dtype is used

    return np.dtype(getattr(ml_dtypes, name))


def dtype_name(dtype: Any) -> str:
    """ "float16" from "float16", numpy.float16, numpy.dtype("float16") or a framework's own float16."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", str(dtype))
    return name.rpartition(".")[2]

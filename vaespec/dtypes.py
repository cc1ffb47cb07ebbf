"""Dtypes: statistics, exponentials and scaling run in float32 or wider, and results must be finite."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace

from vaespec.errors import InputError

STORAGE_DTYPES = ("float32", "float64", "float16", "bfloat16")


def widen(x: Any, xp: Any) -> Any:
    """16-bit floats -> float32; wider dtypes stay. xp is the namespace of x."""
    return x if x.dtype in (xp.float32, xp.float64) else xp.astype(x, xp.float32)


def narrow(x: Any, like: Any, xp: Any) -> Any:
    """Converts x back to the dtype of `like`, after `widen`."""
    return x if x.dtype == like.dtype else xp.astype(x, like.dtype)


def all_finite(x: Any) -> bool:
    """Whether x, of any framework, holds neither NaN nor infinity."""
    xp = array_namespace(x)
    return bool(xp.all(xp.isfinite(x)))


def storage_dtype(name: str) -> np.dtype:
    """NumPy's dtype named `name`, bfloat16 from ml_dtypes. Raises InputError if weights cannot be stored in it."""
    if name not in STORAGE_DTYPES:
        raise InputError(f"dtype {name!r}: choose {', '.join(STORAGE_DTYPES)}.")
    if name == "bfloat16":
        import ml_dtypes  # imported late: only bfloat16 needs it

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def dtype_name(dtype: Any) -> str:
    """ "float16" from "float16", numpy.float16, numpy.dtype("float16") or a framework's own float16."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", str(dtype))
    return name.rpartition(".")[2]

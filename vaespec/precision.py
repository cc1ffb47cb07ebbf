"""What a dtype can hold: statistics, exponentials and scaling run in float32 or wider, and results must be finite."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace


def widen(x: Any, xp: Any) -> Any:
    """16-bit floats as float32, anything wider unchanged; xp is the namespace of x."""
    return x if x.dtype in (xp.float32, xp.float64) else xp.astype(x, xp.float32)


def narrow(x: Any, like: Any, xp: Any) -> Any:
    """x in the dtype of `like`: the end of what `widen` began."""
    return x if x.dtype == like.dtype else xp.astype(x, like.dtype)


def all_finite(x: Any) -> bool:
    """Whether x, of any framework, holds neither NaN nor infinity."""
    xp = array_namespace(x)
    return bool(xp.all(xp.isfinite(x)))

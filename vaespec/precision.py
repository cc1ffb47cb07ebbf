"""Where 16 bits are not enough: statistics, exponentials and scaling run in float32 or wider, then go back."""

from __future__ import annotations

from typing import Any


def widen(x: Any, xp: Any) -> Any:
    """16-bit floats as float32, anything wider unchanged; xp is the namespace of x."""
    return x if x.dtype in (xp.float32, xp.float64) else xp.astype(x, xp.float32)


def narrow(x: Any, like: Any, xp: Any) -> Any:
    """x in the dtype of `like`: the end of what `widen` began."""
    return x if x.dtype == like.dtype else xp.astype(x, like.dtype)

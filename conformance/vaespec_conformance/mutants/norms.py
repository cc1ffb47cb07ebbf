"""Mistakes in group normalisation, and in the moments and norms of bands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vaespec.dtypes import storage_dtype
from vaespec_conformance.mutants.mutant import as_map, map_numbers, reformulated, replaced, weight_numbers

OWNED: dict[str, Any] = {"owner": "ops.group_norm", "seen_in_ports": "model.encode"}
Norm = Callable[..., np.ndarray]


def _norm(
    x: np.ndarray,
    scale: np.ndarray,
    shift: np.ndarray,
    *,
    groups: int,
    normalise: Callable[[np.ndarray], np.ndarray] | None = None,
    eps: float,
) -> np.ndarray:
    """A group norm whose core, (B, groups, n) -> (B, groups, n), may be another."""
    B, C, H, W = x.shape
    x_g = x.reshape(B, groups, -1)
    x_hat = normalise(x_g) if normalise else (x_g - _mean(x_g)) / np.sqrt(x_g.var(-1, keepdims=True) + eps)
    return x_hat.reshape(B, C, H, W) * scale.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1)


def _mean(x_g: np.ndarray) -> np.ndarray:
    return x_g.mean(-1, keepdims=True)


@replaced("group_norm", "eps × 10", cause="eps is 1e-5, not 1e-6", **OWNED)
def _(ops: Any, call: Any, x: Any, scale: Any, shift: Any, *, groups: int, eps: float) -> Any:
    return call(x, scale, shift, groups=groups, eps=10 * eps)


@reformulated("group_norm", "eps outside the root", cause="eps is added to the deviation, outside the root", **OWNED)
def _(x: np.ndarray, scale: np.ndarray, shift: np.ndarray, *, groups: int, eps: float) -> np.ndarray:
    return _norm(
        x, scale, shift, groups=groups, eps=eps, normalise=lambda g: (g - _mean(g)) / (g.std(-1, keepdims=True) + eps)
    )


@replaced("group_norm", "no eps", cause="eps is not added", **OWNED)
def _(ops: Any, call: Any, x: Any, scale: Any, shift: Any, *, groups: int, eps: float) -> Any:
    return call(x, scale, shift, groups=groups, eps=1e-30)


@reformulated("group_norm", "unbiased variance", cause="the variance is divided by n - 1, not n", **OWNED)
def _(x: np.ndarray, scale: np.ndarray, shift: np.ndarray, *, groups: int, eps: float) -> np.ndarray:
    def normalise(g: np.ndarray) -> np.ndarray:
        return (g - _mean(g)) / np.sqrt(g.var(-1, ddof=1, keepdims=True) + eps)

    return _norm(x, scale, shift, groups=groups, eps=eps, normalise=normalise)


@reformulated(
    "group_norm",
    "variance in one pass",
    cause="the variance is E[x²] - E[x]², which cancels where the mean is large",
    owner="ops.group_norm",
)
def _(x: np.ndarray, scale: np.ndarray, shift: np.ndarray, *, groups: int, eps: float) -> np.ndarray:
    def normalise(g: np.ndarray) -> np.ndarray:
        g = g.astype(np.float32)
        sigma2 = np.maximum(_mean(g * g) - _mean(g) ** 2, 0)
        return (g - _mean(g)) / np.sqrt(sigma2 + np.float32(eps))

    return _norm(x, scale, shift, groups=groups, eps=eps, normalise=normalise)


@replaced(
    "group_norm",
    "statistics in 16 bits",
    cause="mean and variance are of the dtype that is stored",
    equivalent_in={dtype: "which is what they should be" for dtype in ("float32", "float64")},
    **OWNED,
)
def _(ops: Any, call: Any, x: Any, scale: Any, shift: Any, *, groups: int, eps: float) -> Any:
    def normalise(g: np.ndarray) -> np.ndarray:
        narrow = g.astype(storage_dtype(ops.dtype))
        mean = narrow.mean(-1, keepdims=True)
        centred = narrow - mean
        sigma2 = (centred * centred).mean(-1, keepdims=True).astype(np.float64)
        return centred.astype(np.float64) / np.sqrt(sigma2 + eps)

    with np.errstate(over="ignore"):
        arrays = map_numbers(ops, x), weight_numbers(ops, scale), weight_numbers(ops, shift)
        return as_map(ops, _norm(*arrays, groups=groups, eps=eps, normalise=normalise))


def _other_groups(count: Callable[[int, int], int]) -> Any:
    def function(ops: Any, call: Any, x: Any, scale: Any, shift: Any, *, groups: int, eps: float) -> Any:
        return call(x, scale, shift, groups=count(scale.shape[0], groups), eps=eps)

    return function


replaced("group_norm", "C / groups groups", cause="groups and their size are swapped", **OWNED)(
    _other_groups(lambda channels, groups: channels // groups)
)
replaced("group_norm", "32 groups", cause="there are always 32 groups, or one for each channel", **OWNED)(
    _other_groups(lambda channels, groups: min(32, channels))
)
replaced("group_norm", "one group", cause="there is one group: this is a layer norm", **OWNED)(
    _other_groups(lambda channels, groups: 1)
)


@reformulated("group_norm", "groups interleaved", cause="groups are of every n-th channel, not of neighbours", **OWNED)
def _(x: np.ndarray, scale: np.ndarray, shift: np.ndarray, *, groups: int, eps: float) -> np.ndarray:
    C = x.shape[1]
    order = np.arange(C).reshape(-1, groups).T.ravel()  # where the n-th channel of interleaved groups is
    y = _norm(x[:, order], np.ones(C), np.zeros(C), groups=groups, eps=eps)[:, np.argsort(order)]
    return y * scale.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1)


@replaced("group_norm", "no scale and shift", cause="scale and shift are left out", **OWNED)
def _(ops: Any, call: Any, x: Any, scale: Any, shift: Any, **how: Any) -> Any:
    return call(x, 0 * scale + 1, 0 * shift, **how)


@replaced("group_norm", "shift before scale", cause="the shift is added before scaling", **OWNED)
def _(ops: Any, call: Any, x: Any, scale: Any, shift: Any, **how: Any) -> Any:
    return call(x, scale, shift * scale, **how)


@reformulated(
    "group_norm", "statistics of the batch", cause="statistics are of the whole batch, not of each item", **OWNED
)
def _(x: np.ndarray, scale: np.ndarray, shift: np.ndarray, *, groups: int, eps: float) -> np.ndarray:
    def normalise(g: np.ndarray) -> np.ndarray:
        return (g - g.mean((0, 2), keepdims=True)) / np.sqrt(g.var((0, 2), keepdims=True) + eps)

    return _norm(x, scale, shift, groups=groups, eps=eps, normalise=normalise)


@replaced("channel_statistics", "unbiased variance", owner="ops.moments", cause="the variance is divided by n - 1")
def _(ops: Any, call: Any, x: Any) -> Any:
    mean, sigma2 = call(x)
    n = map_numbers(ops, x)[0, 0].size
    return mean, sigma2 * (n / (n - 1))


@replaced("normalize", "eps outside the root", owner="ops.normalize", cause="eps is added outside the root")
def _(ops: Any, call: Any, x: Any, mean: Any, sigma2: Any, scale: Any, shift: Any, *, eps: float) -> Any:
    deviation = sigma2**0.5 + eps
    return call(x, mean, deviation * deviation, scale, shift, eps=0.0)

"""Mistakes in group normalization, and in the statistics and norms of bands."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from vaespec.dtypes import storage_dtype
from vaespec_conformance.mutants.mutant import as_map, formula, map_numbers, named, operation, weight_numbers

NORM: dict[str, Any] = {"op": "group_norm", "owner": "ops.group_norm", "seen_in_ports": "model.encode"}
Core = Callable[..., np.ndarray]


def _mean(g: np.ndarray) -> np.ndarray:
    return g.mean(-1, keepdims=True)


def _standardized(g: np.ndarray, eps: float) -> np.ndarray:
    """The right core of a group norm: (g - μ) / √(σ² + ε) over the last axis of (B, groups, n)."""
    return (g - _mean(g)) / np.sqrt(g.var(-1, keepdims=True) + eps)


def _norm(core: Core, x: np.ndarray, scale: np.ndarray, shift: np.ndarray, *, groups: int, eps: float) -> np.ndarray:
    """A group norm with the given core, f(g, eps)."""
    x_hat = core(x.reshape(x.shape[0], groups, -1), eps)
    return x_hat.reshape(x.shape) * scale.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1)


def _core(**options: Any) -> Callable[[Core], Core]:
    """The function below, f(g, eps), is the core of a group norm."""

    def register(core: Core) -> Core:
        formula(**{**NORM, **options})(named(core.__name__, core.__doc__ or "", partial(_norm, core)))
        return core

    return register


@operation(**NORM)
def group_norm_eps_1e_5(ops: Any, call: Any, x: Any, scale: Any, shift: Any, *, groups: int, eps: float) -> Any:
    """eps is 1e-5, not 1e-6."""
    return call(x, scale, shift, groups=groups, eps=10 * eps)


@_core()
def group_norm_eps_outside_the_root(g: np.ndarray, eps: float) -> np.ndarray:
    """eps is added to the standard deviation, outside the square root."""
    return (g - _mean(g)) / (g.std(-1, keepdims=True) + eps)


@operation(**NORM)
def group_norm_without_eps(ops: Any, call: Any, x: Any, scale: Any, shift: Any, *, groups: int, eps: float) -> Any:
    """eps is not added."""
    return call(x, scale, shift, groups=groups, eps=1e-30)


@_core()
def group_norm_unbiased_variance(g: np.ndarray, eps: float) -> np.ndarray:
    """The variance is divided by n - 1, not by n."""
    return (g - _mean(g)) / np.sqrt(g.var(-1, ddof=1, keepdims=True) + eps)


@_core()
def group_norm_variance_in_one_pass(g: np.ndarray, eps: float) -> np.ndarray:
    """The variance is E[x²] - E[x]², which cancels if the mean is large."""
    g = g.astype(np.float32)
    sigma2 = np.maximum(_mean(g * g) - _mean(g) ** 2, 0)
    return (g - _mean(g)) / np.sqrt(sigma2 + np.float32(eps))


@operation(**NORM, equivalent_in={dtype: "it is not stored in 16 bits" for dtype in ("float32", "float64")})
def group_norm_statistics_in_16_bits(ops: Any, call: Any, x: Any, *weights: Any, groups: int, eps: float) -> Any:
    """Mean and variance are computed in the 16-bit storage dtype, not in float32."""

    def core(g: np.ndarray, eps: float) -> np.ndarray:
        narrow = g.astype(storage_dtype(ops.dtype))
        mean = narrow.mean(-1, keepdims=True)
        centred = narrow - mean
        sigma2 = (centred * centred).mean(-1, keepdims=True).astype(np.float64)
        return centred.astype(np.float64) / np.sqrt(sigma2 + eps)

    with np.errstate(over="ignore"):
        scale, shift = (weight_numbers(ops, w) for w in weights)
        return as_map(ops, _norm(core, map_numbers(ops, x), scale, shift, groups=groups, eps=eps))


GROUPS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "group_norm_swaps_groups_and_their_size": (
        "The number of groups and the channels of a group are swapped.",
        lambda C, groups: C // groups,
    ),
    "group_norm_always_32_groups": (
        "There are always 32 groups, or one for each channel if there are fewer channels.",
        lambda C, groups: min(32, C),
    ),
    "group_norm_one_group": (
        "Norms have one group for all channels, whatever norm_num_groups says.",
        lambda C, groups: 1,
    ),
}


def _grouped(count: Callable[[int, int], int]) -> Any:
    def norm(ops: Any, call: Any, x: Any, scale: Any, shift: Any, *, groups: int, eps: float) -> Any:
        return call(x, scale, shift, groups=count(scale.shape[0], groups), eps=eps)

    return norm


for _name, (_cause, _count) in GROUPS.items():
    operation(**NORM)(named(_name, _cause, _grouped(_count)))


@formula(**NORM)
def group_norm_interleaved_groups(
    x: np.ndarray, scale: np.ndarray, shift: np.ndarray, *, groups: int, eps: float
) -> np.ndarray:
    """A group is every n-th channel, not neighbouring channels."""
    C = x.shape[1]
    order = np.arange(C).reshape(-1, groups).T.ravel()  # the channels of the first interleaved group, of the second …
    y = _norm(_standardized, x[:, order], np.ones(C), np.zeros(C), groups=groups, eps=eps)[:, np.argsort(order)]
    return y * scale.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1)


@operation(**NORM)
def group_norm_without_scale_and_shift(ops: Any, call: Any, x: Any, scale: Any, shift: Any, **numbers: Any) -> Any:
    """The norm's scale and shift are not applied."""
    return call(x, 0 * scale + 1, 0 * shift, **numbers)


@operation(**NORM)
def group_norm_shift_before_scale(ops: Any, call: Any, x: Any, scale: Any, shift: Any, **numbers: Any) -> Any:
    """The norm's shift is added before scaling, not after."""
    return call(x, scale, shift * scale, **numbers)


@_core()
def group_norm_statistics_of_the_batch(g: np.ndarray, eps: float) -> np.ndarray:
    """Mean and variance are computed over the whole batch, not for each item."""
    return (g - g.mean((0, 2), keepdims=True)) / np.sqrt(g.var((0, 2), keepdims=True) + eps)


@operation("channel_statistics", "ops.moments")
def channel_statistics_unbiased_variance(ops: Any, call: Any, x: Any) -> Any:
    """channel_statistics divides the variance by n - 1, not by n."""
    mean, sigma2 = call(x)
    n = map_numbers(ops, x)[0, 0].size
    return mean, sigma2 * (n / (n - 1))


@operation("normalize", "ops.normalize")
def normalize_eps_outside_the_root(
    ops: Any, call: Any, x: Any, mean: Any, sigma2: Any, scale: Any, shift: Any, *, eps: float
) -> Any:
    """normalize adds eps outside the square root."""
    deviation = sigma2**0.5 + eps
    return call(x, mean, deviation * deviation, scale, shift, eps=0.0)

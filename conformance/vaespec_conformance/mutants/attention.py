"""Mistakes in attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from vaespec_conformance.mutants.mutant import reformulated, replaced
from vaespec_conformance.mutants.products import SAME_AS_TF32, tf32

OWNED: dict[str, Any] = {"owner": "ops.attention", "seen_in_ports": "model.decode"}


def softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    """Weights of sum 1 over an axis."""
    weights = np.exp(logits - logits.max(axis, keepdims=True))
    return weights / weights.sum(axis, keepdims=True)


def _logits(q: np.ndarray, k: np.ndarray, scale: float) -> np.ndarray:
    return scale * (q @ k.transpose(0, 2, 1))


def _scaled(other: Any) -> Any:
    def function(ops: Any, call: Any, q: Any, k: Any, v: Any, *, scale: float) -> Any:
        return call(q, k, v, scale=other(q.shape[2]))

    return function


replaced("attention", "no scale", cause="logits are not scaled", **OWNED)(_scaled(lambda C: 1.0))
replaced("attention", "scaled by 1 / C", cause="the scale is 1 / C, not its root", **OWNED)(_scaled(lambda C: 1 / C))
replaced("attention", "scaled for heads of 64", cause="the scale is that of 64 channels", **OWNED)(
    _scaled(lambda C: 0.125)
)


@reformulated("attention", "softmax over queries", cause="the softmax is over the queries", **OWNED)
def _(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float) -> np.ndarray:
    return softmax(_logits(q, k, scale), axis=1) @ v


@replaced("attention", "queries and keys", cause="queries and keys are swapped", **OWNED)
def _(ops: Any, call: Any, q: Any, k: Any, v: Any, *, scale: float) -> Any:
    return call(k, q, v, scale=scale)


@reformulated(
    "attention",
    "greatest logit not subtracted",
    cause="exponentials overflow, since the greatest logit is not subtracted",
    **OWNED,
)
def _(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.exp(_logits(q, k, scale).astype(np.float32))
        return (weights / weights.sum(-1, keepdims=True)) @ v


@reformulated("attention", "across the batch", cause="an item attends to all items", **OWNED)
def _(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float) -> np.ndarray:
    all_q, all_k, all_v = (t.reshape(1, -1, t.shape[2]) for t in (q, k, v))
    return (softmax(_logits(all_q, all_k, scale)) @ all_v).reshape(q.shape)


@reformulated("attention", "causal", cause="a token sees only the ones before it", **OWNED)
def _(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float) -> np.ndarray:
    logits = _logits(q, k, scale)
    return softmax(np.where(np.tri(logits.shape[1], dtype=bool), logits, -np.inf)) @ v


@reformulated("attention", "TF32", cause="products are TF32's", equivalent_in=SAME_AS_TF32, **OWNED)
def _(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float) -> np.ndarray:
    return softmax(_logits(tf32(q), tf32(k), scale)) @ tf32(v)


@replaced(
    "merge_chunks", "sums not rescaled", owner="ops.attention", cause="chunks are merged without scaling them alike"
)
def _(ops: Any, call: Any, one: Any, other: Any) -> Any:
    (m, l, o), (m2, l2, o2) = one, other
    return ops.xp.maximum(m, m2), l + l2, o + o2


@reformulated("eager_attention", "no scale", owner="ops.attention", cause="logits are not scaled in eager attention")
def _(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float) -> np.ndarray:
    return softmax(_logits(q, k, 1.0)) @ v

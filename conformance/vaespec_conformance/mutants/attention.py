"""Mistakes in attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vaespec_conformance.mutants.mutant import formula, named, operation
from vaespec_conformance.mutants.products import SAME_AS_TF32, tf32

ATTENTION: dict[str, Any] = {"op": "attention", "owner": "ops.attention", "seen_in_ports": "model.decode"}


def softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    """Weights whose sum over an axis is 1."""
    weights = np.exp(logits - logits.max(axis, keepdims=True))
    return weights / weights.sum(axis, keepdims=True)


def _logits(q: np.ndarray, k: np.ndarray, scale: float) -> np.ndarray:
    return scale * (q @ k.transpose(0, 2, 1))


SCALES: dict[str, tuple[str, Callable[[int], float]]] = {
    "attention_without_scale": ("The logits are not scaled.", lambda C: 1.0),
    "attention_scaled_by_1_over_c": ("The logits are scaled by 1 / C, not by 1 / √C.", lambda C: 1 / C),
    "attention_scaled_for_64_channels": ("The logits are scaled by 1 / √64, whatever C is.", lambda C: 0.125),
}


def _scaled(scale_of: Callable[[int], float]) -> Any:
    def attend(ops: Any, call: Any, q: Any, k: Any, v: Any, *, scale: float) -> Any:
        return call(q, k, v, scale=scale_of(q.shape[2]))

    return attend


for _name, (_cause, _scale_of) in SCALES.items():
    operation(**ATTENTION)(named(_name, _cause, _scaled(_scale_of)))


@formula(**ATTENTION)
def attention_softmax_over_queries(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float) -> np.ndarray:
    """The softmax is over the queries, not over the keys."""
    return softmax(_logits(q, k, scale), axis=1) @ v


@operation(**ATTENTION)
def attention_swaps_queries_and_keys(ops: Any, call: Any, q: Any, k: Any, v: Any, *, scale: float) -> Any:
    """Queries and keys are swapped."""
    return call(k, q, v, scale=scale)


@formula(**ATTENTION)
def attention_without_subtracting_the_largest_logit(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float
) -> np.ndarray:
    """Exponentials overflow, because the largest logit is not subtracted first."""
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.exp(_logits(q, k, scale).astype(np.float32))
        return (weights / weights.sum(-1, keepdims=True)) @ v


@formula(**ATTENTION)
def attention_across_the_batch(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float) -> np.ndarray:
    """Each item attends to all items of the batch, not only to itself."""
    all_q, all_k, all_v = (t.reshape(1, -1, t.shape[2]) for t in (q, k, v))
    return (softmax(_logits(all_q, all_k, scale)) @ all_v).reshape(q.shape)


@formula(**ATTENTION)
def attention_is_causal(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float) -> np.ndarray:
    """Attention is causal: a token attends only to itself and to earlier tokens."""
    logits = _logits(q, k, scale)
    return softmax(np.where(np.tri(logits.shape[1], dtype=bool), logits, -np.inf)) @ v


@formula(**ATTENTION, equivalent_in=SAME_AS_TF32)
def attention_in_tf32(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float) -> np.ndarray:
    """Attention multiplies in TF32, which keeps 11 bits of each factor."""
    return softmax(_logits(tf32(q), tf32(k), scale)) @ tf32(v)


@operation("merge_chunks", "ops.attention")
def chunks_merged_without_rescaling(ops: Any, call: Any, one: Any, other: Any) -> Any:
    """Chunks of keys are merged without rescaling their sums to the same largest logit."""
    (m, l, o), (m2, l2, o2) = one, other
    return ops.xp.maximum(m, m2), l + l2, o + o2


@formula("eager_attention", "ops.attention")
def eager_attention_without_scale(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float) -> np.ndarray:
    """The logits are not scaled."""
    return softmax(_logits(q, k, 1.0)) @ v

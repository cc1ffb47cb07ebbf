"""Attention in blocks of queries and keys that stay in a core's cache: see Specification.chunked_attention."""

from __future__ import annotations

import numpy as np

from vaespec_cpu.memory import Array, fresh
from vaespec_cpu.threads import side_by_side

KEYS = 1024  # at a time; with as many queries as make a strip of logits
Chunk = tuple[Array, Array, Array]
"""(m, l, o): (B, n, 1), (B, n, 1), (B, n, C)."""


def attend(q: Array, k: Array, v: Array, scale: float) -> Chunk:
    """Attend from queries (B, n, C) to all keys (B, m, C), in strips of queries on every core."""
    B, n, C = q.shape
    m, l, o = (fresh((B, n, width), q.dtype) for width in (1, 1, C))
    for item in range(B):
        keys = np.ascontiguousarray(k[item].T) * q.dtype.type(scale)

        def strip(rows: slice, item: int = item, keys: Array = keys) -> None:
            _attend(q[item, rows], keys, v[item], m[item, rows], l[item, rows], o[item, rows])

        side_by_side(strip, n, min(KEYS, k.shape[1]))
    return m, l, o


def _attend(q: Array, keys: Array, v: Array, m: Array, l: Array, o: Array) -> None:
    """Compute one strip into m, l and o: the sums so far are scaled down whenever a greater logit comes."""
    for start in range(0, keys.shape[1], KEYS):
        chunk = slice(start, start + KEYS)
        logits = q @ keys[:, chunk]
        peak = logits.max(axis=1, keepdims=True)
        if start:
            np.maximum(peak, m, out=peak)
            fading = np.exp(m - peak)
            l *= fading
            o *= fading
        logits -= peak
        np.exp(logits, out=logits)
        m[...] = peak
        if start:
            l += logits.sum(axis=1, keepdims=True)
            o += logits @ v[chunk]
        else:
            logits.sum(axis=1, keepdims=True, out=l)
            np.matmul(logits, v[chunk], out=o)

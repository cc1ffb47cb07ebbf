"""Portable noise: the same float32 numbers on every backend, dtype, device, NumPy version and batch split.

Philox 4x64 (Salmon et al. 2011), keyed by (seed, item), gives the bits; Box & Muller 1958 makes them normal. NumPy
promises the Philox stream for good, but not its own `standard_normal`, so the last step is our own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vaespec.errors import InputError

Seed = int | Sequence[int]


def standard_normal(shape: Sequence[int], seed: Seed, *, first_item: int = 0) -> np.ndarray:
    """N(0, 1) noise of shape (B, ...), float32.

    An int seeds the whole batch: item i is drawn from the key (seed, first_item + i), so a batch cut in two gives
    the same noise when the second half passes its `first_item`. A sequence seeds item by item, with keys (seed_i, 0).
    Seeds are integers from 0 to 2**64 - 1. Raises InputError for another seed, and unless a sequence has one per item.
    """
    batch, *item_shape = shape
    seeds = list(seed) if isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str) else seed
    for s in seeds if isinstance(seeds, list) else [seeds]:
        if not isinstance(s, int | np.integer) or not 0 <= s < 2**64:
            raise InputError(f"seed={s!r}: expected an integer from 0 to 2**64 - 1, or a sequence with one per item.")
    if not isinstance(seeds, list):
        keys = [(int(seeds), first_item + i) for i in range(batch)]
    elif len(seeds) == batch:
        keys = [(int(s), 0) for s in seeds]
    else:
        raise InputError(f"{len(seeds)} seeds for a batch of {batch}: give one seed, or one per item.")
    items = [_item(math.prod(item_shape), key).reshape(item_shape) for key in keys]
    return np.stack(items) if items else np.empty(tuple(shape), np.float32)


def _item(count: int, key: tuple[int, int]) -> np.ndarray:
    """Draws `count` normal numbers: √(-2 ln u₁) cos 2πu₂ and √(-2 ln u₁) sin 2πu₂, with u uniform in (0, 1)."""
    bits = np.random.Philox(key=np.array(key, np.uint64)).random_raw(count + count % 2)
    u = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # the centre of each of 2^53 cells: never 0
    radius, angle = np.sqrt(-2.0 * np.log(u[0::2])), 2.0 * np.pi * u[1::2]
    pairs = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=-1)
    return pairs.reshape(-1)[:count].astype(np.float32)

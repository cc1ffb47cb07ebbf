"""A cache of arrays that is bounded by bytes: results of narrow models are small, those of real sizes are not."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import wraps
from threading import Lock
from typing import ParamSpec

import numpy as np

P = ParamSpec("P")


def cached_within(limit: int) -> Callable[[Callable[P, np.ndarray]], Callable[P, np.ndarray]]:
    """Caches the arrays that a function returns while they need at most `limit` bytes; the oldest is dropped first.

    An array larger than that is returned and not kept.
    """

    def decorate(function: Callable[P, np.ndarray]) -> Callable[P, np.ndarray]:
        kept: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        lock, held = Lock(), 0

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> np.ndarray:
            nonlocal held
            key = (args, tuple(kwargs.items()))
            with lock:
                if key in kept:
                    kept.move_to_end(key)
                    return kept[key]
            result = function(*args, **kwargs)
            with lock:
                if key not in kept:
                    kept[key], held = result, held + result.nbytes
                while held > limit:
                    held -= kept.popitem(last=False)[1].nbytes
            return result

        return call

    return decorate

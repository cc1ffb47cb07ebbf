"""Functions on arrays for code without ops: posteriors and latents outlive the model that computed them.

Dispatched on the type of the array `like`; an adapter registers its own version if the Array API is not enough.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from vaespec.errors import InputError


@singledispatch
def asarray_like(like: Any, values: Any) -> Any:
    """NumPy values -> an array in the framework of `like`, on the device of `like`."""
    return array_namespace(like).asarray(values, device=like.device)


@singledispatch
def channels(x: Any, start: int, stop: int) -> Any:
    """Channels start … stop - 1 of an array (…, C, H, W)."""
    return x[..., start:stop, :, :]


@singledispatch
def normal_like(like: Any, generator: Any) -> Any:
    """N(0, 1) noise in the shape of `like`, from a generator of NumPy or of its framework; None means fresh entropy."""
    if generator is not None and not isinstance(generator, np.random.Generator):
        raise InputError(
            f"generator is a {type(generator).__name__}: give one of numpy.random or of the framework, or give seed=."
        )
    drawn = (generator or np.random.default_rng()).standard_normal(tuple(like.shape), dtype=np.float32)
    return asarray_like(like, drawn)

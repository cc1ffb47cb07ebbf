"""What arrays need beyond the standard, where no Ops is at hand: posteriors and latents outlive the model they are of.

Dispatched on the type of an array, `like`; an adapter registers what differs in its framework.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from vaespec.errors import InputError


@singledispatch
def asarray_like(like: Any, values: Any) -> Any:
    """NumPy values -> an array of `like`'s framework, on its device."""
    return array_namespace(like).asarray(values, device=like.device)


@singledispatch
def normal_like(like: Any, generator: Any) -> Any:
    """N(0, 1) noise of `like`'s shape from a generator: NumPy's, or its framework's own; fresh noise where None."""
    if generator is not None and not isinstance(generator, np.random.Generator):
        raise InputError(
            f"generator is a {type(generator).__name__}: give one of numpy.random, of the framework, or seed=."
        )
    drawn = (generator or np.random.default_rng()).standard_normal(tuple(like.shape), dtype=np.float32)
    return asarray_like(like, drawn)

"""MLX's arrays outside the model: placing values, drawing noise, and what pickle refuses."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from vaespec.arrays import asarray_like, normal_like
from vaespec.copying import Call, portable
from vaespec.errors import BackendError, InputError


@asarray_like.register
def _(like: mx.array, values: Any) -> mx.array:
    return mx.array(values)


@normal_like.register
def _(like: mx.array, generator: Any) -> mx.array:
    """Draw with a key of mlx.core.random, or with its own state if None, in the dtype of `like`."""
    if isinstance(generator, np.random.Generator):
        return normal_like.dispatch(object)(like, generator)
    if generator is not None and not isinstance(generator, mx.array):
        raise InputError(
            f"generator is a {type(generator).__name__}: give a key of mlx.core.random, a numpy.random.Generator, or "
            "seed=."
        )
    return mx.random.normal(like.shape, dtype=like.dtype, key=generator)


@portable.register
def _(value: mx.Device) -> Call:
    return Call(_device, value.type.name)


def _device(kind: str) -> mx.Device:
    """Find a device again by its kind. Raises BackendError if this machine does not have it."""
    if not mx.is_available(getattr(mx, kind)):
        raise BackendError(f"the pickled object is on MLX's {kind}, which is not here: move it with to('cpu') first.")
    return mx.Device(getattr(mx, kind))

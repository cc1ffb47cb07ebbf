"""Functions on arrays for code without ops: posteriors and latents outlive the model that computed them.

The first three are dispatched on the type of the array; an adapter registers its own version if the Array API is not
enough.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import singledispatch
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, to_device

from vaespec.dtypes import dtype_name
from vaespec.errors import InputError


@singledispatch
def asarray_like(like: Any, values: Any) -> Any:
    """NumPy values -> an array in the framework of `like`, on the device of `like`."""
    return array_namespace(like).asarray(values, device=device_of(like))


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


def own_namespace(x: Any) -> Any:
    """The Array API namespace that x belongs to, None if x is no array."""
    with suppress(TypeError):
        return array_namespace(x)
    return None


def device_of(x: Any) -> Any:
    """The device of an array; None, the default device, if its framework has no devices of arrays (MLX)."""
    with suppress(AttributeError):
        return device(x)
    return None


def on_device(x: Any, place: Any) -> Any:
    """x on another device of its framework; x itself if it is there, or if `place` is None."""
    return x if place is None or device_of(x) in (None, place) else to_device(x, place)


def to_host(x: Any) -> np.ndarray:
    """An array of any framework, on any device, as NumPy: the same values, bfloat16 as ml_dtypes' type.

    Raises InputError if its values cannot be read.
    """
    x = x.full_tensor() if hasattr(x, "full_tensor") else x  # each process has a part of it
    x = x.detach() if hasattr(x, "detach") else x  # recorded for gradients
    if not isinstance(x.dtype, np.dtype) and dtype_name(x.dtype) == "bfloat16":  # NumPy has no such type
        import ml_dtypes

        xp = array_namespace(x)
        return to_host(xp.astype(x, xp.float32)).astype(ml_dtypes.bfloat16)  # float32 holds every value
    reason: Exception | None = None
    for read in READERS:
        try:
            a = read(x)
        except MemoryError:
            raise
        except Exception as error:  # frameworks raise different errors
            reason = reason or error
        else:
            if a.dtype != object:
                return a
    because = f" ({str(reason).splitlines()[0].rstrip('.')})" if str(reason or "") else ""
    raise InputError(
        f"a {type(x).__name__} on {device_of(x)} cannot be read as NumPy{because}: give arrays with values."
    )


def _from_cpu(x: Any) -> np.ndarray:
    return np.asarray(to_device(x, "cpu"))


def _from_default_device(x: Any) -> np.ndarray:
    """x as NumPy, by way of the default device of its namespace."""
    default = array_namespace(x).__array_namespace_info__().default_device()
    return np.asarray(to_device(x, default))


READERS: tuple[Callable[[Any], np.ndarray], ...] = (
    *(np.asarray, _from_cpu, _from_default_device, np.from_dlpack),
    lambda x: np.asarray(x.unwrap_numpy()),  # of a namespace that records a graph, and computes too
)
"""Ways to read an array of some framework, the usual one first."""

"""JAX's arrays outside the model: placing values, drawing noise, outputs as pytrees, and devices that are pickled."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaespec.arrays import asarray_like, channels, normal_like
from vaespec.copying import Call, portable
from vaespec.errors import BackendError, InputError
from vaespec.outputs import ARRAY_FIELDS, flatten, unflatten


def _asarray_like(like: jax.Array, values: Any) -> jax.Array:
    return jnp.array(values)  # a copy, not committed to a device: it follows what it is combined with


@channels.register
def _(x: jax.Array, start: int, stop: int) -> jax.Array:
    """Copy them in the memory of the process: as an operation, JAX would compile and keep a program for each shape."""
    if isinstance(x, jax.core.Tracer) or {d.platform for d in x.devices()} != {"cpu"} or len(x.devices()) > 1:
        return x[..., start:stop, :, :]
    copied = np.array(np.asarray(x)[..., start:stop, :, :])
    return jax.device_put(copied, x.sharding if x.committed else None)


def _normal_like(like: jax.Array, generator: Any) -> jax.Array:
    """Draw with a key of jax.random, in the dtype of `like`; with NumPy's generators and None only outside traces."""
    if isinstance(generator, jax.Array):
        try:
            return jax.random.normal(generator, like.shape, like.dtype)
        except (TypeError, ValueError):  # whether raw numbers are a key, only jax.random knows
            description = f"{generator.dtype} of shape {generator.shape}"
            raise InputError(
                f"generator is {description}: give a key of jax.random, or a list with one for each item."
            ) from None
    if isinstance(like, jax.core.Tracer) and (generator is None or isinstance(generator, np.random.Generator)):
        raise InputError(
            "noise of NumPy inside jit, grad or vmap is drawn once for all: give a key of jax.random, or noise=."
        )
    return normal_like.dispatch(object)(like, generator)


@portable.register
def _(value: jax.Device) -> Call:
    return Call(_device, value.platform, value.id)


def _device(platform: str, number: int) -> jax.Device:
    """Find a device again by its name. Raises BackendError if this process does not have it."""
    with suppress(RuntimeError):  # no such platform
        for device in jax.local_devices(backend=platform):
            if device.id == number:
                return device
    raise BackendError(
        f"the pickled object is on JAX's {platform}:{number}, which this process does not have: move it with to('cpu') "
        "first."
    )


def _register_pytree(output: type, fields: tuple[str, ...]) -> None:
    def with_keys(node: Any) -> Any:
        arrays, constants = flatten(node)
        keys = map(jax.tree_util.GetAttrKey, fields)
        return tuple(zip(keys, arrays, strict=True)), constants

    def restored(constants: Any, arrays: Any) -> Any:
        return unflatten(output, arrays, constants)

    jax.tree_util.register_pytree_with_keys(output, with_keys, restored, flatten)


for kind in (jax.Array, jax.core.Tracer):  # tracers stand for arrays, but do not say so to functools
    asarray_like.register(kind, _asarray_like)
    normal_like.register(kind, _normal_like)

for output, fields in ARRAY_FIELDS.items():
    _register_pytree(output, fields)

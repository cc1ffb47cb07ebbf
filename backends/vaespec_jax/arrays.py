"""What the core asks of JAX's arrays outside the model: placing, noise, and outputs as pytrees."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaespec.arrays import asarray_like, normal_like
from vaespec.errors import InputError
from vaespec.outputs import ARRAY_FIELDS, flatten, unflatten


def _asarray_like(like: jax.Array, values: Any) -> jax.Array:
    return jnp.asarray(values)  # not committed to a device: it follows what it is combined with


def _normal_like(like: jax.Array, generator: Any) -> jax.Array:
    """From a key of jax.random, in the dtype of `like`; NumPy's generators, and None, only where nothing is traced."""
    if isinstance(generator, jax.Array):
        return jax.random.normal(generator, like.shape, like.dtype)
    if isinstance(like, jax.core.Tracer) and (generator is None or isinstance(generator, np.random.Generator)):
        raise InputError("noise inside jit, grad or vmap would be drawn once and kept: give a key of jax.random, or noise=.")
    drawn: jax.Array = normal_like.dispatch(object)(like, generator)
    return drawn


for kind in (jax.Array, jax.core.Tracer):  # tracers stand for arrays, but do not say so to functools
    asarray_like.register(kind, _asarray_like)
    normal_like.register(kind, _normal_like)

for output, fields in ARRAY_FIELDS.items():

    def _with_keys(node: Any, fields: tuple[str, ...] = fields) -> Any:
        children, constants = flatten(node)
        return tuple((jax.tree_util.GetAttrKey(name), child) for name, child in zip(fields, children, strict=True)), constants

    def _unflatten(constants: Any, children: Any, output: type = output) -> Any:
        return unflatten(output, children, constants)

    jax.tree_util.register_pytree_with_keys(output, _with_keys, _unflatten, flatten)

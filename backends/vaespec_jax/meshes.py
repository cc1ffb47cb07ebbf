"""Meshes with Explicit axes, where the type of an array says how it is sharded: a layer is computed on Auto axes.

On Explicit axes, each reshape and each product would have to say how its result is sharded, and no convolution may be
sharded over rows. On Auto axes, XLA decides that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

Run = Callable[[Array, Mapping[str, Array]], Array]


def on_auto_axes(run: Run, x: Array, params: Mapping[str, Array]) -> Array:
    """Compute run(x, params) of maps (B, H, W, C), on Auto axes if an argument is on Explicit ones.

    The result is on Explicit axes again, sharded as x is, but for its channels, and for sizes that do not divide.
    """
    mesh = _explicit_mesh(x, *params.values())
    if mesh is None:
        return run(x, params)
    arrays = jax.tree.map(_unsharded, (x, dict(params)))
    spec = _spec(x, mesh, jax.eval_shape(run, *arrays).shape)
    axes = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit)
    return jax.sharding.auto_axes(run, axes=axes, out_sharding=NamedSharding(mesh, spec))(x, dict(params))


def _explicit_mesh(*given: Any) -> AbstractMesh | None:
    """The mesh with Explicit axes of the context, or of the first array that is on one."""
    types = (jax.typeof(a) for a in given if isinstance(a, Array))
    meshes = (jax.sharding.get_abstract_mesh(), *(kind.sharding.mesh for kind in types))
    return next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)


def _spec(x: Array, mesh: AbstractMesh, shape: tuple[int, ...]) -> PartitionSpec:
    """The sharding of x over batch, height and width, for a map of this shape."""

    def divides(axis: str | tuple[str, ...] | None, size: int) -> bool:
        names = (axis,) if isinstance(axis, str) else axis or ()
        return size % math.prod(mesh.shape[name] for name in names) == 0

    axes = tuple(jax.typeof(x).sharding.spec)[:3]
    kept = (axis if divides(axis, size) else None for axis, size in zip(axes, shape, strict=False))
    return PartitionSpec(*kept)  # type: ignore[no-untyped-call]


def _unsharded(a: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(a.shape, a.dtype)  # type: ignore[no-untyped-call]

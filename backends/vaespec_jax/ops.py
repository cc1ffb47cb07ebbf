"""The operations on JAX: maps are (B, H, W, C). Nothing depends on values, so everything may be traced."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping
from contextlib import nullcontext
from functools import lru_cache, partial, wraps
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

import vaespec_jax.arrays  # noqa: F401  (registers arrays, keys and pytrees)
from vaespec.dtypes import narrow, storage_dtype, widen
from vaespec.errors import BackendError
from vaespec.machine import MemoryUse, host_memory
from vaespec.ops import Layer, Padding
from vaespec.parameter import Parameter
from vaespec.reference import ReferenceOps
from vaespec_cpu.engine import Engine
from vaespec_jax.meshes import on_auto_axes

MAPS = ("NHWC", "HWIO", "NHWC")

HALVES_KEPT, OPERATIONS_KEPT = 64, 512
"""Compiled programs that a process keeps, of halves of models and of single operations: one for each shape, each of
some MiB. The one that was not used for longest is dropped, and compiled again for a new input of its shape.
"""


@lru_cache(maxsize=HALVES_KEPT)
def _half(model: Any, ops: JaxOps, kind: Hashable) -> Callable[[Array, Mapping[str, Array]], Array]:
    """The encoder or the decoder as a program for one shape, however many models share it; the last ones are kept."""
    return jax.jit(lambda x, params: model(x, params, ops))


@lru_cache(maxsize=OPERATIONS_KEPT)
def _operation(op: Callable[..., Any], ops: JaxOps, kind: Hashable) -> Callable[..., Any]:
    """An operation as a program for arguments of one kind; the last ones are kept."""
    keywords = [p.name for p in inspect.signature(op).parameters.values() if p.kind is p.KEYWORD_ONLY]
    program: Callable[..., Any] = jax.jit(partial(op, ops), static_argnames=keywords)
    return program


def _at_once(op: Callable[..., Any]) -> Callable[..., Any]:
    """Compile an operation as one program if it is called by itself, as in bands; its keywords are static numbers."""

    @wraps(op)
    def at_once(ops: JaxOps, *args: Any, **kwargs: Any) -> Any:
        return _operation(op, ops, (*map(_kind, args), *kwargs, *map(_kind, kwargs.values())))(*args, **kwargs)

    return at_once


def _kind(argument: Any) -> Hashable:
    """What a program is compiled for: an array's shape and dtype, or a number."""
    return (argument.shape, argument.dtype) if hasattr(argument, "dtype") else argument


class JaxOps(ReferenceOps):
    """The operations on one device.

    Products follow the dtype of the weights, so that params may be cast after `functional()`.
    """

    map_layout = "NHWC"
    conv_layout = "HWIO"
    linear_layout = "IO"
    fixed_shapes = True

    def __init__(self, device: str, dtype: str, precision: str = "default") -> None:
        platform, _, index = device.partition(":")
        devices = jax.local_devices(backend=platform)
        super().__init__(jnp, dtype, next(d for d in devices if not index or d.id == int(index)))
        self.precision = precision

    @property
    def storage(self) -> np.dtype:
        """The dtype as NumPy's. Raises BackendError if JAX would make it narrower: x64 may be of one context only."""
        if self.dtype == "float64" and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
            raise BackendError("JAX makes float64 float32: jax.config.update('jax_enable_x64', True) comes first.")
        return storage_dtype(self.dtype)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((self.dtype, self.device, self.precision))

    @property
    def on_engine(self) -> bool:
        """Whether the CPU engine computes what is not traced: it reads a CPU's arrays in place."""
        return self.on_host and self.dtype != "float64" and self.precision == "default"

    @property
    def engine(self) -> Engine:
        as_array = partial(jax.device_put, device=self._commitment())
        return Engine(self.xp, self.dtype, self.layout, np.asarray, as_array)

    def needs_framework(self, *arrays: Array) -> bool:
        """Whether JAX itself must compute with these arrays: traced, cast to another dtype, or shared by devices."""
        return not self.on_engine or any(
            isinstance(a, jax.core.Tracer) or a.dtype != self.storage or len(a.sharding.device_set) > 1 for a in arrays
        )

    def compile(self, model: Layer) -> Callable[[Array, Mapping[str, Array]], Array]:
        run = super().compile(model)

        def run_unless_traced(x: Array, params: Mapping[str, Array]) -> Array:
            traced = self.needs_framework(x, *params.values())
            return (_half(model, self, _kind(x)) if traced else run)(x, params)  # type: ignore[arg-type]  # a dataclass

        return run_unless_traced

    def with_compiler(self) -> Self:
        """Already compiled: return self."""
        return self

    def inference_ops(self, params: Mapping[str, Array]) -> tuple[Any, Mapping[str, Any]]:
        if self.needs_framework(*params.values()):
            return self, params
        return self.engine.ops(), self.engine.params(params)

    def apply(self, function: Callable[[Any, Mapping[str, Array]], Any], x: Any, params: Mapping[str, Array]) -> Any:
        """At the highest precision, run every product inside, and of its gradients, at that precision."""
        with jax.default_matmul_precision("highest") if self.precision == "highest" else nullcontext():
            return on_auto_axes(function, x, params)

    def all_finite(self, x: Array) -> bool:
        if isinstance(x, jax.core.Tracer):  # which has no values yet
            return True
        shared = isinstance(x, Array) and not (self.on_host and len(x.sharding.device_set) == 1)
        return super().all_finite(x if shared else np.asarray(x))

    def from_numpy(self, a: np.ndarray) -> Array:
        with np.errstate(over="ignore"):  # numbers beyond float16 become infinity, which the caller reports
            copied = a.astype(self.storage)  # JAX may keep NumPy's memory for its own
        return jax.device_put(copied, self._commitment())  # jnp.asarray would compile a program for each shape

    def from_host(self, a: np.ndarray) -> Array:
        return jax.device_put(np.array(a), self._commitment())

    def _commitment(self) -> jax.Device | None:
        """The device that arrays are committed to; None for JAX's default device: they may move, or be sharded."""
        return None if self.device == jax.local_devices()[0] else self.device

    @property
    def on_host(self) -> bool:  # type: ignore[override]
        return self.device.platform == "cpu"

    def memory(self) -> MemoryUse:
        stats = None if self.on_host else self.device.memory_stats()  # some devices have no figures
        if not stats:
            return host_memory()
        return MemoryUse(stats["bytes_in_use"], stats["bytes_limit"] - stats["bytes_in_use"])

    def cast(self, x: Array) -> Array:
        x = x.astype(self.storage)
        return x if isinstance(x, jax.core.Tracer) else jax.device_put(x, self._commitment())

    def is_array(self, x: object) -> bool:
        return isinstance(x, Array)

    def load_params(self, params: Mapping[str, np.ndarray], table: Mapping[str, Parameter]) -> dict[str, Array]:
        return self.engine.load_params(params, table) if self.on_engine else super().load_params(params, table)

    def copy(self, x: Array) -> Array:
        return jnp.array(x, copy=True)

    def store(self, x: Array) -> Array:
        """An array that several devices share stays with them."""
        shared = not isinstance(x, jax.core.Tracer) and len(x.sharding.device_set) > 1
        return self.copy(x.astype(self.storage) if shared else self.cast(x))

    def from_nchw(self, x: Array) -> Array:
        return x.transpose(0, 2, 3, 1)

    def to_nchw(self, x: Array) -> Array:
        return x.transpose(0, 3, 1, 2)

    @_at_once
    def conv2d(self, x: Array, w: Array, b: Array, *, stride: int, padding: Padding) -> Array:
        return lax.conv_general_dilated(x.astype(w.dtype), w, (stride, stride), padding, dimension_numbers=MAPS) + b

    @_at_once
    def group_norm(self, x: Array, scale: Array, shift: Array, *, groups: int, eps: float) -> Array:
        B, H, W, C = x.shape
        x_g = widen(x, jnp).reshape(B, H, W, groups, C // groups)
        centred = x_g - x_g.mean((1, 2, 4), keepdims=True)
        variance = jnp.square(centred).mean((1, 2, 4), keepdims=True)
        x_hat = (centred * lax.rsqrt(variance + eps)).reshape(B, H, W, C)
        return narrow(x_hat * scale + shift, x, jnp)

    channel_statistics = _at_once(ReferenceOps.channel_statistics)
    normalize = _at_once(ReferenceOps.normalize)

    @_at_once
    def silu(self, x: Array) -> Array:
        return narrow(jax.nn.silu(widen(x, jnp)), x, jnp)

    @_at_once
    def mish(self, x: Array) -> Array:
        return narrow(jax.nn.mish(widen(x, jnp)), x, jnp)

    @_at_once
    def gelu(self, x: Array) -> Array:
        return narrow(jax.nn.gelu(widen(x, jnp), approximate=False), x, jnp)

    def relu(self, x: Array) -> Array:
        return jax.nn.relu(x)  # its gradient at 0 is 0, as PyTorch's; that of jnp.maximum is 1/2

    @_at_once
    def upsample_nearest2x(self, x: Array) -> Array:
        B, H, W, C = x.shape
        return jnp.broadcast_to(x[:, :, None, :, None, :], (B, H, 2, W, 2, C)).reshape(B, 2 * H, 2 * W, C)

    def tokens(self, x: Array) -> Array:
        B, H, W, C = x.shape
        return x.reshape(B, H * W, C)

    def pixels(self, t: Array, like: Array) -> Array:
        return t.reshape(like.shape)

    @_at_once
    def linear(self, t: Array, w: Array, b: Array | None) -> Array:
        y = t.astype(w.dtype) @ w
        return y if b is None else y + b

    @_at_once
    def attention(self, q: Array, k: Array, v: Array, *, scale: float) -> Array:
        logits = jnp.einsum("bnc,bmc->bnm", q, k, preferred_element_type=widen(q, jnp).dtype)
        weights = jax.nn.softmax(scale * logits, axis=-1)
        return jnp.einsum("bnm,bmc->bnc", weights.astype(v.dtype), v)

    eager_attention = _at_once(ReferenceOps.eager_attention)
    chunked_attention = _at_once(ReferenceOps.chunked_attention)

"""The operations the model is written against, and what each of them means.

`Ops` is the protocol. `ReferenceOps` is the specification: one formula per method, in names of the Python Array API
standard (2023.12), so it runs on any conforming namespace. A backend subclasses it and overrides what it can do
faster; everything it leaves alone still works (`provenance` tells which is which).

Activations ("maps") are (B, C, H, W) here; a backend may hold them in another order, since the model never looks:
it enters through `from_nchw`, leaves through `to_nchw`, and only calls methods in between. Numbers that change the
result (eps, scale, padding, stride) have no default: the layer gives them, so a backend cannot get them wrong.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from vaespec.hostmemory import Memory, host_memory
from vaespec.parameters import Parameter
from vaespec.precision import all_finite, narrow, widen

Array = Any
Padding = tuple[tuple[int, int], tuple[int, int]]
"""Zeros added ((above, below), (left, right))."""

KERNELS = (
    "conv2d",
    "group_norm",
    "silu",
    "mish",
    "gelu",
    "relu",
    "add",
    "upsample_nearest2x",
    "linear",
    "attention",
)
"""The operations that compute: a backend has kernels of its own for them, or runs the reference's."""


class Ops(Protocol):
    """What the model calls. Shapes are given in reference order: maps (B, C, H, W), tokens (B, N, C)."""

    def from_nchw(self, x: Array) -> Array:
        """(B, C, H, W) array of the backend -> map, in the dtype the model computes in."""

    def to_nchw(self, x: Array) -> Array:
        """Map -> (B, C, H, W) array of the backend, in the dtype the model stores."""

    def conv2d(self, x: Array, w: Array, b: Array, *, stride: int, padding: Padding) -> Array: ...

    def group_norm(self, x: Array, scale: Array, shift: Array, *, groups: int, eps: float) -> Array: ...

    def silu(self, x: Array) -> Array: ...

    def mish(self, x: Array) -> Array: ...

    def gelu(self, x: Array) -> Array: ...

    def relu(self, x: Array) -> Array: ...

    def add(self, x: Array, y: Array) -> Array: ...

    def upsample_nearest2x(self, x: Array) -> Array: ...

    def tokens(self, x: Array) -> Array:
        """Map -> (B, H·W, C), pixels row by row."""

    def pixels(self, t: Array, like: Array) -> Array:
        """(B, H·W, C) -> map with the height and width of `like`: the inverse of `tokens`."""

    def linear(self, t: Array, w: Array, b: Array | None) -> Array: ...

    def split(self, t: Array, parts: int) -> tuple[Array, ...]:
        """Tokens (B, N, parts · C) -> as many of (B, N, C)."""

    def scale(self, t: Array, factor: float) -> Array: ...

    def attention(self, q: Array, k: Array, v: Array, *, scale: float) -> Array:
        """softmax(scale · Q Kᵀ) V in the backend's best way."""

    def eager_attention(self, q: Array, k: Array, v: Array, *, scale: float) -> Array:
        """The same, with all N × N weights at one time."""

    def chunked_attention(self, q: Array, k: Array, v: Array, *, scale: float, size: int) -> Array:
        """The same, with never more than size × size weights."""

    def run(self, layer: Layer, x: Array, params: Mapping[str, Array]) -> Array:
        """layer(x, params, self): the place to look at each layer, or to do something after it."""


class Layer(Protocol):
    """A part of the model. See `vaespec.layers`."""

    def __call__(self, x: Array, params: Mapping[str, Array], ops: Ops) -> Array: ...

    def parameters(self) -> Iterator[tuple[str, Parameter]]: ...


class ReferenceOps:
    """The specification, on any Array API namespace `xp`, in the dtype of the arrays it is given.

    Statistics, softmax and exponentials run in float32 or better. Nothing is written in place.
    """

    map_layout = "NCHW"
    conv_layout = "OIHW"
    linear_layout = "OI"
    fixed_shapes = False  # whether every new shape costs a compilation
    fuses = False  # whether norm, activation and doubling are done as a convolution reads, and sums in place

    def __init__(self, xp: Any, dtype: str = "float64", device: Any = None) -> None:
        self.xp = xp
        self.dtype = dtype
        self.device = device

    # -- around the model --------------------------------------------------------------------------------

    def compile(self, model: Layer) -> Callable[[Array, Mapping[str, Array]], Array]:
        """(x, params) -> model(x, params, self), made ready to be called often, outside the framework's transforms."""

        def run(x: Array, params: Mapping[str, Array]) -> Array:
            ops, arrays = self.for_one_run(params)
            return model(x, arrays, ops)

        return run

    def compiling(self) -> ReferenceOps:
        """These, for models that the framework compiles before they run; NotImplementedError where it compiles none."""
        raise NotImplementedError

    def for_one_run(self, params: Mapping[str, Array]) -> tuple[Any, Mapping[str, Array]]:
        """(ops, params) that compute a run outside the framework's transforms, without gradients.

        These, or others that take and return the same arrays at both ends; with working memory that goes with the run.
        """
        return self, params

    def run(self, layer: Layer, x: Array, params: Mapping[str, Array]) -> Array:
        return layer(x, params, self)

    def all_finite(self, x: Array) -> bool:
        """Whether x holds neither NaN nor infinity."""
        return all_finite(x)

    def provenance(self, op: str) -> str:
        """ "native" if this backend has its own `op`, "fallback" if it runs the reference's."""
        return "fallback" if getattr(type(self), op) is getattr(ReferenceOps, op) else "native"

    # -- in and out --------------------------------------------------------------------------------------

    def from_numpy(self, a: np.ndarray) -> Array:
        """A NumPy array -> the backend's own array on this device, in this dtype: a copy."""
        dtype = getattr(self.xp, self.dtype)
        return self.xp.asarray(np.asarray(a, order="C"), dtype=dtype, device=self.device, copy=True)

    def from_dlpack(self, x: Any) -> Array:
        """Another framework's array -> the backend's own, without a copy where they share memory."""
        return self.xp.from_dlpack(x)

    def to_numpy(self, x: Array) -> np.ndarray:
        """The backend's own array -> NumPy, same values."""
        return np.asarray(x)

    def from_host(self, a: np.ndarray) -> Array:
        """The inverse of `to_numpy`: the same numbers in the dtype they have, on this device."""
        return self.xp.asarray(a, device=self.device)

    def settle(self, x: Array) -> Array:
        """x, computed by now, and holding nothing that it was made from."""
        return x

    # -- memory ------------------------------------------------------------------------------------------

    on_host = True
    """Whether arrays lie in the memory of the process."""

    def memory(self) -> Memory:
        """What the device, or the process where it has no memory of its own, holds now, and what is free."""
        return host_memory()

    def workspace(self, op: str, x: tuple[int, ...], y: tuple[int, ...], kernel: tuple[int, ...] = ()) -> int:
        """Bytes that `op` holds for a while beside its arguments and its result, both in reference order (B, C, …)."""
        return 0

    def plan(
        self, x: tuple[int, ...], w: tuple[int, ...], *, stride: int, padding: Padding, doubled: bool = False
    ) -> tuple[str, Mapping[str, float]] | None:
        """(form, costs) of a convolution of shapes x (B, C, H, W) and w (O, C, kh, kw), where the backend chooses.

        `doubled` tells that x is a map doubled. None where the framework decides.
        """
        return None

    def cast(self, x: Array) -> Array:
        """The backend's own array -> the same on this device, in this dtype."""
        return self.xp.astype(x, getattr(self.xp, self.dtype))

    def is_array(self, x: object) -> bool:
        """Whether x is this backend's own kind of array."""
        return hasattr(x, "__array_namespace__") and x.__array_namespace__() is self.xp

    def prepare(self, params: Mapping[str, np.ndarray], table: Mapping[str, Parameter]) -> dict[str, Array]:
        """Canonical weights (diffusers' names, OIHW, NumPy) -> this backend's arrays in its kernel layouts."""
        return {
            name: self.xp.asarray(int(a))  # not to be rounded
            if table[name].role == "counter"
            else self.from_numpy(table[name].to_layout(a, self))
            for name, a in params.items()
        }

    def export(self, params: Mapping[str, Array], table: Mapping[str, Parameter]) -> dict[str, np.ndarray]:
        """The inverse of `prepare`: canonical NumPy weights, in the dtype the backend stores; views where it can."""
        exported = {name: table[name].from_layout(self.to_numpy(x), self) for name, x in params.items()}
        return {name: a.astype(np.int64) if table[name].role == "counter" else a for name, a in exported.items()}

    def from_nchw(self, x: Array) -> Array:
        return x

    def to_nchw(self, x: Array) -> Array:
        return x

    # -- the operations ----------------------------------------------------------------------------------

    def conv2d(self, x: Array, w: Array, b: Array, *, stride: int, padding: Padding) -> Array:
        """y[o, i, j] = b[o] + Σ_{c, u, v} w[o, c, u, v] · x̂[c, s·i + u, s·j + v], x̂ = x padded with zeros.

        x (B, C, H, W), w (O, C, kh, kw), b (O,) -> (B, O, (H' - kh) // s + 1, (W' - kw) // s + 1), H' W' after padding.
        """
        xp = self.xp
        x = self._pad(x, padding)
        (B, C, H, W), (O, _, kh, kw) = x.shape, w.shape
        h, wd = (H - kh) // stride + 1, (W - kw) // stride + 1
        y = xp.reshape(b, (1, O, 1))
        for u in range(kh):
            for v in range(kw):
                tap = x[:, :, u : u + stride * (h - 1) + 1 : stride, v : v + stride * (wd - 1) + 1 : stride]
                y = y + xp.matmul(w[:, :, u, v], xp.reshape(tap, (B, C, h * wd)))  # (B, O, h·wd)
        return xp.reshape(y, (B, O, h, wd))

    def _pad(self, x: Array, padding: Padding) -> Array:
        """Zeros around a map: the standard has no `pad`."""
        for axis, (before, after) in zip((2, 3), padding, strict=True):
            shape = list(x.shape)
            parts = []
            for width in (before, after):
                shape[axis] = width
                parts.append(self.xp.zeros(tuple(shape), dtype=x.dtype, device=self.device))
            if before or after:
                x = self.xp.concat((parts[0], x, parts[1]), axis=axis)
        return x

    def group_norm(self, x: Array, scale: Array, shift: Array, *, groups: int, eps: float) -> Array:
        """y = γ · (x - μ) / √(σ² + ε) + β; μ, σ² per sample and group of C / groups channels, σ² biased.

        x (B, C, H, W), scale γ (C,), shift β (C,) -> (B, C, H, W). Wu & He 2018, arXiv:1803.08494, section 3.
        """
        xp = self.xp
        B, C, H, W = x.shape
        x_g = xp.reshape(widen(x, self.xp), (B, groups, C // groups * H * W))
        mu = xp.mean(x_g, axis=-1, keepdims=True)
        sigma2 = xp.var(x_g, axis=-1, keepdims=True, correction=0)
        x_hat = xp.reshape((x_g - mu) / xp.sqrt(sigma2 + eps), (B, C, H, W))
        return narrow(x_hat * xp.reshape(scale, (1, C, 1, 1)) + xp.reshape(shift, (1, C, 1, 1)), x, xp)

    def moments(self, x: Array) -> tuple[Array, Array]:
        """Mean and biased variance of every channel of every sample: two of (B, C), float32 or wider.

        μ = c + δ and σ² = mean((x - c)²) - δ², where c is mean(x) but for its rounding, and δ = mean(x - c) tiny. Chan,
        Golub & LeVeque 1983, eq. 1.7.
        """
        x = widen(x, self.xp)
        B, C = x.shape[0], x.shape[self.map_layout.index("C")]
        centre = self._mean(x)
        deviation = x - centre
        delta = self._mean(deviation)
        sigma2 = self._mean(deviation * deviation) - delta * delta
        return self.xp.reshape(centre + delta, (B, C)), self.xp.reshape(sigma2, (B, C))

    def _mean(self, x: Array) -> Array:
        """Over the pixels of a map: two short sums, which lose less than one long one where it is taken in order."""
        for axis in "WH":
            x = self.xp.mean(x, axis=self.map_layout.index(axis), keepdims=True)
        return x

    def normalize(self, x: Array, mean: Array, sigma2: Array, scale: Array, shift: Array, *, eps: float) -> Array:
        """y = γ · (x - μ) / √(σ² + ε) + β: a group norm whose moments are known, μ and σ² (B, C), float32 or wider."""
        xp = self.xp
        mean, sigma2, scale, shift = map(self._over_pixels, (mean, sigma2, scale, shift))
        return narrow((widen(x, xp) - mean) / xp.sqrt(sigma2 + eps) * scale + shift, x, xp)

    def _over_pixels(self, p: Array) -> Array:
        """(B, C) or (C,) -> the same for every pixel of a map, by broadcasting."""
        sizes = {"N": p.shape[0] if p.ndim == 2 else 1, "C": p.shape[-1]}
        return self.xp.reshape(p, tuple(sizes.get(axis, 1) for axis in self.map_layout))

    def silu(self, x: Array) -> Array:
        """x · σ(x), with σ(x) = e^min(x, 0) / (1 + e^-|x|), which cannot overflow. Elfwing et al., arXiv:1702.03118."""
        xp, x_w = self.xp, widen(x, self.xp)
        sigma = xp.exp(-self.relu(-x_w)) / (1.0 + xp.exp(-xp.abs(x_w)))
        return narrow(x_w * sigma, x, xp)

    def mish(self, x: Array) -> Array:
        """x · tanh(log(1 + eˣ)), the logarithm as max(x, 0) + log1p(e^-|x|). Misra 2019, arXiv:1908.08681."""
        xp, x_w = self.xp, widen(x, self.xp)
        softplus = self.relu(x_w) + xp.log1p(xp.exp(-xp.abs(x_w)))
        return narrow(x_w * xp.tanh(softplus), x, xp)

    def gelu(self, x: Array) -> Array:
        """½ x (1 + erf(x / √2)), the exact form. Hendrycks & Gimpel 2016, arXiv:1606.08415."""
        x_w = widen(x, self.xp)
        return narrow(0.5 * x_w * (1.0 + self._erf(x_w * math.sqrt(0.5))), x, self.xp)

    def _erf(self, x: Array) -> Array:
        """erf(x) = 2/√π · e^(-x²) · Σ_n 2ⁿ x^(2n+1) / (2n+1)!!  Abramowitz & Stegun 7.1.6; all terms of one sign.

        Beyond |x| = 6, where 1 - erf < 3e-17, the argument is cut to 6; the sum converges there within 140 terms.
        """
        xp = self.xp
        x = xp.minimum(xp.maximum(x, xp.full_like(x, -6.0)), xp.full_like(x, 6.0))
        term = total = x
        for n in range(1, 140):
            term = term * (2.0 * x * x / (2 * n + 1))
            total = total + term
        return total * xp.exp(-x * x) * (2.0 / math.sqrt(math.pi))

    def relu(self, x: Array) -> Array:
        """max(x, 0)."""
        return self.xp.maximum(x, self.xp.zeros_like(x))

    def add(self, x: Array, y: Array) -> Array:
        """x + y, of equal shapes: the residual connection."""
        return x + y

    def upsample_nearest2x(self, x: Array) -> Array:
        """y[i, j] = x[i // 2, j // 2]. (B, C, H, W) -> (B, C, 2H, 2W)."""
        xp = self.xp
        B, C, H, W = x.shape
        x = xp.broadcast_to(xp.reshape(x, (B, C, H, 1, W, 1)), (B, C, H, 2, W, 2))
        return xp.reshape(x, (B, C, 2 * H, 2 * W))

    def tokens(self, x: Array) -> Array:
        B, C, H, W = x.shape
        return self.xp.permute_dims(self.xp.reshape(x, (B, C, H * W)), (0, 2, 1))

    def pixels(self, t: Array, like: Array) -> Array:
        return self.xp.reshape(self.xp.permute_dims(t, (0, 2, 1)), like.shape)

    def linear(self, t: Array, w: Array, b: Array | None) -> Array:
        """y = t Wᵀ + b. t (B, N, I), w (O, I), b (O,) or none -> (B, N, O)."""
        y = self.xp.matmul(t, self.xp.permute_dims(w, (1, 0)))
        return y if b is None else y + b

    def split(self, t: Array, parts: int) -> tuple[Array, ...]:
        C = t.shape[-1] // parts
        return tuple(t[:, :, i * C : (i + 1) * C] for i in range(parts))

    def scale(self, t: Array, factor: float) -> Array:
        """factor · t."""
        return factor * t

    def attention(self, q: Array, k: Array, v: Array, *, scale: float) -> Array:
        return self.eager_attention(q, k, v, scale=scale)

    def eager_attention(self, q: Array, k: Array, v: Array, *, scale: float) -> Array:
        """softmax(scale · Q Kᵀ) V, one head. q, k, v (B, N, C) -> (B, N, C). Vaswani et al. 2017, arXiv:1706.03762."""
        xp = self.xp
        logits = scale * xp.matmul(widen(q, xp), xp.permute_dims(widen(k, xp), (0, 2, 1)))  # (B, N, N)
        weights = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
        weights = weights / xp.sum(weights, axis=-1, keepdims=True)
        return xp.matmul(narrow(weights, v, xp), v)

    def chunked_attention(self, q: Array, k: Array, v: Array, *, scale: float, size: int) -> Array:
        """softmax(scale · Q Kᵀ) V, a chunk of `size` queries and one of `size` keys at a time. Exact.

        Rabe & Staats 2021, arXiv:2112.05682. Each chunk of keys gives its greatest logit m, l = Σ e^(logit - m) and
        o = Σ e^(logit - m) v; two are merged by scaling both to the greater m. The result is o / l.
        """
        n = q.shape[1]
        spans = [slice(i, min(i + size, n)) for i in range(0, n, size)]
        rows = []
        for queries in spans:
            chunks = (self.attend_chunk(q[:, queries, :], k[:, keys, :], v[:, keys, :], scale) for keys in spans)
            rows.append(self.divide_chunks(functools.reduce(self.merge_chunks, chunks), v))
        return self.xp.concat(rows, axis=1)

    def attend_chunk(self, q: Array, k: Array, v: Array, scale: float) -> tuple[Array, Array, Array]:
        """(m, l, o) of some keys for some queries: (B, n, 1), (B, n, 1), (B, n, C), float32 or wider."""
        xp = self.xp
        logits = scale * xp.matmul(widen(q, xp), xp.permute_dims(widen(k, xp), (0, 2, 1)))
        peak = xp.max(logits, axis=-1, keepdims=True)
        weights = xp.exp(logits - peak)
        return peak, xp.sum(weights, axis=-1, keepdims=True), widen(xp.matmul(narrow(weights, v, xp), v), xp)

    def merge_chunks(
        self, one: tuple[Array, Array, Array], other: tuple[Array, Array, Array]
    ) -> tuple[Array, Array, Array]:
        """(m, l, o) of the keys of both."""
        (m, l, o), (m2, l2, o2) = one, other
        peak = self.xp.maximum(m, m2)
        a, b = self.xp.exp(m - peak), self.xp.exp(m2 - peak)
        return peak, a * l + b * l2, a * o + b * o2

    def divide_chunks(self, merged: tuple[Array, Array, Array], like: Array) -> Array:
        """o / l, in the dtype of `like`."""
        _, l, o = merged
        return narrow(o / l, like, self.xp)

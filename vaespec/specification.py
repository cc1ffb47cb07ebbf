"""The specification of the VAE's operations: one formula per method, with its shapes and where it comes from.

`vaespec.architecture` says in which order the model applies them. The formulas use only names of the Python Array API
standard (2023.12), so they run on any namespace that conforms; every backend is compared with them in float64.

Feature maps are x (B, C, H, W): batch, channels, height, width. Tokens are t (B, N, C), one for each of N = H·W pixels.
Weights are diffusers': kernels (O, C, kh, kw), matrices (O, I). Indices count from 0.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from vaespec.dtypes import narrow, widen
from vaespec.ops import Array, Chunk, Padding


class Specification:
    """The formulas, on arrays of the Array API namespace `xp` on `device`.

    A result has the dtype of its input. Statistics, softmax and exponentials of 16-bit floats are computed in float32.
    Nothing is written in place. The methods stand in the order of `vaespec.ops.Ops`, then of `BandableOps`.
    """

    xp: Any
    device: Any
    map_layout = "NCHW"
    """The axes of a map. Backends with another order share the formulas of `channel_statistics` and `normalize`."""

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
        """x with rows and columns of zeros around it; the standard has no `pad`."""
        for axis, widths in zip((2, 3), padding, strict=True):
            before, after = ([self._zeros(x, axis, width)] if width else [] for width in widths)
            x = self.xp.concat((*before, x, *after), axis=axis) if before or after else x
        return x

    def _zeros(self, x: Array, axis: int, width: int) -> Array:
        """`width` rows or columns of zeros, to be joined to x along `axis`."""
        shape = (*x.shape[:axis], width, *x.shape[axis + 1 :])
        return self.xp.zeros(shape, dtype=x.dtype, device=self.device)

    def group_norm(self, x: Array, scale: Array, shift: Array, *, groups: int, eps: float) -> Array:
        """y = γ · (x - μ) / √(σ² + ε) + β; μ, σ² per sample and group of C / groups channels, σ² biased.

        x (B, C, H, W), scale γ (C,), shift β (C,) -> (B, C, H, W). Wu & He 2018, arXiv:1803.08494, section 3.
        """
        xp = self.xp
        B, C, H, W = x.shape
        x_g = xp.reshape(widen(x, xp), (B, groups, C // groups * H * W))
        mu = xp.mean(x_g, axis=-1, keepdims=True)
        sigma2 = xp.var(x_g, axis=-1, keepdims=True, correction=0)
        x_hat = xp.reshape((x_g - mu) / xp.sqrt(sigma2 + eps), (B, C, H, W))
        return narrow(x_hat * xp.reshape(scale, (1, C, 1, 1)) + xp.reshape(shift, (1, C, 1, 1)), x, xp)

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
        """erf(x) = 2/√π · e^(-x²) · Σ_n 2ⁿ x^(2n+1) / (2n+1)!!  Abramowitz & Stegun 7.1.6; all terms have one sign.

        Beyond |x| = 6, where 1 - erf < 3e-17, the argument is set to 6; the sum converges there within 140 terms.
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
        """x + y, of equal shapes: the residual connection. He et al. 2015, arXiv:1512.03385."""
        return x + y

    def upsample_nearest2x(self, x: Array) -> Array:
        """y[i, j] = x[i // 2, j // 2]. (B, C, H, W) -> (B, C, 2H, 2W)."""
        xp = self.xp
        B, C, H, W = x.shape
        x = xp.broadcast_to(xp.reshape(x, (B, C, H, 1, W, 1)), (B, C, H, 2, W, 2))
        return xp.reshape(x, (B, C, 2 * H, 2 * W))

    def tokens(self, x: Array) -> Array:
        """t[W·i + j] = x[i, j]: pixels row by row. (B, C, H, W) -> (B, H·W, C)."""
        B, C, H, W = x.shape
        return self.xp.permute_dims(self.xp.reshape(x, (B, C, H * W)), (0, 2, 1))

    def pixels(self, t: Array, like: Array) -> Array:
        """x[i, j] = t[W·i + j], the inverse of `tokens`. (B, H·W, C) -> (B, C, H, W), the shape of `like`."""
        return self.xp.reshape(self.xp.permute_dims(t, (0, 2, 1)), like.shape)

    def linear(self, t: Array, w: Array, b: Array | None) -> Array:
        """y = t Wᵀ + b. t (B, N, I), w (O, I), b (O,) or none -> (B, N, O)."""
        y = self.xp.matmul(t, self.xp.permute_dims(w, (1, 0)))
        return y if b is None else y + b

    def split(self, t: Array, parts: int) -> tuple[Array, ...]:
        """Channels 0 … C - 1, C … 2C - 1, and so on. (B, N, parts · C) -> `parts` arrays (B, N, C)."""
        C = t.shape[-1] // parts
        return tuple(t[:, :, i * C : (i + 1) * C] for i in range(parts))

    def scale(self, t: Array, factor: float) -> Array:
        """factor · t."""
        return factor * t

    def attention(self, q: Array, k: Array, v: Array, *, scale: float) -> Array:
        """softmax(scale · Q Kᵀ) V: the formula of `eager_attention`."""
        return self.eager_attention(q, k, v, scale=scale)

    def eager_attention(self, q: Array, k: Array, v: Array, *, scale: float) -> Array:
        """softmax(scale · Q Kᵀ) V, one head. q, k, v (B, N, C) -> (B, N, C). Vaswani et al. 2017, arXiv:1706.03762."""
        xp = self.xp
        logits = scale * xp.matmul(widen(q, xp), xp.permute_dims(widen(k, xp), (0, 2, 1)))  # (B, N, N)
        weights = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
        weights = weights / xp.sum(weights, axis=-1, keepdims=True)
        return xp.matmul(narrow(weights, v, xp), v)

    def chunked_attention(self, q: Array, k: Array, v: Array, *, scale: float, size: int) -> Array:
        """softmax(scale · Q Kᵀ) V, from `size` queries and `size` keys at a time; exact. Shapes as `eager_attention`.

        For a chunk of queries, each chunk of keys gives its maximum logit m, l = Σ e^(logit - m) and
        o = Σ e^(logit - m) v; two chunks are merged by scaling both to the larger m. The result is o / l.
        Rabe & Staats 2021, arXiv:2112.05682.
        """
        n = q.shape[1]
        spans = [slice(i, min(i + size, n)) for i in range(0, n, size)]
        rows = []
        for queries in spans:
            chunks = (self.attend_chunk(q[:, queries, :], k[:, keys, :], v[:, keys, :], scale) for keys in spans)
            rows.append(self.divide_chunks(functools.reduce(self.merge_chunks, chunks), v))
        return self.xp.concat(rows, axis=1)

    # -- group norm and attention in parts ---------------------------------------------------------------------

    def channel_statistics(self, x: Array) -> tuple[Array, Array]:
        """Mean and biased variance of every channel of every sample: two arrays (B, C), float32 or wider.

        μ = c + δ and σ² = mean((x - c)²) - δ², where c is mean(x) up to rounding, and δ = mean(x - c) is tiny.
        Chan, Golub & LeVeque 1983, eq. 1.7.
        """
        x = widen(x, self.xp)
        B, C = x.shape[0], x.shape[self.map_layout.index("C")]
        centre = self._mean(x)
        deviation = x - centre
        delta = self._mean(deviation)
        sigma2 = self._mean(deviation * deviation) - delta * delta
        return self.xp.reshape(centre + delta, (B, C)), self.xp.reshape(sigma2, (B, C))

    def _mean(self, x: Array) -> Array:
        """Mean over the pixels of a map, first along rows: two short sums round less than a long sum in order."""
        for axis in "WH":
            x = self.xp.mean(x, axis=self.map_layout.index(axis), keepdims=True)
        return x

    def normalize(self, x: Array, mean: Array, sigma2: Array, scale: Array, shift: Array, *, eps: float) -> Array:
        """y = γ · (x - μ) / √(σ² + ε) + β: a group norm with known μ and σ² (B, C), float32 or wider.

        x (B, C, H, W), scale γ (C,), shift β (C,) -> (B, C, H, W). A channel's μ and σ² are its group's.
        """
        xp = self.xp
        mean, sigma2, scale, shift = map(self._over_pixels, (mean, sigma2, scale, shift))
        return narrow((widen(x, xp) - mean) / xp.sqrt(sigma2 + eps) * scale + shift, x, xp)

    def _over_pixels(self, p: Array) -> Array:
        """(B, C) or (C,) -> a shape that broadcasts over the pixels of a map."""
        sizes = {"N": p.shape[0] if p.ndim == 2 else 1, "C": p.shape[-1]}
        return self.xp.reshape(p, tuple(sizes.get(axis, 1) for axis in self.map_layout))

    def attend_chunk(self, q: Array, k: Array, v: Array, scale: float) -> Chunk:
        """(m, l, o) of some keys for some queries, as `chunked_attention` merges them.

        q (B, n, C), k and v (B, N', C) -> m and l (B, n, 1), o (B, n, C), float32 or wider.
        """
        xp = self.xp
        logits = scale * xp.matmul(widen(q, xp), xp.permute_dims(widen(k, xp), (0, 2, 1)))
        peak = xp.max(logits, axis=-1, keepdims=True)
        weights = xp.exp(logits - peak)
        return peak, xp.sum(weights, axis=-1, keepdims=True), widen(xp.matmul(narrow(weights, v, xp), v), xp)

    def merge_chunks(self, one: Chunk, other: Chunk) -> Chunk:
        """(m, l, o) of the keys of both: m = max(m₁, m₂), l = Σ e^(mᵢ - m) lᵢ, o = Σ e^(mᵢ - m) oᵢ."""
        (m, l, o), (m2, l2, o2) = one, other
        peak = self.xp.maximum(m, m2)
        a, b = self.xp.exp(m - peak), self.xp.exp(m2 - peak)
        return peak, a * l + b * l2, a * o + b * o2

    def divide_chunks(self, merged: Chunk, like: Array) -> Array:
        """o / l, in the dtype of `like`. (B, n, C)."""
        _, l, o = merged
        return narrow(o / l, like, self.xp)

"""The operations on NumPy: maps are (B, H, W, C), so that a convolution is a matrix product on strips of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import array_api_compat.numpy as array_namespace
import numpy as np

from vaespec.hostmemory import in_own_pages
from vaespec.ops import Padding, ReferenceOps
from vaespec.parameters import Parameter, storage_dtype
from vaespec_numpy.attention import Chunk, attend
from vaespec_numpy.strips import STRIP_ELEMENTS, cores, on_every_core, side_by_side

COLUMNS = 16  # copied at a time, a line of the cache: kernels whose axes change places are copied twice as fast


class NumpyOps(ReferenceOps):
    """float16 and bfloat16 are storage only: weights and results; the arithmetic in between is float32."""

    map_layout = "NHWC"
    conv_layout = "HWIO"
    linear_layout = "IO"

    def __init__(self, dtype: str) -> None:
        super().__init__(array_namespace, dtype, "cpu")
        self.storage = storage_dtype(dtype)
        self.arithmetic = np.dtype(np.float64 if dtype == "float64" else np.float32)

    def from_numpy(self, a: np.ndarray) -> np.ndarray:
        """A copy, so that the model does not change with its source."""
        with np.errstate(over="ignore"):  # beyond float16 is infinity, which the caller reports
            if a.flags.c_contiguous:
                return np.array(a, self.storage)
            copied = np.empty(a.shape, self.storage)
            for i in range(0, a.shape[-1], COLUMNS):
                copied[..., i : i + COLUMNS] = a[..., i : i + COLUMNS]
            return copied

    def prepare(self, params: Mapping[str, np.ndarray], table: Mapping[str, Parameter]) -> dict[str, np.ndarray]:
        """As the specification, a tensor on each core: they are read from their file meanwhile."""

        def one(name: str) -> np.ndarray:
            prepared: np.ndarray = super(NumpyOps, self).prepare({name: params[name]}, table)[name]
            return prepared

        return dict(zip(params, on_every_core(one, params), strict=True))

    def from_host(self, a: np.ndarray) -> np.ndarray:
        return a

    def hold(self, x: np.ndarray) -> np.ndarray:
        return in_own_pages(x)

    def workspace(self, op: str, x: tuple[int, ...], y: tuple[int, ...], kernel: tuple[int, ...] = ()) -> int:
        """A convolution copies what it pads, and takes a strip of it on every core."""
        if op != "conv2d":
            return 0
        strips = cores() * min(STRIP_ELEMENTS, math.prod(y[2:]) * math.prod(kernel[1:]))
        return (strips + (kernel[2] > 1) * math.prod(x)) * self.arithmetic.itemsize

    def cast(self, x: np.ndarray) -> np.ndarray:
        return self.from_numpy(x)

    def is_array(self, x: object) -> bool:
        return isinstance(x, np.ndarray)

    def from_nchw(self, x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1), dtype=self.arithmetic)

    def to_nchw(self, x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # beyond float16 is infinity, which the caller reports
            return np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=self.storage)

    def _wide(self, x: np.ndarray) -> np.ndarray:
        """A weight in the dtype of the arithmetic."""
        return x.astype(self.arithmetic, copy=False)

    def conv2d(self, x: np.ndarray, w: np.ndarray, b: np.ndarray, *, stride: int, padding: Padding) -> np.ndarray:
        """As the specification; the k·k shifted views of a strip side by side, times the kernel as one matrix."""
        (kh, kw, C, O), (top_bottom, left_right) = w.shape, padding
        if any(top_bottom + left_right):
            x = np.pad(x, ((0, 0), top_bottom, left_right, (0, 0)))
        B, H, W, _ = x.shape
        h, wd = (H - kh) // stride + 1, (W - kw) // stride + 1
        kernel, bias = self._wide(w).reshape(kh * kw * C, O), self._wide(b)
        y = np.empty((B, h, wd, O), self.arithmetic)

        def strip(rows: slice) -> None:
            columns = np.empty((rows.stop - rows.start, wd, kh, kw, C), self.arithmetic)
            for item in range(B):
                for u in range(kh):
                    for v in range(kw):
                        first = rows.start * stride + u
                        taken = slice(first, first + (rows.stop - rows.start - 1) * stride + 1, stride)
                        columns[:, :, u, v] = x[item, taken, v : v + (wd - 1) * stride + 1 : stride]
                out = y[item, rows].reshape(-1, O)
                np.matmul(columns.reshape(-1, kh * kw * C), kernel, out=out)
                out += bias

        side_by_side(strip, h, wd * kh * kw * C)
        return y

    def group_norm(self, x: np.ndarray, scale: np.ndarray, shift: np.ndarray, *, groups: int, eps: float) -> np.ndarray:
        """As the specification; centred moments of each strip, merged by Chan's formula."""
        mean, sigma2 = (part.repeat(x.shape[3] // groups, axis=1) for part in self._group_moments(x, groups))
        return self.normalize(x, mean, sigma2, scale, shift, eps=eps)

    def _group_moments(self, x: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and biased variance, two of (B, groups) float64."""
        B, H, W, C = x.shape
        mean, sigma2 = zip(*(group_moments(item, groups) for item in x.reshape(B, H * W, C)), strict=True)
        return np.stack(mean), np.stack(sigma2)

    def moments(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._group_moments(x, x.shape[3])

    def normalize(
        self, x: np.ndarray, mean: np.ndarray, sigma2: np.ndarray, scale: np.ndarray, shift: np.ndarray, *, eps: float
    ) -> np.ndarray:
        B, H, W, C = x.shape
        scale, shift, centre = self._wide(scale), self._wide(shift), mean.astype(x.dtype)
        factor = scale * (1.0 / np.sqrt(sigma2 + eps)).astype(x.dtype)
        y = np.empty(x.shape, x.dtype)
        for source, out, c, f in zip(x.reshape(B, H * W, C), y.reshape(B, H * W, C), centre, factor, strict=True):

            def strip(rows: slice, source=source, out=out, c=c, f=f) -> None:  # type: ignore[no-untyped-def]
                np.subtract(source[rows], c, out=out[rows])
                out[rows] *= f
                out[rows] += shift

            side_by_side(strip, H * W, C)
        return y

    def silu(self, x: np.ndarray) -> np.ndarray:
        def strip(source: np.ndarray, out: np.ndarray) -> None:
            np.negative(source, out=out)
            with np.errstate(over="ignore"):  # e^-x = inf gives the right limit, x / inf = 0
                np.exp(out, out=out)
            out += 1.0
            np.divide(source, out, out=out)

        return elementwise(strip, x)

    def relu(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)

    def upsample_nearest2x(self, x: np.ndarray) -> np.ndarray:
        B, H, W, C = x.shape
        y = np.empty((B, H, 2, W, 2, C), x.dtype)
        y[...] = x[:, :, None, :, None, :]
        return y.reshape(B, 2 * H, 2 * W, C)

    def tokens(self, x: np.ndarray) -> np.ndarray:
        B, H, W, C = x.shape
        return x.reshape(B, H * W, C)

    def pixels(self, t: np.ndarray, like: np.ndarray) -> np.ndarray:
        return t.reshape(like.shape)

    def linear(self, t: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> np.ndarray:
        w, y = self._wide(w), np.empty((*t.shape[:2], w.shape[1]), self.arithmetic)
        source, out, bias = t.reshape(-1, t.shape[2]), y.reshape(-1, w.shape[1]), None if b is None else self._wide(b)

        def strip(rows: slice) -> None:
            np.matmul(source[rows], w, out=out[rows])
            if bias is not None:
                out[rows] += bias

        side_by_side(strip, *source.shape)
        return y

    def attention(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float) -> np.ndarray:
        """As the specification; never more logits than fit the caches."""
        return self.divide_chunks(attend(q, k, v, scale), v)

    def attend_chunk(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> Chunk:
        return attend(q, k, v, scale)


def elementwise(strip: Callable[[np.ndarray, np.ndarray], None], x: np.ndarray) -> np.ndarray:
    """strip(source, out) over strips of a map's pixels."""
    y = np.empty_like(x)
    source, out = x.reshape(-1, x.shape[-1]), y.reshape(-1, x.shape[-1])
    side_by_side(lambda rows: strip(source[rows], out[rows]), *source.shape)
    return y


def group_moments(x: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance of each group of channels, (groups,) float64, of pixels x (N, C).

    Each strip gives count, mean and sum of squared deviations M per channel, both corrected by the mean deviation,
    which rounding leaves; merged as mean = Σ nᵢ mᵢ / n, M = Σ Mᵢ + Σ nᵢ (mᵢ - mean)². Chan, Golub & LeVeque 1983.
    """

    def strip(rows: slice) -> tuple[int, np.ndarray, np.ndarray]:
        count = rows.stop - rows.start
        ones = np.ones(count, x.dtype)
        mean = ones @ x[rows] / count
        deviation = x[rows] - mean
        delta = ones @ deviation / count
        deviation *= deviation
        return count, np.add(mean, delta, dtype=np.float64), ones @ deviation - count * delta**2

    counts, means, squares = zip(*side_by_side(strip, *x.shape), strict=True)
    shape = (len(counts), groups, x.shape[1] // groups)
    n = np.array(counts, np.float64).reshape(-1, 1, 1) * np.ones(shape)
    m, M = (np.array(part, np.float64).reshape(shape) for part in (means, squares))
    total = n.sum(axis=(0, 2))
    mean = (n * m).sum(axis=(0, 2)) / total
    squared = (M + n * (m - mean[:, None]) ** 2).sum(axis=(0, 2))
    return mean, squared / total

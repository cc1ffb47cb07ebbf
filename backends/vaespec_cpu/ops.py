"""CpuOps: the operations on NumPy's arrays. Maps are (B, H, W, C): a convolution is a matrix product on strips."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from functools import cached_property
from typing import Any

import array_api_compat.numpy as array_namespace
import numpy as np

from vaespec.dtypes import storage_dtype
from vaespec.ops import Padding, Sides
from vaespec.parameter import Parameter
from vaespec.reference import ReferenceOps
from vaespec_cpu.attention import Chunk, attend
from vaespec_cpu.convolution import EXACT, FAST, Form, FormChoice, Task, before_upsampling, choose_form
from vaespec_cpu.lazy import Activation, LazyMap, Normalized, Surrounded, Upsampled2x, whole
from vaespec_cpu.memory import Array, Scratch, fresh, give_back
from vaespec_cpu.memory_model import CpuMemoryOps
from vaespec_cpu.threads import on_every_core, side_by_side, single_threaded_blas

SAMPLE = 32  # pixels at most: their mean is close enough to the mean of all for squares not to cancel
COLUMNS = 16  # copied at once, a cache line: it makes copying a kernel whose axes change places twice as fast


class CpuOps(ReferenceOps):
    """The operations, one result at a time. float16 and bfloat16 are storage dtypes; the arithmetic is float32 then."""

    map_layout = "NHWC"
    conv_layout = "HWIO"
    linear_layout = "IO"
    wide_maps = True

    def __init__(self, dtype: str, precision: str = "default") -> None:
        super().__init__(array_namespace, dtype, "cpu")
        self.precision = precision
        self.scratch: Scratch | None = None  # outside inference_ops: one for each convolution
        self.storage = storage_dtype(dtype)
        self.arithmetic = np.dtype(np.float64 if dtype == "float64" else np.float32)

    @cached_property
    def forms(self) -> Mapping[str, Form]:
        """The forms that a convolution may take: in float64 and at the highest precision, the exact ones."""
        return EXACT if self.dtype == "float64" or self.precision == "highest" else FAST

    def inference_ops(self, params: Mapping[str, Array]) -> tuple[CpuOps, Mapping[str, Array]]:
        """Return a copy with scratch memory, which each layer uses again and the run frees."""
        give_back()  # memory that loading, or the run before, has freed
        ops = copy(self)
        ops.scratch = Scratch(self.arithmetic)
        return ops, params

    def shape_ops(self) -> CpuMemoryOps:
        return CpuMemoryOps(self, self.forms, self.arithmetic.itemsize)

    def apply(self, function: Callable[[Any, Mapping[str, Array]], Any], x: Any, params: Mapping[str, Array]) -> Any:
        """Compute with the threads of BLAS limited once for all strips."""
        with single_threaded_blas():
            return function(x, params)

    def from_numpy(self, a: Array) -> Array:
        """Copy, so that the model does not change with its source."""
        with np.errstate(over="ignore"):  # numbers beyond float16 become infinity, which the caller reports
            if a.flags.c_contiguous:
                return np.array(a, self.storage)
            copied = np.empty(a.shape, self.storage)
            for i in range(0, a.shape[-1], COLUMNS):
                copied[..., i : i + COLUMNS] = a[..., i : i + COLUMNS]
            return copied

    def from_host(self, a: Array) -> Array:
        return a

    def to_array(self, x: Array | LazyMap) -> Array:
        return whole(x)

    def convolution_form(
        self, x: tuple[int, ...], w: tuple[int, ...], *, stride: int, padding: Padding, doubled: bool = False
    ) -> FormChoice:
        (B, C, H, W), (O, _, kh, kw) = x, w
        return choose_form(Task.of((B, H, W, C), (kh, kw, C, O), stride, padding, doubled=doubled), self.forms)

    def cast(self, x: Array) -> Array:
        return self.from_numpy(x)

    def is_array(self, x: object) -> bool:
        return isinstance(x, Array)

    def load_params(self, params: Mapping[str, Array], table: Mapping[str, Parameter]) -> dict[str, Array]:
        """Load as ReferenceOps does, one tensor per core, so that reading the file overlaps with converting."""

        def one(name: str) -> Array:
            return super(CpuOps, self).load_params({name: params[name]}, table)[name]

        return dict(zip(params, on_every_core(one, params), strict=True))

    def from_nchw(self, x: Array) -> Array:
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1), dtype=self.arithmetic)

    def to_nchw(self, x: Array) -> Array:
        with np.errstate(over="ignore"):  # numbers beyond float16 become infinity, which the caller reports
            return np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=self.storage)

    def conv2d(
        self, x: Array | LazyMap, w: Array, b: Array, *, stride: int, padding: Padding, residual: Array | None = None
    ) -> Array:
        """Convolve in the form that costs least, and add a residual of the result's shape, if any."""
        source = LazyMap(x) if isinstance(x, Array) else x
        doubled = before_upsampling(source, padding) is not None
        task = Task.of(source.shape, w.shape, stride, padding, doubled=doubled)
        run = self.forms[choose_form(task, self.forms).form].run
        return run(task, source, self._wide(w), self._wide(b), residual, self.scratch or Scratch(self.arithmetic))

    def surround(self, x: Array | LazyMap, *, axis: str, sides: Sides) -> Surrounded:
        """Surround a map while it is read, so that it is not copied."""
        return Surrounded.of(x if isinstance(x, LazyMap) else LazyMap(whole(x)), axis, sides)

    def group_norm(self, x: Array, scale: Array, shift: Array, *, groups: int, eps: float) -> Array:
        return self.lazy_group_norm(x, scale, shift, groups=groups, eps=eps).whole()

    def lazy_group_norm(self, x: Array, scale: Array, shift: Array, *, groups: int, eps: float) -> Normalized:
        """Compute the moments of each group now, and its normalization while the result is read."""
        mean, sigma2 = (part.repeat(x.shape[3] // groups, axis=1) for part in self._group_moments(x, groups))
        return self.lazy_normalize(x, mean, sigma2, scale, shift, eps=eps)

    def _group_moments(self, x: Array, groups: int) -> tuple[Array, Array]:
        """Mean and biased variance of each group, two arrays (B, groups) in float64."""
        B, H, W, C = x.shape
        mean, sigma2 = zip(*(group_moments(item, groups) for item in x.reshape(B, H * W, C)), strict=True)
        return np.stack(mean), np.stack(sigma2)

    def channel_statistics(self, x: Array) -> tuple[Array, Array]:
        return self._group_moments(x, x.shape[3])

    def normalize(self, x: Array, mean: Array, sigma2: Array, scale: Array, shift: Array, *, eps: float) -> Array:
        return self.lazy_normalize(x, mean, sigma2, scale, shift, eps=eps).whole()

    def lazy_normalize(
        self, x: Array, mean: Array, sigma2: Array, scale: Array, shift: Array, *, eps: float
    ) -> Normalized:
        """Normalize with known moments while the result is read."""
        factor = self._wide(scale) * (1.0 / np.sqrt(sigma2 + eps)).astype(x.dtype)
        return Normalized(x, mean.astype(x.dtype), factor, self._wide(shift))

    def silu(self, x: Array) -> Array:
        return elementwise(lambda source, out: silu_of_negative(-source, out), x)

    def relu(self, x: Array) -> Array:
        return np.maximum(x, 0)

    def upsample_nearest2x(self, x: Array) -> Array:
        return Upsampled2x.of(x).whole()

    def tokens(self, x: Array) -> Array:
        B, H, W, C = x.shape
        return x.reshape(B, H * W, C)

    def pixels(self, t: Array, like: Array) -> Array:
        return t.reshape(like.shape)

    def linear(self, t: Array, w: Array, b: Array | None) -> Array:
        w, y = self._wide(w), fresh((*t.shape[:2], w.shape[1]), self.arithmetic)
        source, out, bias = t.reshape(-1, t.shape[2]), y.reshape(-1, w.shape[1]), None if b is None else self._wide(b)

        def strip(rows: slice) -> None:
            np.matmul(source[rows], w, out=out[rows])
            if bias is not None:
                out[rows] += bias

        side_by_side(strip, *source.shape)
        return y

    def attention(self, q: Array, k: Array, v: Array, *, scale: float) -> Array:
        """Attend in blocks whose logits fit into the caches."""
        return self.divide_chunks(attend(q, k, v, scale), v)

    def attend_chunk(self, q: Array, k: Array, v: Array, scale: float) -> Chunk:
        return attend(q, k, v, scale)

    def _wide(self, x: Array) -> Array:
        """A weight in the dtype of the arithmetic; kernels are converted once for all bands of a map."""
        if x.dtype == self.arithmetic or self.scratch is None or x.ndim < 4:
            return x.astype(self.arithmetic, copy=False)
        return self.scratch.again(f"wide {x.shape[:2]}", x, make=lambda: x.astype(self.arithmetic))

    def activation(self, name: str) -> Activation:
        """The activation of that name, in the form that follows a norm."""
        if name == "silu":
            return Activation(silu_of_negative, -1.0)
        op = getattr(self, name)
        return Activation(lambda y, out: np.copyto(out, op(y)))


def silu_of_negative(x: Array, out: Array) -> None:
    """Compute silu(-x) = -x / (1 + e^x) into `out`; if e^x overflows, -x / inf = 0 is the right limit."""
    np.exp(x, out=out)
    np.subtract(-1.0, out, out=out)
    np.divide(x, out, out=out)


def elementwise(strip: Callable[[Array, Array], None], x: Array) -> Array:
    """Call strip(source, out) on strips of the pixels of a map."""
    y = np.empty_like(x)
    source, out = x.reshape(-1, x.shape[-1]), y.reshape(-1, x.shape[-1])
    side_by_side(lambda rows: strip(source[rows], out[rows]), *source.shape)
    return y


def group_moments(x: Array, groups: int) -> tuple[Array, Array]:
    """Mean and biased variance, (groups,) float64, of each group of channels of pixels x (N, C).

    Each strip gives its count nᵢ, and per channel its mean mᵢ and its sum of squared deviations Mᵢ. Deviations are
    taken from the mean of a few pixels, and corrected by their own mean. The strips are merged as
    mean = Σ nᵢ mᵢ / n, M = Σ Mᵢ + Σ nᵢ (mᵢ - mean)². Chan, Golub & LeVeque 1983.
    """

    def strip(rows: slice) -> tuple[int, Array, Array]:
        count = rows.stop - rows.start
        ones = np.ones(count, x.dtype)
        few = x[rows][:: -(-count // SAMPLE)]
        near = ones[: len(few)] @ few / len(few)
        deviation = x[rows] - near
        delta = ones @ deviation / count
        deviation *= deviation
        return count, np.add(near, delta, dtype=np.float64), ones @ deviation - count * delta**2

    counts, means, squares = zip(*side_by_side(strip, *x.shape), strict=True)
    shape = (len(counts), groups, x.shape[1] // groups)
    n = np.array(counts, np.float64).reshape(-1, 1, 1) * np.ones(shape)
    m, M = (np.array(part, np.float64).reshape(shape) for part in (means, squares))
    total = n.sum(axis=(0, 2))
    mean = (n * m).sum(axis=(0, 2)) / total
    squared = (M + n * (m - mean[:, None]) ** 2).sum(axis=(0, 2))
    return mean, squared / total

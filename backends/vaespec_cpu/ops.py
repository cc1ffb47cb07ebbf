"""CpuOps: the operations on NumPy's arrays. Maps are (B, H, W, C): a convolution is a matrix product on strips."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy

import array_api_compat.numpy as array_namespace
import numpy as np

from vaespec.dtypes import storage_dtype
from vaespec.ops import Layer, Padding
from vaespec.parameter import Parameter
from vaespec.reference import ReferenceOps
from vaespec_cpu.attention import Chunk, attend
from vaespec_cpu.convolution import EXACT, FAST, FormChoice, Task, choose_form
from vaespec_cpu.lazy import Activation, LazyMap, Normalized, Upsampled2x
from vaespec_cpu.memory import Scratch, fresh, give_back
from vaespec_cpu.memory_model import CpuMemoryOps
from vaespec_cpu.threads import on_every_core, side_by_side, single_threaded_blas

SAMPLE = 32  # pixels at most: their mean is close enough to the mean of all for squares not to cancel
COLUMNS = 16  # copied at once, a cache line: it makes copying a kernel whose axes change places twice as fast


class CpuOps(ReferenceOps):
    """float16 and bfloat16 are storage only: weights and results; the arithmetic in between is float32."""

    map_layout = "NHWC"
    conv_layout = "HWIO"
    linear_layout = "IO"

    def __init__(self, dtype: str, precision: str = "default") -> None:
        """Choose the forms that a convolution may take: in float64 and at the highest precision, the exact ones."""
        super().__init__(array_namespace, dtype, "cpu")
        self.precision = precision
        self.forms = EXACT if dtype == "float64" or precision == "highest" else FAST
        self.scratch: Scratch | None = None  # outside inference_ops: one for each convolution
        self.storage = storage_dtype(dtype)
        self.arithmetic = np.dtype(np.float64 if dtype == "float64" else np.float32)

    def inference_ops(self, params: Mapping[str, np.ndarray]) -> tuple[CpuOps, Mapping[str, np.ndarray]]:
        """Return a copy with scratch memory, which each layer uses again and the run frees."""
        give_back()  # memory that loading, or the run before, has freed
        ops = copy(self)
        ops.scratch = Scratch(self.arithmetic)
        return ops, params

    def shape_ops(self) -> CpuMemoryOps:
        return CpuMemoryOps(self, self.forms, self.arithmetic.itemsize)

    def run(self, layer: Layer, x: np.ndarray, params: Mapping[str, np.ndarray]) -> np.ndarray:
        """Run a layer, with the threads of BLAS limited once for all its strips."""
        with single_threaded_blas():
            y: np.ndarray = layer(x, params, self)
            return y

    def from_numpy(self, a: np.ndarray) -> np.ndarray:
        """Copy, so that the model does not change with its source."""
        with np.errstate(over="ignore"):  # numbers beyond float16 become infinity, which the caller reports
            if a.flags.c_contiguous:
                return np.array(a, self.storage)
            copied = np.empty(a.shape, self.storage)
            for i in range(0, a.shape[-1], COLUMNS):
                copied[..., i : i + COLUMNS] = a[..., i : i + COLUMNS]
            return copied

    def from_host(self, a: np.ndarray) -> np.ndarray:
        return a

    def convolution_form(
        self, x: tuple[int, ...], w: tuple[int, ...], *, stride: int, padding: Padding, doubled: bool = False
    ) -> FormChoice:
        (B, C, H, W), (O, _, kh, kw) = x, w
        return choose_form(Task.of((B, H, W, C), (kh, kw, C, O), stride, padding, doubled=doubled), self.forms)

    def cast(self, x: np.ndarray) -> np.ndarray:
        return self.from_numpy(x)

    def is_array(self, x: object) -> bool:
        return isinstance(x, np.ndarray)

    def load_params(self, params: Mapping[str, np.ndarray], table: Mapping[str, Parameter]) -> dict[str, np.ndarray]:
        """Load as ReferenceOps does, one tensor per core, so that reading the file overlaps with converting."""

        def one(name: str) -> np.ndarray:
            loaded: np.ndarray = super(CpuOps, self).load_params({name: params[name]}, table)[name]
            return loaded

        return dict(zip(params, on_every_core(one, params), strict=True))

    def from_nchw(self, x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1), dtype=self.arithmetic)

    def to_nchw(self, x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # numbers beyond float16 become infinity, which the caller reports
            return np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=self.storage)

    def conv2d(
        self,
        x: np.ndarray | LazyMap,
        w: np.ndarray,
        b: np.ndarray,
        *,
        stride: int,
        padding: Padding,
        residual: np.ndarray | None = None,
    ) -> np.ndarray:
        """Convolve in the form that costs least, and add a residual of the result's shape, if any."""
        source = LazyMap(x) if isinstance(x, np.ndarray) else x
        doubled = isinstance(source, Upsampled2x) and source.ends(padding[0])
        task = Task.of(source.shape, w.shape, stride, padding, doubled=doubled)
        run = self.forms[choose_form(task, self.forms).form].run
        return run(task, source, self._wide(w), self._wide(b), residual, self.scratch or Scratch(self.arithmetic))

    def group_norm(self, x: np.ndarray, scale: np.ndarray, shift: np.ndarray, *, groups: int, eps: float) -> np.ndarray:
        return self.lazy_group_norm(x, scale, shift, groups=groups, eps=eps).whole()

    def lazy_group_norm(
        self, x: np.ndarray, scale: np.ndarray, shift: np.ndarray, *, groups: int, eps: float
    ) -> Normalized:
        """Compute the moments of each group now, and its normalization while the result is read."""
        mean, sigma2 = (part.repeat(x.shape[3] // groups, axis=1) for part in self._group_moments(x, groups))
        return self.lazy_normalize(x, mean, sigma2, scale, shift, eps=eps)

    def _group_moments(self, x: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and biased variance of each group, two arrays (B, groups) in float64."""
        B, H, W, C = x.shape
        mean, sigma2 = zip(*(group_moments(item, groups) for item in x.reshape(B, H * W, C)), strict=True)
        return np.stack(mean), np.stack(sigma2)

    def channel_statistics(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._group_moments(x, x.shape[3])

    def normalize(
        self, x: np.ndarray, mean: np.ndarray, sigma2: np.ndarray, scale: np.ndarray, shift: np.ndarray, *, eps: float
    ) -> np.ndarray:
        return self.lazy_normalize(x, mean, sigma2, scale, shift, eps=eps).whole()

    def lazy_normalize(
        self, x: np.ndarray, mean: np.ndarray, sigma2: np.ndarray, scale: np.ndarray, shift: np.ndarray, *, eps: float
    ) -> Normalized:
        """Normalize with known moments while the result is read."""
        factor = self._wide(scale) * (1.0 / np.sqrt(sigma2 + eps)).astype(x.dtype)
        return Normalized(x, mean.astype(x.dtype), factor, self._wide(shift))

    def silu(self, x: np.ndarray) -> np.ndarray:
        return elementwise(lambda source, out: silu_of_negative(-source, out), x)

    def relu(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)

    def upsample_nearest2x(self, x: np.ndarray) -> np.ndarray:
        return Upsampled2x.of(x).whole()

    def tokens(self, x: np.ndarray) -> np.ndarray:
        B, H, W, C = x.shape
        return x.reshape(B, H * W, C)

    def pixels(self, t: np.ndarray, like: np.ndarray) -> np.ndarray:
        return t.reshape(like.shape)

    def linear(self, t: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> np.ndarray:
        w, y = self._wide(w), fresh((*t.shape[:2], w.shape[1]), self.arithmetic)
        source, out, bias = t.reshape(-1, t.shape[2]), y.reshape(-1, w.shape[1]), None if b is None else self._wide(b)

        def strip(rows: slice) -> None:
            np.matmul(source[rows], w, out=out[rows])
            if bias is not None:
                out[rows] += bias

        side_by_side(strip, *source.shape)
        return y

    def attention(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float) -> np.ndarray:
        """Attend in blocks whose logits fit into the caches."""
        return self.divide_chunks(attend(q, k, v, scale), v)

    def attend_chunk(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> Chunk:
        return attend(q, k, v, scale)

    def _wide(self, x: np.ndarray) -> np.ndarray:
        """A weight in the dtype of the arithmetic; kernels are converted once for all bands of a map."""
        if x.dtype == self.arithmetic or self.scratch is None or x.ndim < 4:
            return x.astype(self.arithmetic, copy=False)
        return self.scratch.again(f"wide {x.shape}", x, make=lambda: x.astype(self.arithmetic))

    def activation(self, name: str) -> Activation:
        """The activation of that name, in the form that follows a norm."""
        if name == "silu":
            return Activation(silu_of_negative, -1.0)
        op = getattr(self, name)
        return Activation(lambda y, out: np.copyto(out, op(y)))


def silu_of_negative(x: np.ndarray, out: np.ndarray) -> None:
    """Compute silu(-x) = -x / (1 + e^x) into `out`; if e^x overflows, -x / inf = 0 is the right limit."""
    np.exp(x, out=out)
    np.subtract(-1.0, out, out=out)
    np.divide(x, out, out=out)


def elementwise(strip: Callable[[np.ndarray, np.ndarray], None], x: np.ndarray) -> np.ndarray:
    """Call strip(source, out) on strips of the pixels of a map."""
    y = np.empty_like(x)
    source, out = x.reshape(-1, x.shape[-1]), y.reshape(-1, x.shape[-1])
    side_by_side(lambda rows: strip(source[rows], out[rows]), *source.shape)
    return y


def group_moments(x: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance, (groups,) float64, of each group of channels of pixels x (N, C).

    Each strip gives its count nᵢ, and per channel its mean mᵢ and its sum of squared deviations Mᵢ. Deviations are
    taken from the mean of a few pixels, and corrected by their own mean. The strips are merged as
    mean = Σ nᵢ mᵢ / n, M = Σ Mᵢ + Σ nᵢ (mᵢ - mean)². Chan, Golub & LeVeque 1983.
    """

    def strip(rows: slice) -> tuple[int, np.ndarray, np.ndarray]:
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

"""The forms that a convolution can take, what each costs, and the choice between them.

Every form gives the same result up to rounding. Costs are in multiplications with an addition, the unit of a matrix
product; a number that is copied or added takes as long as MOVE of them. They depend on the shapes of an item and a
kernel alone, so a layer takes the same form on every machine and in every batch. `choose_form` returns the cheapest
form, and the cost of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vaespec.ops import Padding, Sides
from vaespec_cpu.lazy import LazyMap, Surrounded, Upsampled2x, window
from vaespec_cpu.memory import Array, Scratch, fresh
from vaespec_cpu.threads import STRIP_ELEMENTS, cores, side_by_side
from vaespec_cpu.winograd import DOUBLED, F2, F4, HALVED, Algorithm
from vaespec_cpu.winograd_conv import scratch_of_tiles, tiled_conv2d

MOVE = 16  # 0.3 ns for a number, 0.02 ns for a multiplication with an addition
NARROW = 64  # channels: a layer with fewer costs little, and stays as exact as its products are
DIRECT = "gathered"  # the form that computes the sum as it is written


@dataclass(frozen=True)
class Task:
    """A convolution, described by the shapes of an item and a kernel: `size` and `kernel` are (height, width)."""

    size: tuple[int, int]
    inputs: int
    outputs: int
    kernel: tuple[int, int]
    stride: int
    padding: Padding
    doubled: bool  # whether x is a map upsampled by 2, each pixel twice along both axes

    @classmethod
    def of(
        cls, x: tuple[int, ...], w: tuple[int, ...], stride: int, padding: Padding, *, doubled: bool = False
    ) -> Task:
        """Describe a convolution of x (B, H, W, C) with w (kh, kw, C, O)."""
        return cls((x[1], x[2]), w[2], w[3], (w[0], w[1]), stride, padding, doubled)

    @property
    def result(self) -> tuple[int, int]:
        """Height and width of the result."""
        h, wd = (
            (n + sum(zeros) - k) // self.stride + 1
            for n, zeros, k in zip(self.size, self.padding, self.kernel, strict=True)
        )
        return h, wd

    @property
    def before(self) -> tuple[int, int]:
        """Zeros added (above, left)."""
        return self.padding[0][0], self.padding[1][0]

    @property
    def pixels(self) -> int:
        """Number of pixels of the result."""
        return math.prod(self.result)

    @property
    def taps(self) -> int:
        """Number of taps of the kernel."""
        return math.prod(self.kernel)

    @property
    def multiplications(self) -> int:
        """Number of multiplications in the sum as it is written."""
        return self.pixels * self.taps * self.inputs * self.outputs


Run = Callable[[Task, LazyMap, Array, Array, Array | None, Scratch], Array]


@dataclass(frozen=True)
class Form:
    """A way to compute: `run(task, source, w, b, residual, scratch)`, and its `cost`: None if it cannot do the task.

    `residual` is a map to add to the result, or None. `scratch` is how many numbers the form holds meanwhile, besides
    its input and its result.
    """

    run: Run
    cost: Callable[[Task], float | None]
    scratch: Callable[[Task], int]


class FormChoice(NamedTuple):
    """The form that a convolution takes, the cost of each form, and the cost of the sum as it is written."""

    form: str
    costs: Mapping[str, float]
    direct: float | None


def choose_form(task: Task, forms: Mapping[str, Form]) -> FormChoice:
    """Choose the cheapest of `forms`."""
    costs = {name: cost for name, form in forms.items() if (cost := form.cost(task)) is not None}
    return FormChoice(min(costs, key=costs.__getitem__), costs, costs.get(DIRECT))


def _add(out: Array, b: Array, residual: Array | None, *part: int | slice) -> None:
    """Add the bias b, and that part of a residual, to a part of the result that has just been written."""
    out += b
    if residual is not None:
        out += residual[part].reshape(out.shape)


# -- a product for each pixel --------------------------------------------------------------------------------


def pointwise(task: Task, source: LazyMap, w: Array, b: Array, residual: Array | None, scratch: Scratch) -> Array:
    """Multiply each pixel by a 1 × 1 kernel, which is one matrix; nothing is copied."""
    y = fresh((source.shape[0], *task.result, task.outputs), w.dtype)
    x, out, kernel = source.whole().reshape(-1, task.inputs), y.reshape(-1, task.outputs), w[0, 0]
    added = None if residual is None else residual.reshape(out.shape)

    def strip(rows: slice) -> None:
        np.matmul(x[rows], kernel, out=out[rows])
        _add(out[rows], b, added, rows)

    side_by_side(strip, *x.shape)
    return y


def _cost_of_pointwise(task: Task) -> float | None:
    if task.taps > 1 or task.stride > 1 or any(map(any, task.padding)):
        return None
    return task.multiplications + MOVE * task.pixels * task.outputs


# -- strips of rows ------------------------------------------------------------------------------------------


def gathered(task: Task, source: LazyMap, w: Array, b: Array, residual: Array | None, scratch: Scratch) -> Array:
    """Copy the k · k shifted views of a strip side by side, and multiply them by the kernel as one matrix."""
    (kh, kw), s, (h, wd), (above, left) = task.kernel, task.stride, task.result, task.before
    kernel, source = w.reshape(-1, task.outputs), LazyMap(source.whole())
    y = fresh((source.shape[0], h, wd, task.outputs), w.dtype)

    def strip(rows: slice) -> None:
        columns = scratch("columns", rows.stop - rows.start, wd, kh, kw, task.inputs)
        for item in range(len(y)):
            for u, v in np.ndindex(kh, kw):
                window(source, item, (s * rows.start + u - above, v - left), s, columns[:, :, u, v])
            out = y[item, rows].reshape(-1, task.outputs)
            np.matmul(columns.reshape(len(out), -1), kernel, out=out)
            _add(out, b, residual, item, rows)

    side_by_side(strip, h, wd * len(kernel))
    return y


def _cost_of_gathered(task: Task) -> float:
    return task.multiplications + MOVE * task.pixels * (task.taps * task.inputs + task.outputs)


def _strips(task: Task) -> int:
    """Numbers in the strips of all cores."""
    return cores() * min(STRIP_ELEMENTS, task.pixels * task.taps * task.inputs)


def scattered(task: Task, source: LazyMap, w: Array, b: Array, residual: Array | None, scratch: Scratch) -> Array:
    """Multiply every pixel by all k · k taps, as one matrix, and add each product to its output: for few outputs."""
    (kh, kw), s, (h, wd), (above, left) = task.kernel, task.stride, task.result, task.before
    taps = np.ascontiguousarray(w.transpose(2, 0, 1, 3)).reshape(task.inputs, -1)
    y = fresh((source.shape[0], h, wd, task.outputs), w.dtype)

    def strip(rows: slice) -> None:
        reached = s * (rows.stop - rows.start - 1) + kh, s * (wd - 1) + kw
        pixels = scratch("pixels", *reached, task.inputs)
        for item in range(len(y)):
            out = y[item, rows]
            window(source, item, (s * rows.start - above, -left), 1, pixels)
            products = (pixels.reshape(-1, task.inputs) @ taps).reshape(*reached, kh, kw, task.outputs)
            out[...] = 0
            for u, v in np.ndindex(kh, kw):
                out += products[u:, v : v + s * (wd - 1) + 1, u, v][::s, ::s][: len(out)]
            _add(out, b, residual, item, rows)

    side_by_side(strip, h, s * wd * (task.inputs + taps.shape[1]))
    return y


def _cost_of_scattered(task: Task) -> float:
    """Each product is written, read and added, in short rows; every pixel is copied once."""
    reached = (task.stride * (n - 1) + k for n, k in zip(task.result, task.kernel, strict=True))
    products = task.taps * task.outputs
    return math.prod(reached) * (products * (task.inputs + 3 * MOVE) + MOVE * task.inputs)


# -- fewer multiplications -----------------------------------------------------------------------------------


def tiled(algorithm: Algorithm, stride: int = 1) -> Form:
    """The form of an algorithm of vaespec_cpu.winograd, for one stride."""

    def run(task: Task, source: LazyMap, w: Array, b: Array, residual: Array | None, scratch: Scratch) -> Array:
        return tiled_conv2d(algorithm, source, w, b, residual, task.before, task.result, scratch)

    def cost(task: Task) -> float | None:
        if task.kernel != (3, 3) or task.stride != stride or min(task.inputs, task.outputs) < NARROW:
            return None
        return _cost_of_tiles(algorithm, task.result, task.inputs, task.outputs)

    def scratch(task: Task) -> int:
        return scratch_of_tiles(algorithm, task.inputs, task.outputs)

    return Form(run, cost, scratch)


def doubled(task: Task, source: LazyMap, w: Array, b: Array, residual: Array | None, scratch: Scratch) -> Array:
    """Convolve an upsampled map, from the map before upsampling."""
    upsampling = before_upsampling(source, task.padding)
    assert upsampling is not None
    small, before, skipped = upsampling
    return tiled_conv2d(DOUBLED, small, w, b, residual, before, task.result, scratch, skipped)


def before_upsampling(source: LazyMap, padding: Padding) -> tuple[LazyMap, tuple[int, int], int] | None:
    """Return what `doubled` reads for a map with so many zeros around it; None if that is no map upsampled by 2.

    That is the map before upsampling, its zeros (above, left), and how many rows of results to leave out. Where the
    upsampled map is surrounded by rows and columns of its own, so is this one, by those they were upsampled from.
    """
    around = source if isinstance(source, Surrounded) else Surrounded(source.x, source)
    upsampled, (zero_rows, zero_columns) = around.source, padding
    above, below = (zeros + len(own) for zeros, own in zip(zero_rows, around.rows, strict=True))
    sides = tuple(zeros + len(own) for zeros, own in zip(zero_columns, around.columns, strict=True))
    if not isinstance(upsampled, Upsampled2x) or sides != (1, 1) or not upsampled.ends((above, below)):
        return None
    rows, columns = _halved(around.rows, upsampled.above), _halved(around.columns, 0)
    small = Surrounded(upsampled.x, LazyMap(upsampled.x), rows, columns)
    return small, (1 - len(rows[0]), 1 - len(columns[0])), upsampled.above + 1 - above


def _halved(sides: Sides, first: int) -> Sides:
    """The positions before upsampling of rows or columns, counted from the `first` of all."""
    before, after = (tuple((first + i) // 2 for i in side) for side in sides)
    return before, after


def _cost_of_doubled(task: Task) -> float | None:
    if not task.doubled or task.kernel != (3, 3) or task.stride > 1:
        return None
    return _cost_of_tiles(DOUBLED, task.result, task.inputs, task.outputs)


def _cost_of_tiles(algorithm: Algorithm, result: tuple[int, int], inputs: int, outputs: int) -> float:
    """Count the products; kernels are written once and read twice, inputs and outputs of a tile are moved once."""
    n, tiles = algorithm.products, math.prod(map(algorithm.tiles, result))
    moved = 3 * n**2 * inputs * outputs + tiles * n**2 * (inputs + outputs)
    return tiles * n**2 * inputs * outputs + MOVE * moved


EXACT = {
    "pointwise": Form(pointwise, _cost_of_pointwise, lambda task: 0),
    DIRECT: Form(gathered, _cost_of_gathered, _strips),
    "scattered": Form(scattered, _cost_of_scattered, _strips),
}
"""The forms that sum the products of the convolution as it is written."""

FAST = EXACT | {
    "F(2, 3)": tiled(F2),
    "F(4, 3)": tiled(F4),
    "halved": tiled(HALVED, stride=2),
    "doubled": Form(doubled, _cost_of_doubled, lambda task: scratch_of_tiles(DOUBLED, task.inputs, task.outputs)),
}
"""EXACT and the forms with fewer multiplications. F(4, 3) rounds more than the sum as it is written, others do not."""

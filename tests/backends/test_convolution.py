"""Every form of a convolution computes the specification; the cheapest form is chosen, and the chosen form runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from support.configs import EPS, assert_within, relative_l2, uniform

import vaespec_cpu.threads
import vaespec_cpu.winograd_conv
from vaespec import ReferenceOps
from vaespec_cpu.convolution import EXACT, FAST, Task
from vaespec_cpu.lazy import LazyMap
from vaespec_cpu.memory import Scratch
from vaespec_cpu.winograd import DOUBLED, F2, F4, HALVED, Algorithm, winograd
from vaespec_cpu.winograd_conv import blocks, tiled_conv2d
from vaespec_numpy import backend

REFERENCE = ReferenceOps(np)
SAME = ((1, 1), (1, 1))
extents = st.integers(1, 20)


def specified(x: np.ndarray, w: np.ndarray, b: np.ndarray, stride: int, padding) -> np.ndarray:
    """The specification in float64 of maps (B, H, W, C) and a kernel (kh, kw, C, O)."""
    x, w, b = (a.astype(np.float64) for a in (x, w, b))
    y = REFERENCE.conv2d(x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1), b, stride=stride, padding=padding)
    return y.transpose(0, 2, 3, 1)


def drawn(B: int, H: int, W: int, C: int, O: int, k: int = 3) -> list[np.ndarray]:
    """float32 map, kernel and bias."""
    scale = 1 / math.sqrt(k * k * C)
    arrays = uniform("x", (B, H, W, C)), scale * uniform("w", (k, k, C, O)), uniform("b", (O,))
    return [a.astype(np.float32) for a in arrays]


def tiled(algorithm: Algorithm, x, w, b, padding=SAME, residual=None) -> np.ndarray:
    """Convolve by the algorithm, whether or not it would be chosen."""
    size = size_of_result(algorithm.name, x.shape[1:3], padding)
    return tiled_conv2d(algorithm, LazyMap(x), w, b, residual, (padding[0][0], padding[1][0]), size, Scratch(x.dtype))


def size_of_result(name: str, size: tuple[int, int], padding) -> tuple[int, int]:
    """Height and width of an algorithm's result, for the height and width of x."""
    if name == "doubled":
        return 2 * size[0], 2 * size[1]
    stride = stride_of(name)
    h, wd = ((n + sum(zeros) - 3) // stride + 1 for n, zeros in zip(size, padding, strict=True))
    return h, wd


def stride_of(name: str) -> int:
    return 2 if name == "halved" else 1


def seen(algorithm: Algorithm, x: np.ndarray) -> np.ndarray:
    """The input of the convolution that an algorithm computes on x."""
    return x.repeat(2, axis=1).repeat(2, axis=2) if algorithm is DOUBLED else x


def tiled_bound(algorithm: Algorithm, x, w, b, padding=SAME) -> np.ndarray:
    """Bound the rounding errors: at most eps / 2 for each number that is summed, of the sum of magnitudes.

    Along each axis 3 + span + n numbers are summed, besides the matrices' own rounding; in between, C channels.
    """
    magnitudes = Algorithm(
        algorithm.name, *(np.abs(m) for m in (algorithm.A, algorithm.B, algorithm.G)), algorithm.step, algorithm.lead
    )
    total = tiled(magnitudes, *(np.abs(a).astype(np.float64) for a in (x, w, b)), padding)
    roundings = x.shape[3] + 2 * (3 + algorithm.span + algorithm.products + 3) + 1
    return roundings * EPS["float32"] / 2 * total


def in_blocks(monkeypatch, tiles: int, cores: int) -> None:
    monkeypatch.setattr(vaespec_cpu.winograd_conv, "TILES", tiles)
    for module in (vaespec_cpu.winograd_conv, vaespec_cpu.threads):
        monkeypatch.setattr(module, "cores", lambda: cores)


# -- the forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [F2, F4, HALVED], ids=["F2", "F4", "HALVED"])
@given(
    shape=st.tuples(st.integers(1, 3), extents, extents, st.integers(1, 5), st.integers(1, 5)),
    padding=st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
    cut=st.tuples(st.sampled_from([1, 3, 128]), st.sampled_from([1, 2, 7])),
)
@example(shape=(1, 1, 1, 1, 1), padding=SAME, cut=(128, 2))
def test_tiles_give_the_specification_whatever_the_blocks(algorithm, shape, padding, cut):
    assume(all(n + sum(zeros) >= 3 for n, zeros in zip(shape[1:3], padding, strict=True)))
    x, w, b = drawn(*shape)
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_blocks(monkeypatch, *cut)
        y = tiled(algorithm, x, w, b, padding)
    expected = specified(x, w, b, stride_of(algorithm.name), padding)
    assert_within(y, expected, tiled_bound(algorithm, x, w, b, padding))


@given(
    shape=st.tuples(st.integers(1, 3), extents, extents, st.integers(1, 5), st.integers(1, 5)),
    cut=st.tuples(st.sampled_from([1, 3, 128]), st.sampled_from([1, 2, 7])),
)
def test_upsampling_and_a_convolution_are_one_algorithm(shape, cut):
    x, w, b = drawn(*shape)
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_blocks(monkeypatch, *cut)
        y = tiled(DOUBLED, x, w, b)
    assert_within(y, specified(seen(DOUBLED, x), w, b, 1, SAME), tiled_bound(DOUBLED, x, w, b))


@pytest.mark.parametrize("name", EXACT)
@given(
    shape=st.tuples(st.integers(1, 3), extents, extents, st.integers(1, 5), st.integers(1, 5)),
    kernel=st.sampled_from([1, 2, 3]),
    stride=st.integers(1, 3),
    padding=st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
)
@example(shape=(1, 8, 6, 3, 4), kernel=3, stride=2, padding=((0, 1), (0, 1)))
def test_exact_forms_give_the_specification(name, shape, kernel, stride, padding):
    """k · k · C products and a bias are summed."""
    if name == "pointwise":
        kernel, stride, padding = 1, 1, ((0, 0), (0, 0))
    assume(all(n + sum(zeros) >= kernel for n, zeros in zip(shape[1:3], padding, strict=True)))
    x, w, b = drawn(*shape, kernel)
    task, form = Task.of(x.shape, w.shape, stride, padding), EXACT[name]
    assert form.cost(task) is not None
    y = form.run(task, LazyMap(x), w, b, None, Scratch(x.dtype))
    bound = (kernel**2 * shape[3] + 2) * EPS["float32"] * specified(*map(np.abs, (x, w, b)), stride, padding)
    assert_within(y, specified(x, w, b, stride, padding), bound)


@pytest.mark.parametrize("algorithm", [F2, F4, DOUBLED, HALVED], ids=["F2", "F4", "DOUBLED", "HALVED"])
@given(
    shape=st.tuples(st.integers(1, 3), extents, extents, st.integers(1, 5), st.integers(1, 5)),
    cut=st.tuples(st.sampled_from([1, 3, 128]), st.sampled_from([1, 2, 7])),
)
def test_tiles_add_a_residual_where_they_belong(algorithm, shape, cut):
    """Bit for bit, as if it were added after the convolution."""
    x, w, b = drawn(*shape)
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_blocks(monkeypatch, *cut)
        alone = tiled(algorithm, x, w, b)
        residual = uniform("residual", alone.shape).astype(x.dtype)
        np.testing.assert_array_equal(tiled(algorithm, x, w, b, residual=residual), alone + residual)


@pytest.mark.parametrize("name", EXACT)
@given(shape=st.tuples(st.integers(1, 3), extents, extents, st.integers(1, 5), st.integers(1, 5)))
def test_exact_forms_add_a_residual_where_it_belongs(name, shape):
    """Bit for bit, as if it were added after the convolution."""
    k = 1 if name == "pointwise" else 3
    x, w, b = drawn(*shape, k)
    task = Task.of(x.shape, w.shape, 1, ((k // 2, k // 2), (k // 2, k // 2)))

    def result(residual):
        return EXACT[name].run(task, LazyMap(x), w, b, residual, Scratch(x.dtype))

    residual = uniform("residual", (*x.shape[:3], len(b))).astype(x.dtype)
    np.testing.assert_array_equal(result(residual), result(None) + residual)


@pytest.mark.parametrize(
    ("algorithm", "most"),
    [(F2, 3e-7), (F4, 2e-6), (DOUBLED, 4e-7), (HALVED, 4e-7)],
    ids=["F2", "F4", "DOUBLED", "HALVED"],
)
@pytest.mark.parametrize("C", [64, 512])
def test_a_layer_is_as_exact_as_documented(algorithm, most, C):
    """Relative L2; the convolution as it is written is within 4e-7."""
    x, w, b = drawn(1, 19, 22, C, 64)
    expected = specified(seen(algorithm, x), w, b, stride_of(algorithm.name), SAME)
    assert relative_l2(tiled(algorithm, x, w, b), expected) <= most


def test_the_points_of_f4_round_half_as_much_as_the_usual_ones():
    x, w, b = drawn(1, 24, 24, 64, 64)
    expected = specified(x, w, b, 1, SAME)
    usual = winograd(4, (0, 1, -1, 2, -2))
    assert relative_l2(tiled(F4, x, w, b), expected) <= 0.5 * relative_l2(tiled(usual, x, w, b), expected)


@pytest.mark.parametrize("algorithm", [F2, F4, DOUBLED, HALVED], ids=["F2", "F4", "DOUBLED", "HALVED"])
def test_whole_numbers_come_out_whole_to_the_border(algorithm):
    """Small ones: an index that is off by one, at a border or between blocks, is off by 1 at least."""
    x, w, b = (
        np.rint(3 * uniform(name, shape)) for name, shape in (("x", (2, 37, 41, 64)), ("w", (3, 3, 64, 8)), ("b", (8,)))
    )
    y = tiled(algorithm, *(a.astype(np.float32) for a in (x, w, b)))
    assert np.abs(y - specified(seen(algorithm, x), w, b, stride_of(algorithm.name), SAME)).max() < 0.25


@given(
    items=st.integers(1, 3),
    rows=st.integers(1, 60),
    columns=st.integers(1, 300),
    channels=st.sampled_from([1, 256, 300]),
    cores=st.integers(1, 9),
)
def test_blocks_cover_every_tile_once_and_occupy_every_core(items, rows, columns, channels, cores):
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_blocks(monkeypatch, 128, cores)
        found = list(blocks(items, rows, columns, channels))
    counts = np.zeros((items, rows, columns, channels), np.uint8)
    for item, i, j, some in ((one.item, one.rows, one.columns, one.channels) for one in found):
        counts[item, i.start : i.stop, j.start : j.stop, some] += 1
    assert (counts == 1).all()
    assert max(len(block.rows) * len(block.columns) for block in found) <= 128
    assert len(found) >= min(cores, rows)


# -- the choice ----------------------------------------------------------------------------------------------------


def chosen(size, C, O, k=3, stride=1, padding=SAME, dtype="float32", precision="default") -> str:
    ops = backend.ops("cpu", dtype, precision)
    return ops.convolution_form((1, C, *size), (O, C, k, k), stride=stride, padding=padding).form


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (128, 128), (256, 256), (1024, 1024), (63, 65), (34, 1024)])
@pytest.mark.parametrize("C", [128, 256, 512])
def test_the_layers_of_a_decoder_take_fewer_multiplications(size, C):
    assert chosen(size, C, C) == "F(4, 3)"


def test_bands_take_fewer_multiplications_too():
    """A band comes with the rows around it, and with zeros at its sides only."""
    assert chosen((34, 256), 128, 128, padding=((0, 0), (1, 1))) == "F(4, 3)"


@pytest.mark.parametrize(
    ("case", "form"),
    [
        ({"size": (32, 32), "C": 4, "O": 512}, "gathered"),
        ({"size": (256, 256), "C": 128, "O": 3}, "scattered"),
        ({"size": (256, 256), "C": 256, "O": 128, "k": 1, "padding": ((0, 0), (0, 0))}, "pointwise"),
        ({"size": (256, 256), "C": 128, "O": 128, "stride": 2, "padding": ((0, 1), (0, 1))}, "halved"),
        ({"size": (64, 64), "C": 512, "O": 512, "stride": 2, "padding": ((0, 1), (0, 1))}, "halved"),
        ({"size": (256, 256), "C": 128, "O": 128, "stride": 3}, "gathered"),
        ({"size": (1, 1), "C": 512, "O": 512}, "gathered"),
        ({"size": (8, 8), "C": 512, "O": 512}, "gathered"),  # transforming the kernels costs more than it saves
        ({"size": (256, 256), "C": 48, "O": 64}, "gathered"),
    ],
)
def test_other_layers_take_the_form_that_suits_them(case, form):
    assert chosen(**case) == form


@pytest.mark.parametrize(("dtype", "precision"), [("float64", "default"), ("float32", "highest")])
def test_float64_and_highest_precision_sum_as_written(dtype, precision):
    assert chosen((256, 256), 512, 512, dtype=dtype, precision=precision) in EXACT


@given(
    size=st.tuples(*[st.integers(1, 2000)] * 2),
    channels=st.tuples(*[st.sampled_from([3, 4, 8, 64, 128, 512])] * 2),
    stride=st.integers(1, 2),
)
def test_the_chosen_form_is_the_cheapest_that_is_listed(size, channels, stride):
    plan = backend.ops("cpu", "float32", "default").convolution_form(
        (1, *size, channels[0]), (3, 3, *channels), stride=stride, padding=SAME
    )
    assert plan.costs[plan.form] == min(plan.costs.values())
    assert set(plan.costs) <= set(FAST)
    assert {"gathered", "scattered"} <= set(plan.costs)


@pytest.mark.parametrize("form", ["gathered", "scattered", "F(2, 3)", "F(4, 3)"])
def test_the_choice_can_be_overridden(form):
    ops = backend.ops("cpu", "float32", "default")
    x, w, b = drawn(1, 9, 9, 64, 64)
    ops.forms = {form: FAST[form]}
    y = ops.conv2d(x, w, b, stride=1, padding=SAME)
    task = Task.of(x.shape, w.shape, 1, SAME)
    np.testing.assert_array_equal(y, FAST[form].run(task, LazyMap(x), w, b, None, Scratch(x.dtype)))

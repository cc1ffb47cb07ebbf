"""The algorithms with fewer multiplications compute the same as a filter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.configs import uniform

from vaespec_cpu.winograd import DOUBLED, F2, F4, HALVED, Algorithm, winograd

NAMED = pytest.mark.parametrize("algorithm", [F2, F4, DOUBLED, HALVED], ids=lambda algorithm: algorithm.name)
eighths = st.integers(-16, 16).map(lambda n: n / 8)


def filtered(algorithm: Algorithm, d: np.ndarray, g: np.ndarray) -> np.ndarray:
    return algorithm.A.T @ ((algorithm.G @ g) * (algorithm.B.T @ d))


@given(outputs=st.integers(1, 6), data=st.data())
def test_any_points_that_differ_give_a_filter(outputs, data):
    """np.correlate computes the same sums; some points are badly conditioned, none to more than 1e-9 here."""
    points = data.draw(st.lists(eighths, min_size=outputs + 1, max_size=outputs + 1, unique=True))
    algorithm = winograd(outputs, points)
    d, g = uniform("d", (algorithm.span,)), uniform("g", (3,))
    size = np.abs(algorithm.A.T) @ (np.abs(algorithm.G @ g) * (np.abs(algorithm.B.T) @ np.abs(d)))
    assert (np.abs(filtered(algorithm, d, g) - np.correlate(d, g)) <= 1e-13 * size).all()


def test_points_that_coincide_give_no_algorithm():
    with np.errstate(divide="ignore", invalid="ignore"):
        assert not np.isfinite(winograd(2, (0, 1, 1)).G).all()


def test_doubled_filters_the_doubled_signal():
    s, g = uniform("s", (3,)), uniform("g", (3,))
    np.testing.assert_allclose(filtered(DOUBLED, s, g), np.correlate(s.repeat(2), g), rtol=0, atol=1e-15)


def test_halved_gives_every_second_output():
    d, g = uniform("d", (5,)), uniform("g", (3,))
    np.testing.assert_allclose(filtered(HALVED, d, g), np.correlate(d, g)[::2], rtol=0, atol=1e-15)


@NAMED
def test_the_inner_and_outer_matrices_are_exact_in_float32(algorithm):
    for matrix in (algorithm.A, algorithm.B):
        np.testing.assert_array_equal(matrix.astype(np.float32), matrix)


@pytest.mark.parametrize(
    ("algorithm", "products", "outputs", "inputs"),
    [(F2, 4, 2, 2), (F4, 6, 4, 4), (DOUBLED, 5, 4, 2), (HALVED, 5, 2, 4)],
)
def test_products_for_outputs(algorithm, products, outputs, inputs):
    assert (algorithm.products, algorithm.outputs, algorithm.step) == (products, outputs, inputs)


@NAMED
@given(length=st.integers(1, 50))
def test_tiles_cover_the_outputs_and_none_is_spare(algorithm, length):
    covered = [algorithm.outputs * tiles - algorithm.lead for tiles in range(algorithm.tiles(length) + 1)]
    assert covered[-1] >= length > covered[-2]

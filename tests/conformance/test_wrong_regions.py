"""The wrong part of a map: its shape, its words, and what stands there."""

from __future__ import annotations

import numpy as np
import pytest

from vaespec_conformance.judging.comparison import within
from vaespec_conformance.judging.places import wrong_region
from vaespec_conformance.subjects.errors import ConformanceError

SHAPE = (2, 3, 40, 50)
MOST = "in one block: rows 0 to 38, columns 0 to 48"


def spoilt(index, value, shape=SHAPE):
    """The region of an error in numbers of about 1, beside that of rounding."""
    rng = np.random.default_rng(0)
    expected = rng.standard_normal(shape)
    actual = (expected + 1e-7 * rng.standard_normal(shape)).astype(np.float32)
    actual[index] = value
    with pytest.raises(ConformanceError) as raised:
        within(actual, expected, 1e-5, "the result")
    return raised.value.region


@pytest.mark.parametrize(
    ("index", "value", "kind", "words"),
    [
        (np.s_[:], 9, "everywhere", "everywhere"),
        (np.s_[:], 0, "everywhere", "zeros everywhere"),
        (np.s_[:, :, 20:], 0, "rows", "zeros from row 20 on"),
        (np.s_[:, :, 3:7], 9, "rows", "other numbers in rows 3 to 6 of 40"),
        (np.s_[..., 30:], np.nan, "columns", "NaN or infinity from column 30 on"),
        (np.s_[:, :, 8:16, 16:24], 0, "block", "zeros in one block: rows 8 to 15, columns 16 to 23"),
        (np.s_[:, :, 8, 16], np.inf, "block", "NaN or infinity at row 8, column 16"),
        (np.s_[:, 2], 0, "channels", "zeros everywhere, in channel 2 of 3"),
        (np.s_[1], 0, "items", "zeros everywhere, in item 1 of 2"),
        (np.s_[..., ::2, ::2], 9, "scattered", f"other numbers in scattered places: 26% of the pixels, {MOST}"),
    ],
)
def test_a_region_is_named_as_a_reader_of_pictures_would_with_what_it_holds(index, value, kind, words):
    region = spoilt(index, value)
    assert (region.kind, str(region), region.wraps) == (kind, words, 0)


@pytest.mark.parametrize("first", [2**16, 2**16 + 9], ids=["at once", "some numbers are right by chance"])
@pytest.mark.parametrize(
    ("order", "words"),
    [
        ((0, 1, 2, 3), "other numbers from number 65,536 of the map on"),
        ((0, 2, 3, 1), "other numbers from number 65,536 of the map with the channels last on"),
    ],
)
def test_an_index_that_wraps_is_told_from_rows(order, words, first):
    expected = np.random.default_rng(0).normal(size=(1, 8, 100, 100))
    flat = expected.transpose(order).flatten()
    flat[first:] = 9
    actual = flat.reshape([expected.shape[axis] for axis in order]).transpose(np.argsort(order))
    region = wrong_region(actual, actual - expected)
    assert (region.kind, region.wraps, str(region)) == ("index", 2**16, words)


def test_an_index_that_wraps_in_each_plane_is_told_by_the_pixel():
    region = spoilt(np.s_[:, :, 0, 0], 9, (1, 2, 300, 300))
    assert region.kind == "block"
    expected = np.random.default_rng(0).normal(size=(1, 2, 300, 300))
    actual = expected.copy()
    actual.reshape(1, 2, -1)[:, :, 2**16 :] = 0
    region = wrong_region(actual, actual - expected)
    assert (region.kind, region.wraps) == ("index", 2**16)
    assert str(region) == "zeros from row 218, column 136 on: from pixel 65536 = 2^16 of a plane on"


def test_rows_that_begin_near_a_power_of_two_are_no_index():
    for shape, row in (((1, 3, 1000, 230), 285), ((1, 8, 256, 256), 128)):  # 285 * 230 = 2^16 + 14; 128 * 256 = 2^15
        assert spoilt(np.s_[:, :, row:], 0, shape).kind == "rows"

"""Sizes: faults that begin at a size are found and their place is named; a right subject passes."""

from __future__ import annotations

import numpy as np
import pytest
from support import size_faults as faults

from vaespec import families
from vaespec.initialize import initialize
from vaespec.machine import MemoryUse
from vaespec.registry import get_backend
from vaespec_conformance.cases import models, sizes
from vaespec_conformance.checks import sizes as checks
from vaespec_conformance.judging.comparison import equal, within
from vaespec_conformance.judging.judge import predicted
from vaespec_conformance.judging.places import wrong_region
from vaespec_conformance.judging.registry import CHECKS
from vaespec_conformance.running.agenda import Selection, agenda
from vaespec_conformance.running.case_selection import pinned_cases
from vaespec_conformance.running.examination import examine
from vaespec_conformance.subjects.errors import ConformanceError, NotSupportedError
from vaespec_conformance.subjects.oracle import ORACLE, OracleOps
from vaespec_conformance.subjects.subjects import BackendSubject, PortSubject

NUMPY = BackendSubject(get_backend("numpy"))
LEVEL = [check for check in CHECKS.values() if check.level == "L5"]


def found(fault, check, profile="quick"):
    """The error of the first case of a check that finds a fault in a port."""
    port = PortSubject.of(fault.wrap(NUMPY))
    for case in CHECKS[check].pinned_in("float32", profile):
        try:
            CHECKS[check].run(port, case, "float32")
        except ConformanceError as error:
            return error
    return None


BOTH = faults.BEGINS["both sides"]
PLANTED = {
    "zeros": (lambda: faults.in_results("decode", BOTH(150), faults.zeros), "sizes.decode"),
    "last rows of the result before": (
        lambda: faults.in_results("encode", faults.BEGINS["one side"](140), faults.stale_rows(3)),
        "sizes.encode",
    ),
    "index wraps at 2^16": (
        lambda: faults.in_results("decode", faults.BEGINS["area"](120), faults.wrapped_index(1 << 16)),
        "sizes.decode",
    ),
    "one tile of zeros": (
        lambda: faults.in_results("decode", BOTH(99), faults.missing_tile(0.3, 0.7, 16)),
        "sizes.decode",
    ),
    "item of a batch": (lambda: faults.in_results("decode", BOTH(149), faults.wrong_item(3)), "sizes.batch"),
    "keys dropped": (lambda: faults.dropped_keys(lambda tokens: 60 * 60), "sizes.attention"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_fault_that_begins_at_a_size_is_found_in_quick_and_its_place_is_named(name):
    plant, check = PLANTED[name]
    fault = plant()
    error = found(fault, check)
    assert error is not None
    assert fault.told(error.where), error.where


def test_a_failure_at_a_size_seeks_no_cause_among_the_mistakes_of_small_maps():
    error = found(PLANTED["zeros"][0](), "sizes.decode")
    assert error is not None
    assert error.evidence is None


# -- the words for a place ---------------------------------------------------------------------------------------------


def wrong(*index, shape=(4, 3, 128, 160)):
    """A difference of about 1 at an index, and rounding elsewhere."""
    rng = np.random.default_rng(0)
    difference = 1e-6 * rng.standard_normal(shape)
    difference[index] += rng.standard_normal(difference[index].shape)
    return difference


ALL = slice(None)


def place(difference, factor=1):
    """The words for the wrong part of a map."""
    return wrong_region(difference, difference, factor).words


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ((ALL,), "everywhere"),
        ((ALL, ALL, slice(64, None)), "from row 64 on (latents: row 32)"),
        ((ALL, ALL, slice(0, 12)), "in rows 0 to 11 of 128 (latents: rows 0 to 5)"),
        ((ALL, ALL, 127), "in row 127 of 128 (latents: row 63)"),
        ((ALL, ALL, ALL, slice(97, None)), "from column 97 on (latents: column 48)"),
        ((slice(2, 4),), "everywhere, in items 2 to 3 of 4"),
        ((3, ALL, slice(64, None)), "from row 64 on (latents: row 32), in item 3 of 4"),
        ((ALL, 1), "everywhere, in channel 1 of 3"),
        (
            (ALL, ALL, slice(64, 128), slice(0, 64)),
            "in one block: rows 64 to 127 (latents: rows 32 to 63), columns 0 to 63 (latents: columns 0 to 31)",
        ),
    ],
)
def test_the_place_is_told_by_rows_columns_and_items_and_by_those_of_the_latents(index, words):
    assert place(wrong(*index), 2) == words


def test_a_place_that_begins_within_a_row_is_told_by_the_pixel():
    difference = wrong(ALL, shape=(1, 2, 300, 300))
    difference.reshape(1, 2, -1)[:, :, : 1 << 16] = 0
    assert place(difference) == "from row 218, column 136 on: from pixel 65536 = 2^16 of a plane on"


def test_numbers_that_are_not_finite_in_a_large_map_are_told_with_their_place():
    expected = np.ones((1, 1, 64, 64))
    actual = expected.copy()
    actual[:, :, 40:] = np.nan
    with pytest.raises(ConformanceError, match="NaN or infinite") as raised:
        within(actual, expected, 1e-3, "decode", factor=8)
    assert raised.value.where == "from row 40 on (latents: row 5)"


def test_small_errors_elsewhere_do_not_hide_the_place():
    difference = wrong(ALL, ALL, slice(80, None)) + 0.05 * np.random.default_rng(1).standard_normal((4, 3, 128, 160))
    assert place(difference) == "mostly from row 80 on"


def test_the_place_in_a_small_map_keeps_its_words():
    with pytest.raises(ConformanceError) as raised:
        equal(np.ones((1, 1, 8, 8)), np.zeros((1, 1, 8, 8)), "x")
    assert raised.value.where == "worst at (0, 0, 0, 0), inside and at the border, in 1 of 1 items and 1 of 1 channels"


# -- which cases are asked ---------------------------------------------------------------------------------------------


def test_each_profile_has_the_cases_of_the_one_before_and_quick_has_large_ones_in_float32_only():
    for check in LEVEL:
        quick, default, thorough = (set(check.pinned_in("float32", p)) for p in ("quick", "default", "thorough"))
        assert quick <= default <= thorough
        assert check.pinned_in("bfloat16", "quick") == check.pinned
    sides = [case["size"] for check in LEVEL for case in check.pinned_in("float32", "quick")]
    assert sum(min(size) > 150 for size in sides) >= 4


def test_cases_are_of_odd_sizes_that_are_not_square_beyond_2_16_pixels_and_4096_tokens():
    asked = CHECKS["sizes.decode"].pinned_in("float32", "quick")
    decode = next(case for case in asked if case["config"] == sizes.PLAIN)
    factor = models.config_of(decode).downsampling_factor
    height, width = decode["size"]
    assert height % 2
    assert width % 2
    assert height != width
    assert factor**2 * height * width > 1 << 16
    tokens = [case["size"][0] * case["size"][1] for case in CHECKS["sizes.attention"].pinned_in("float32", "quick")]
    assert max(tokens) > 4096
    wide = CHECKS["sizes.width"].pinned_in("float32", "default")
    assert (128, 256, 512, 512) in [models.config_of(case).block_out_channels for case in wide]


def test_the_largest_arrays_of_thorough_have_more_than_2_31_bytes_and_numbers():
    for name, itemsize in (("sizes.bytes", 4), ("sizes.elements", 1)):
        case = CHECKS[name].pinned_in("float32", "thorough")[-1]
        channels = models.config_of(case).block_out_channels[0]
        assert case["items"] * channels * np.prod(case["size"]) * itemsize > 1 << 31


def test_a_case_that_needs_more_memory_than_is_free_is_not_asked(monkeypatch):
    gib = 1 << 30
    monkeypatch.setattr(checks, "_memory", lambda subject, dtype: MemoryUse(0, 5 * gib))
    case = CHECKS["sizes.bytes"].pinned_in("float32", "thorough")[-1]
    with pytest.raises(NotSupportedError, match=r"^needs \d+\.\d GiB, 5\.0 GiB are free$"):
        CHECKS["sizes.bytes"].run(NUMPY, case, "float32")


def test_a_size_that_the_specification_would_need_minutes_for_is_not_asked():
    case = sizes.sized(sizes.REAL.replace("[128, ", "[160, "), (65, 67), half="decode")
    with pytest.raises(NotSupportedError, match=r"65 x 67 latents of this config take .* GFLOP"):
        CHECKS["sizes.decode"].run(NUMPY, case, "float32")


def family_port(**widths):
    """A port of FLUX.1's layers that takes 32 groups and four levels alone, or of one fixed config."""

    def build(config, weights):
        if not widths and (config.levels, config.norm_num_groups) != (4, 32):
            raise NotImplementedError("four levels and 32 groups")
        return NUMPY.factory(config, weights, "float32")

    if widths:
        build.config = families.config("flux1")
    return PortSubject(build, "family")


def test_a_port_of_published_layers_alone_is_asked_for_large_maps_of_them():
    for half in ("decode", "encode"):
        asked = pinned_cases(family_port(), CHECKS[f"sizes.{half}"], "float32", "default")
        taken = [case for case in asked if models.config_of(case).levels == 4 and case["config"] in models.CONFIGS]
        assert {case["size"] for case in taken} >= {(35, 33), (63, 65)}
        assert any(max(case["size"]) > 150 for case in taken)


def test_a_port_of_full_width_is_asked_for_more_than_32_latents_a_side():
    for half in ("decode", "encode"):
        asked = pinned_cases(family_port(full=True), CHECKS[f"sizes.{half}"], "float32", "quick")
        (case,) = (case for case in asked if models.is_wide(models.config_of(case)))
        assert min(case["size"]) > 32
        checks.require_affordable(case)


def test_a_port_with_its_own_weights_is_compared_with_them_in_huge_batches():
    def build(config, weights):
        return NUMPY.factory(config, weights, "float32")

    build.weights = lambda config: initialize(config, 7)
    (case,) = CHECKS["sizes.bytes"].pinned
    assert max(CHECKS["sizes.bytes"].run(PortSubject(build, "own"), case, "float32")) <= 1


def test_a_port_that_declares_small_sizes_only_is_not_asked_for_large_ones():
    def build(config, weights, dtype="float32"):
        return NUMPY.factory(config, weights, dtype)

    build.sizes = lambda height, width, batch: None if max(height, width) <= 32 else "at most 32 latents a side"
    port = PortSubject(build, "small")
    (item,) = agenda(port, Selection(checks=("sizes.decode[float32]",)))
    examination = examine(port, item, profile="quick", seed=0)
    assert not examination.failures
    assert not examination.examples
    assert "at most 32 latents a side" in " ".join(examination.not_asked.values())


# -- the specification at a size ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_error_of_rounding_does_not_grow_with_the_plane(dtype):
    small, large = (
        predicted(checks._compute, sizes.sized(sizes.FLAT, size, half="decode"), dtype)
        for size in (sizes.SMALL, (97, 81))
    )
    assert 0.7 < large / small < 1.4


def test_the_oracle_attends_in_chunks_to_the_same_result():
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, 2300, 3))
    ops = OracleOps(np, "float64")
    np.testing.assert_allclose(
        ops.attention(q, k, v, scale=1.0), ops.eager_attention(q, k, v, scale=1.0), rtol=1e-12, atol=1e-13
    )
    assert isinstance(ORACLE.raw_ops("float64"), OracleOps)

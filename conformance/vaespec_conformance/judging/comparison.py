"""Compares two arrays within a budget, and says in one sentence where they differ."""

from __future__ import annotations

import numpy as np

from vaespec_conformance.judging.budgets import WORST_ELEMENT
from vaespec_conformance.judging.places import LARGE, WrongRegion, wrong_region
from vaespec_conformance.judging.registry import EXACT, Margin
from vaespec_conformance.subjects.errors import ConformanceError


def within(actual: np.ndarray, expected: np.ndarray, budget: float, what: str, *, factor: int = 1) -> Margin:
    """The used share of the budget; raises ConformanceError if it is more than 1.

    `factor` is the pixels of a result along a side of one latent, if the place should give the latents' rows as well.
    """
    difference = _difference(actual, expected, what, factor)
    size = float(np.linalg.norm(expected)) or 1.0
    rms = size / max(1.0, expected.size**0.5)
    eta2 = float(np.linalg.norm(difference)) / size / budget
    etainf = float(abs(difference).max(initial=0.0)) / rms / (WORST_ELEMENT * budget)
    if eta2 > 1 or etainf > 1:
        raise _failure(
            f"{what} is off by {eta2 * budget:.2g} of its size: {max(eta2, etainf):.3g} budgets of {budget:.2g}",
            actual,
            difference,
            eta2,
            etainf,
            factor,
        )
    return Margin(eta2, etainf)


def elementwise(actual: np.ndarray, expected: np.ndarray, bound: np.ndarray, what: str) -> Margin:
    """The used share of a bound for each element; raises ConformanceError if any element exceeds it."""
    difference = _difference(actual, expected, what)
    worst = float((abs(difference) / bound).max(initial=0.0))
    if worst > 1:
        raise _failure(
            f"{what} has an error of {worst:.3g} times the bound of an element", actual, difference, worst, worst
        )
    return Margin(worst, worst)


def equal(actual: np.ndarray, expected: np.ndarray, what: str) -> Margin:
    """Raises ConformanceError unless every number is equal."""
    difference = _difference(actual, expected, what)
    if difference.any():
        wrong = np.count_nonzero(difference)
        raise _failure(f"{what} differs in {wrong} of {difference.size} numbers that must be equal", actual, difference)
    return EXACT


def integers(actual: np.ndarray, expected: np.ndarray, budget: float, what: str) -> Margin:
    """Raises ConformanceError unless each integer is within `budget`: Winograd sums pass, other integers do not."""
    difference = _difference(actual, expected, what)
    wrong = np.count_nonzero(abs(difference) >= budget)
    if wrong:
        raise _failure(
            f"{what} differs in {wrong} of {difference.size} integers that must be exact", actual, difference
        )
    return EXACT


def _difference(actual: np.ndarray, expected: np.ndarray, what: str, factor: int = 1) -> np.ndarray:
    """actual - expected in float64; raises ConformanceError for another shape, NaN or infinity."""
    if actual.shape != expected.shape:
        raise ConformanceError(f"{what} is of shape {actual.shape}: expected {expected.shape}.")
    wide = np.asarray(actual).astype(np.float64)
    if not np.isfinite(wide).all():
        bad = ~np.isfinite(wide)
        count = np.count_nonzero(bad)
        region = _region(actual, bad.astype(float), factor)
        raise ConformanceError(
            f"{what} has {count} of {wide.size} numbers that are NaN or infinite: expected finite ones.",
            where=region.words if region and _is_large(bad) else None,
            region=region,
        )
    return np.asarray(wide - np.asarray(expected, np.float64))


def _failure(
    message: str,
    actual: np.ndarray,
    difference: np.ndarray,
    eta2: float = float("inf"),
    etainf: float = float("inf"),
    factor: int = 1,
) -> ConformanceError:
    region = _region(actual, difference, factor)
    where = _location(difference, region)
    return ConformanceError(f"{message}.", where=where, region=region, difference=difference, eta2=eta2, etainf=etainf)


def _region(actual: np.ndarray, difference: np.ndarray, factor: int) -> WrongRegion | None:
    """The wrong part of a map; None for any other array."""
    return wrong_region(actual, difference, factor) if difference.ndim == 4 else None


def _is_large(a: np.ndarray) -> bool:
    """Whether an array is a map whose wrong part is described by rows and columns."""
    return a.ndim == 4 and a.shape[2] * a.shape[3] > LARGE


def _location(difference: np.ndarray, region: WrongRegion | None) -> str:
    """Describes the worst element and, for a map, the part that is wrong."""
    worst = "worst at " + str(tuple(map(int, np.unravel_index(abs(difference).argmax(), difference.shape))))
    if region is None:
        return worst
    return f"wrong {region.words}; {worst}" if _is_large(difference) else f"{worst}, {_border(difference)}"


def _border(difference: np.ndarray) -> str:
    """Describes the wrong part of a small map (B, C, H, W): elements with more than a tenth of the largest error."""
    size = abs(difference)
    wrong = size > 0.1 * size.max()
    items, channels = wrong.any((1, 2, 3)), wrong.any((0, 2, 3))
    inside = wrong[:, :, 1:-1, 1:-1].any()
    place = "inside and at the border" if inside else "at the border only"
    return (
        f"{place}, in {np.count_nonzero(items)} of {len(items)} items and {np.count_nonzero(channels)} of "
        f"{len(channels)} channels"
    )

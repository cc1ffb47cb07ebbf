"""L0: arrays are converted without loss, and no array of the caller is shared or changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from vaespec.analysis.rounding import rounded
from vaespec.ops import KERNELS
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.cases.strategies import among, cases
from vaespec_conformance.checks.structure import MAPS
from vaespec_conformance.judging.comparison import equal
from vaespec_conformance.judging.judge import judge
from vaespec_conformance.judging.registry import EXACT, OPERATION, Margin, check
from vaespec_conformance.subjects.errors import ConformanceError
from vaespec_conformance.subjects.subjects import input_dtype

SHAPES = ((3,), (4, 6), (2, 4, 5, 3))
ORDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": lambda a: a,
    "Fortran": np.asfortranarray,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "backwards": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "every other": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
}


def _numbers(case: Case, dtype: str) -> np.ndarray:
    return rounded(case.rng("a").standard_normal(case["shape"]), dtype)


def _compute_round_trip(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """to_numpy of from_numpy, for an array in the memory order of the case."""
    return subject.ops(dtype).round_trip(ORDERS[case["order"]](_numbers(case, dtype)))


@check(
    "interop.round_trip",
    level="L0",
    subjects=("backend",),
    examples=OPERATION,
    cases=cases(shape=among(*SHAPES), order=among(*ORDERS)),
    pinned=tuple(Case.of(shape=(2, 4, 5, 3), order=order, seed=1) for order in ORDERS),
)
def round_trip(subject: Any, case: Case, dtype: str) -> Margin:
    """to_numpy undoes from_numpy to the last bit, in whatever order the numbers are stored in memory."""
    return judge(subject, _compute_round_trip, case, dtype, what="to_numpy of from_numpy", compare=_equal, budget=0.0)


def _equal(actual: np.ndarray, expected: np.ndarray, budget: float, what: str) -> Margin:
    return equal(actual, expected, what)


def _compute_through_map(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return subject.ops(dtype).through_map(_numbers(case, dtype))


@check(
    "interop.layout",
    level="L0",
    subjects=("backend",),
    examples=OPERATION,
    cases=cases(shape=among(*MAPS)),
    pinned=(Case.of(shape=(2, 4, 5, 7), seed=1),),
)
def layout(subject: Any, case: Case, dtype: str) -> Margin:
    """to_nchw undoes from_nchw."""
    return judge(subject, _compute_through_map, case, dtype, what="to_nchw of from_nchw", compare=_equal, budget=0.0)


CALLS: dict[str, dict[str, Any]] = {
    "conv2d": {"weights": ((4, 4, 3, 3), (4,)), "stride": 1, "padding": ((1, 1), (1, 1))},
    "group_norm": {"weights": ((4,), (4,)), "groups": 2, "eps": 1e-6},
    "linear": {"weights": ((4, 4), (4,))},
    "attention": {"scale": 0.5},
}
"""Arguments of each operation, besides maps or tokens of four channels."""


def _call(subject: Any, op: str, case: Case, dtype: str) -> Any:
    """Runs one operation on random numbers: see `OpsFacade.watched`."""
    shape = (2, 6, 4) if op in ("linear", "attention") else (2, 4, 5, 7)
    count = {"attention": 3, "add": 2}.get(op, 1)
    numbers = dict(CALLS.get(op, {}))
    shapes = numbers.pop("weights", ())
    arrays = [rounded(case.rng(f"x{i}").standard_normal(shape), dtype) for i in range(count)]
    weights = tuple(rounded(case.rng(f"w{i}").standard_normal(w), dtype) for i, w in enumerate(shapes))
    return subject.ops(dtype).watched(op, *arrays, weights=weights, **numbers)


each_operation = partial(
    check,
    level="L0",
    subjects=("backend",),
    examples=OPERATION,
    cases=cases(op=among(*KERNELS)),
    pinned=tuple(Case.of(op=op, seed=1) for op in KERNELS),
)


@each_operation("interop.dtype")
def results(subject: Any, case: Case, dtype: str) -> Margin:
    """An operation returns the backend's own kind of array, and its result is returned in the storage dtype."""
    call = _call(subject, case["op"], case, dtype)
    if not call.own:
        raise ConformanceError(f"{case['op']} returned a {call.kind}: expected an array of this backend.")
    if call.dtype != dtype:
        raise ConformanceError(f"{case['op']} of {dtype} returned {call.dtype}: expected the storage dtype.")
    return EXACT


@each_operation("interop.arguments")
def arguments(subject: Any, case: Case, dtype: str) -> Margin:
    """An operation does not change its arguments."""
    call = _call(subject, case["op"], case, dtype)
    for before, after in zip(call.before, call.after, strict=True):
        equal(after, before, f"an argument of {case['op']}, after it,")
    return EXACT


@check(
    "interop.ownership",
    level="L0",
    subjects=("backend",),
    examples=OPERATION,
    cases=cases(shape=among(*SHAPES)),
    pinned=(Case.of(shape=(2, 4, 5, 3), seed=1),),
)
def ownership(subject: Any, case: Case, dtype: str) -> Margin:
    """An array from from_numpy does not change when its source is changed."""
    before = _numbers(case, dtype)
    after = subject.ops(dtype).after_change(before.astype(input_dtype(dtype)))
    return equal(after, before, "an array, after its source was changed,")

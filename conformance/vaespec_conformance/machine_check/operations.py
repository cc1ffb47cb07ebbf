"""Which operation of a backend is wrong? Each one is computed again by NumPy, from the same inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import numpy as np

from vaespec.analysis.observe import WITH_PARAMETERS, WatchedParams
from vaespec.architecture import Half
from vaespec.errors import MemoryLimitError
from vaespec.layouts import OIHW
from vaespec.model import Model
from vaespec.ops import Array, Layer
from vaespec.reference import ReferenceOps
from vaespec_conformance.judging import budgets
from vaespec_conformance.judging.comparison import within
from vaespec_conformance.judging.places import WrongRegion
from vaespec_conformance.machine_check.sides import out_of_memory
from vaespec_conformance.subjects.errors import ConformanceError

Params = Mapping[str, Array]
ON_MAPS = ("conv2d", "group_norm", "silu", "mish", "gelu", "relu", "add", "scale", "upsample_nearest2x")
ON_TOKENS = ("linear", "attention", "eager_attention", "chunked_attention")
PRODUCTS = ("conv2d", "linear")
OTHERS = 1e-3
"""Bound of the relative error of what is no sum of products in float32: far above any right one."""


@dataclass(frozen=True)
class WrongOperation:
    """The first operation whose result is wrong: its name, the layer, its inputs' shape, and the region of its result.

    `error` is the relative L2, infinite if there is none; `problem` then says why.
    """

    op: str
    layer: str
    shape: tuple[int, ...]
    error: float
    region: WrongRegion | None
    problem: str = ""

    @property
    def words(self) -> str:
        """The operation in words."""
        size = " x ".join(map(str, self.shape))
        known = self.op in WITH_PARAMETERS
        return f"{self.layer} ({self.op} of {size})" if known else f"{self.op} of {size} after {self.layer}"


def first_wrong_operation(model: Model, half: Half, x: np.ndarray, reference: ReferenceOps) -> WrongOperation | None:
    """Runs a half operation by operation; None if each is right, so that only their combination is wrong."""
    model = model.computing(half)
    params = WatchedParams(model.params)
    compared = _ComparedOps(model.ops, reference, params)
    with suppress(_Found), np.errstate(over="ignore", invalid="ignore"):
        model.layers(half)(model.ops.from_numpy(x), params, compared)
    return compared.found


class _Found(Exception):  # noqa: N818
    """Ends the run at the first wrong operation."""


class _ComparedOps:
    """Passes operations to `ops`, and compares each result with `reference`."""

    def __init__(self, ops: Any, reference: ReferenceOps, params: WatchedParams) -> None:
        self.ops, self.reference, self.params = ops, reference, params
        self.found: WrongOperation | None = None

    def inference_ops(self, params: Params) -> tuple[Self, Params]:
        return self, params

    def apply(self, function: Callable[[Any, Params], Any], x: Any, params: Params) -> Any:
        return self.ops.apply(function, x, params)

    def run(self, layer: Layer, x: Array, params: Params) -> Array:
        return self.apply(lambda x, params: layer(x, params, self), x, params)

    def __getattr__(self, name: str) -> Any:
        op = getattr(self.ops, name)
        if name not in ON_MAPS and name not in ON_TOKENS:
            return op

        def compared(*args: Any, **numbers: Any) -> Any:
            try:
                y = self.ops.materialize(op(*args, **numbers))
            except Exception as error:  # a framework can raise anything
                if out_of_memory(error):
                    raise MemoryLimitError("the memory is too little for both sides.") from error
                shape = _leave(self.ops, "map" if args[0].ndim == 4 else "tokens", args[0]).shape
                self._end(name, shape, math.inf, None, f"it raised {type(error).__name__}")
            self._compare(name, args, numbers, y)
            return y

        return compared

    def _compare(self, name: str, args: tuple[Any, ...], numbers: Mapping[str, Any], y: Array) -> None:
        """Raises _Found if y is not what the reference computes from the same numbers."""
        given = [self._read(a) for a in args]
        entered = [None if a is None else self._enter(kind, a) for kind, a in given]
        (_, first), (y_kind, actual) = given[0], self._read(y)
        expected = _leave(self.reference, y_kind, getattr(self.reference, name)(*entered, **numbers))
        assert actual is not None
        assert first is not None
        if not np.isfinite(expected).all():
            return
        budget = _budget(name, self.ops.dtype)
        try:
            within(_as_map(actual), _as_map(expected), budget, "the result")
        except ConformanceError as wrong:
            error = wrong.eta2 * budget
            problem = "" if math.isfinite(error) else str(wrong.region or "a result of another shape")
            self._end(name, first.shape, error, wrong.region, problem)

    def _end(
        self, name: str, shape: tuple[int, ...], error: float, region: WrongRegion | None, problem: str
    ) -> NoReturn:
        layer = self.params.last.removesuffix(".weight").removesuffix(".bias")
        self.found = WrongOperation(name, layer, shape, error, region, problem)
        raise _Found

    def _read(self, a: Any) -> tuple[str, np.ndarray | None]:
        """The kind of an argument or a result, and its numbers in canonical order, float32 or wider."""
        if a is None:
            return "", None
        if any(a is p for p in self.params.values()):
            return "weight", _wide(self.ops.layout.convert(self.ops.to_numpy(a), OIHW))
        kind = "map" if a.ndim == 4 else "tokens"
        return kind, _wide(_leave(self.ops, kind, a))

    def _enter(self, kind: str, a: np.ndarray) -> Any:
        """An array with the same numbers, as the reference takes it."""
        if kind == "weight":
            return self.reference.from_numpy(OIHW.convert(a, self.reference.layout))
        return self.reference.from_nchw(self.reference.from_numpy(a)) if kind == "map" else self.reference.from_numpy(a)


def _leave(ops: Any, kind: str, a: Any) -> np.ndarray:
    numbers: np.ndarray = ops.to_numpy(ops.to_nchw(a) if kind == "map" else a)
    return numbers


def _as_map(a: np.ndarray) -> np.ndarray:
    """Tokens (B, N, C) as a map (B, C, N, 1), whose rows they are; a map as it is."""
    return a.transpose(0, 2, 1)[..., None] if a.ndim == 3 else a


def _wide(a: np.ndarray) -> np.ndarray:
    return np.asarray(a, np.float64 if a.dtype == np.float64 else np.float32)


def _budget(op: str, dtype: str) -> float:
    """The greatest relative error of a right operation."""
    if op in PRODUCTS:
        return budgets.contraction("float32") + budgets.storage_eps(dtype)
    return OTHERS + 8 * budgets.storage_eps(dtype)

"""Which layer computed the first NaN or infinity? Runs the model, whole or in bands, and checks every result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from vaespec.layers import Params
from vaespec.ops import Array, Layer

Run = Callable[[Layer, Any, Params, Any], object]

UNCHECKED = ("channel_statistics", "materialize", "to_numpy", "from_host")
"""What bands do with statistics, also of maps that no norm reads: those may overflow."""


def run_whole(model: Layer, x: Array, params: Params, ops: Any) -> None:
    """model(x, params, ops)."""
    model(x, params, ops)


def first_nonfinite(model: Layer, x: Any, params: Params, ops: Any, run: Run = run_whole) -> str | None:
    """The first weight or result that is not finite when `model` runs on x, in words; None if all are finite.

    run(model, x, params, ops) runs it, with every operation of the given ops checked.
    """
    names = [name for name, _ in model.parameters()]
    for name in names:
        if not ops.all_finite(params[name]):
            return f"the weight {name}"
    checked = _CheckedOps(ops, {id(params[name]): name for name in names})
    try:
        run(model, x, params, checked)
    except _NonFiniteResultError as error:
        return f"the {error} after reading {checked.last}"
    return None


class _NonFiniteResultError(Exception):
    """Carries the name of the operation."""


class _CheckedOps:
    """Raises _NonFiniteResultError unless a result of `ops` is finite.

    `names` are those of the weights, by id. `last` is the weight that was used last, which names the layer at work.
    """

    def __init__(self, ops: Any, names: Mapping[int, str]) -> None:
        self.ops, self.names, self.last = ops, names, ""

    def inference_ops(self, params: Params) -> tuple[Self, Params]:
        return self, params

    def apply(self, function: Callable[[Any, Params], Any], x: Any, params: Params) -> Any:
        return self.ops.apply(function, x, params)

    def run(self, layer: Layer, x: Array, params: Params) -> Array:
        return self.apply(lambda x, params: layer(x, params, self), x, params)

    def __getattr__(self, name: str) -> Any:
        op = getattr(self.ops, name)
        if not callable(op) or name in UNCHECKED:
            return op

        def checked(*args: Any, **kwargs: Any) -> Any:
            used = (self.names[id(arg)] for arg in reversed(args) if id(arg) in self.names)
            self.last = next(used, self.last)
            y = op(*args, **kwargs)
            if not all(map(self.ops.all_finite, y if isinstance(y, tuple) else (y,))):
                raise _NonFiniteResultError(name)
            return y

        return checked

"""Derivatives of a function that MLX cannot trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx

Model = Callable[[mx.array, Mapping[str, mx.array]], mx.array]


def with_derivatives(run: Model, traceable: Model) -> Callable[..., Any]:
    """Return run(x, params) with the derivatives of `traceable`, an equal function that runs only for them."""
    step = mx.custom_function(run)

    @step.vjp
    def pull_back(primals: Any, cotangent: mx.array, _: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
        x, params = primals
        gradients = mx.vjp(_flat(traceable, params), [x, *params.values()], [cotangent])[1]
        return gradients[0], dict(zip(params, gradients[1:], strict=True))

    @step.jvp
    def push_forward(primals: Any, tangents: Any) -> mx.array:
        (x, params), (x_dot, params_dot) = primals, tangents
        arrays, dots = [x, *params.values()], [x_dot, *params_dot.values()]
        dots = [mx.zeros_like(a) if dot is None else dot for a, dot in zip(arrays, dots, strict=True)]
        return mx.jvp(_flat(traceable, params), arrays, dots)[1][0]

    return step


def _flat(model: Model, params: Mapping[str, mx.array]) -> Callable[..., mx.array]:
    """Return model(x, params) as a function of x and of each parameter, in their order."""
    return lambda x, *weights: model(x, dict(zip(params, weights, strict=True)))

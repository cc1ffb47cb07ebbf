"""Subjects as the checks call them: NumPy in, NumPy out, and whatever they raise or give amiss is a ConformanceError."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vaespec.ops import ReferenceOps
from vaespec.parameters import Parameter, Role
from vaespec_conformance.errors import ConformanceError, blamed

ROLES: dict[int, Role] = {4: "conv", 2: "linear", 1: "bias"}


class DrivenVae:
    """A VAE. `encode` gives (mean, logvar), and so does whatever ends in encode; the rest gives an array."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    def __getattr__(self, name: str) -> Callable[..., Any]:
        with blamed(name):
            method = getattr(self.vae, name)

        def driven(*args: Any) -> Any:
            with blamed(name):
                result = method(*args)
                if name == "weights":
                    return {key: np.asarray(a) for key, a in result.items()}
                return tuple(map(np.asarray, _pair(name, result))) if name.endswith("encode") else np.asarray(result)

        return driven


def _pair(name: str, result: Any) -> tuple[Any, Any]:
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise ConformanceError(f"{name} gave a {type(result).__name__}: expected a pair of arrays (mean, logvar).")
    return result[0], result[1]


class DrivenOps:
    """The operations of a backend: maps are (B, C, H, W) and kernels canonical, whatever the backend holds them in."""

    def __init__(self, ops: ReferenceOps) -> None:
        self.ops = ops

    def on_maps(self, op: str, *maps: np.ndarray, weights: tuple[np.ndarray, ...] = (), **numbers: Any) -> np.ndarray:
        """ops.op(*maps, *weights, **numbers), of maps and a map."""
        with blamed(op):
            return self._run(
                lambda: self.leave(getattr(self.ops, op)(*map(self.enter, maps), *self.place(weights), **numbers))
            )

    def on_tokens(self, op: str, *tokens: np.ndarray, weights: tuple[np.ndarray, ...] = (), **numbers: Any) -> Any:
        """The same of tokens (B, N, C), and tokens, or a tuple of them."""

        def call() -> Any:
            placed = map(self.ops.from_numpy, tokens)
            y = getattr(self.ops, op)(*placed, *self.place(weights), **numbers)
            return tuple(map(self.numpy, y)) if isinstance(y, tuple) else self.numpy(y)

        with blamed(op):
            return self._run(call)

    def enter(self, x: np.ndarray) -> Any:
        """NumPy (B, C, H, W) -> map."""
        return self.ops.from_nchw(self.ops.from_numpy(x))

    def leave(self, y: Any) -> np.ndarray:
        """Map -> NumPy (B, C, H, W)."""
        return self.numpy(self.ops.to_nchw(y))

    def numpy(self, x: Any) -> np.ndarray:
        """An array of the backend -> NumPy; a copy, since it may be a view of the backend's memory."""
        return np.array(self.ops.to_numpy(x))

    def place(self, weights: tuple[np.ndarray, ...]) -> list[Any]:
        """Canonical kernels, scales and biases -> the backend's, in its layouts."""
        return [self.ops.from_numpy(Parameter(w.shape, ROLES[w.ndim]).to_layout(w, self.ops)) for w in weights]

    def _run(self, call: Callable[[], Any]) -> Any:
        """Through ops.run, where a backend sets its device and precision."""
        return self.ops.run(lambda x, params, ops: call(), None, {})  # type: ignore[arg-type]  # a layer without x

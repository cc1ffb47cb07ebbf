"""Snippets: a failure of an operation in at most fifteen lines of NumPy and the backend, which run without the suite.

The check is run once more with a recorder in place of the operations. The snippet draws arrays like those of the
recorded call (same mean and deviation, or integers in the same range), and has the formula in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from vaespec.backend import Backend
from vaespec.layouts import OIHW
from vaespec.namespace import NamespaceBackend
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.judging.registry import Check
from vaespec_conformance.running.port_snippets import port_snippet
from vaespec_conformance.subjects.subjects import BackendSubject, PortSubject, Subject

OPERATIONS = "L1"
Arrays = tuple[np.ndarray, ...]
ARGUMENTS = {
    "conv2d": ("x", "w", "b"),
    "group_norm": ("x", "scale", "shift"),
    "add": ("x", "y"),
    "linear": ("t", "w", "b"),
    "attention": ("q", "k", "v"),
    "eager_attention": ("q", "k", "v"),
    "chunked_attention": ("q", "k", "v"),
}
SOFTMAX = (
    "a = scale * q @ k.transpose(0, 2, 1)",
    "a = np.exp(a - a.max(-1, keepdims=True))",
    "r = a / a.sum(-1, keepdims=True) @ v",
)
FORMULAS = {
    "conv2d": (
        "x_p = np.pad(x, ((0, 0), (0, 0), *padding))",
        "taps = np.lib.stride_tricks.sliding_window_view(x_p, w.shape[2:], (2, 3))[:, :, ::stride, ::stride]",
        "r = np.einsum('bcijuv,ocuv->boij', taps, w) + b[:, None, None]",
    ),
    "group_norm": (
        "g = x.reshape(len(x), groups, -1)",
        "g = (g - g.mean(-1, keepdims=True)) / np.sqrt(g.var(-1, keepdims=True) + eps)",
        "r = g.reshape(x.shape) * scale[:, None, None] + shift[:, None, None]",
    ),
    "silu": ("r = x / (1 + np.exp(-np.clip(x, -700, 700)))",),
    "mish": ("r = x * np.tanh(np.logaddexp(0, x))",),
    "gelu": ("r = x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2",),
    "relu": ("r = np.maximum(x, 0)",),
    "add": ("r = x + y",),
    "upsample_nearest2x": ("r = x.repeat(2, 2).repeat(2, 3)",),
    "linear": ("r = t @ w.T + b",),
    "scale": ("r = factor * x",),
    "attention": SOFTMAX,
    "eager_attention": SOFTMAX,
    "chunked_attention": SOFTMAX,
}


class RecordedCall(BaseException):
    """The call that a check makes, raised through it; not an Exception, so that nothing treats it as a failure."""

    def __init__(self, op: str, arrays: Arrays, weights: Arrays, numbers: dict[str, Any], maps: bool) -> None:
        self.op, self.arrays, self.weights, self.numbers, self.maps = op, arrays, weights, numbers, maps


class RecordingOps:
    """Operations that raise the first call made on them, instead of computing it."""

    def on_maps(self, op: str, *maps: np.ndarray, weights: Arrays = (), **numbers: Any) -> NoReturn:
        """Raises the call; see OpsFacade."""
        raise RecordedCall(op, maps, weights, numbers, maps=True)

    def on_tokens(self, op: str, *tokens: np.ndarray, weights: Arrays = (), **numbers: Any) -> NoReturn:
        """Raises the call; see OpsFacade."""
        raise RecordedCall(op, tokens, weights, numbers, maps=False)


@dataclass(frozen=True)
class RecordingSubject(BackendSubject):
    """A backend whose operations record the first call."""

    def ops(self, dtype: str) -> Any:
        """Recording operations."""
        return RecordingOps()


def snippet(subject: Subject, check: Check, case: Case, dtype: str) -> str | None:
    """The snippet; None if the check calls several operations, or one without a formula here."""
    if subject.kind == "program":  # which is not called from Python
        return None
    if isinstance(subject, PortSubject):
        return port_snippet(subject, check, case, dtype)
    if not isinstance(subject, BackendSubject) or check.level != OPERATIONS:
        return None
    call = _recorded(subject, check, case, dtype)
    if call is None or call.op not in FORMULAS:
        return None
    try:
        return _written(subject, call, dtype)
    except Exception:  # the subject cannot even create its operations
        return None


def _recorded(subject: BackendSubject, check: Check, case: Case, dtype: str) -> RecordedCall | None:
    try:
        check.run(RecordingSubject(subject.backend, subject.device, subject.precision), case, dtype)
    except RecordedCall as call:
        return call
    except Exception:  # the check uses a method that RecordingOps lacks
        return None
    return None


def _source(backend: Backend) -> tuple[str, str]:
    """The import that finds a backend again, and the expression that creates it."""
    if isinstance(backend, NamespaceBackend):
        return "from vaespec.registry import choose_backend", f"choose_backend({backend.name!r})"
    kind = type(backend)
    return f"from {kind.__module__} import {kind.__qualname__}", f"{kind.__qualname__}()"


def _written(subject: BackendSubject, call: RecordedCall, dtype: str) -> str:
    names = ARGUMENTS.get(call.op, ("x",))
    place, made = _source(subject.backend)
    device = subject.device or subject.backend.devices()[0]
    arrays = dict(zip(names, (*call.arrays, *call.weights), strict=True))
    listed = ", ".join(names) + ("," if len(names) == 1 else "")
    numbers = {name: value if isinstance(value, int | tuple) else float(value) for name, value in call.numbers.items()}
    kernel = _kernel_layout(subject, call, dtype)
    return "\n".join(
        [
            "import math\n\nimport numpy as np" if "math." in "".join(FORMULAS[call.op]) else "import numpy as np",
            place,
            "",
            f"ops = {made}.ops({device!r}, {dtype!r}, {subject.precision!r})",
            "rng, put = np.random.default_rng(1), ops.from_numpy",
            *(f"{name} = {_drawn(a)}" for name, a in arrays.items()),
            f"{listed} = (ops.to_numpy(put(a)).astype(float) for a in ({listed}))",
            *([f"{', '.join(numbers)} = {', '.join(map(repr, numbers.values()))}"] if numbers else []),
            f"z = {_expression(call, names, kernel)}",
            *FORMULAS[call.op],
            "print(np.linalg.norm(ops.to_numpy(z).astype(float) - r) / np.linalg.norm(r))",
            "",
        ]
    )


def _drawn(a: np.ndarray) -> str:
    """An expression that draws an array like `a`."""
    if np.array_equal(a, np.rint(a)) and np.ptp(a) > 0:
        return f"rng.integers({int(a.min())}, {int(a.max()) + 1}, {a.shape}).astype(float)"
    return f"rng.normal({a.mean():.3g}, {a.std():.3g}, {a.shape})"


def _kernel_layout(subject: BackendSubject, call: RecordedCall, dtype: str) -> str:
    """The transposition of the kernel into the backend's layout; empty for the canonical layout."""
    if not call.weights:
        return ""
    axes = OIHW.permutation(call.weights[0].ndim, subject.raw_ops(dtype).layout)
    return f".transpose{axes}" if sorted(axes) != list(axes) else ""


def _expression(call: RecordedCall, names: tuple[str, ...], kernel: str) -> str:
    """The call of the operation on maps and weights in the backend's layouts."""
    arrays = [f"put({name})" for name in names[: len(call.arrays)]]
    arrays = [f"ops.from_nchw({array})" for array in arrays] if call.maps else arrays
    arrays += [f"put({name}{kernel if name == 'w' else ''})" for name in names[len(call.arrays) :]]
    arguments = ", ".join([*arrays, *(f"{name}={name}" for name in call.numbers)])
    return f"ops.to_nchw(ops.{call.op}({arguments}))" if call.maps else f"ops.{call.op}({arguments})"

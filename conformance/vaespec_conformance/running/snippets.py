"""A failure of an operation without the suite: at most fifteen lines of NumPy and the backend, to be sent to anybody.

The check is run once more with a listener in the place of the operations; from the call that it makes, numbers of the
same kind (mean and deviation, or integers) are written down, and the formula in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from vaespec_conformance.cases.cases import Case
from vaespec_conformance.judging.registry import Check
from vaespec_conformance.subjects.subjects import BackendSubject, Subject

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


class Heard(BaseException):
    """A call that a check makes; no Exception, so that nothing on the way takes it for a failure."""

    def __init__(
        self,
        op: str,
        arrays: tuple[np.ndarray, ...],
        weights: tuple[np.ndarray, ...],
        numbers: dict[str, Any],
        maps: bool,
    ) -> None:
        self.op, self.arrays, self.weights, self.numbers, self.maps = op, arrays, weights, numbers, maps


class Listener:
    """Operations that tell what is asked of them, instead of doing it."""

    def on_maps(self, op: str, *maps: np.ndarray, weights: Arrays = (), **numbers: Any) -> NoReturn:
        """See DrivenOps."""
        raise Heard(op, maps, weights, numbers, maps=True)

    def on_tokens(self, op: str, *tokens: np.ndarray, weights: Arrays = (), **numbers: Any) -> NoReturn:
        """See DrivenOps."""
        raise Heard(op, tokens, weights, numbers, maps=False)


@dataclass(frozen=True)
class Listening(BackendSubject):
    """A backend whose operations only listen."""

    def ops(self, dtype: str) -> Any:
        """A listener."""
        return Listener()


def snippet(subject: Subject, check: Check, case: Case, dtype: str) -> str | None:
    """The lines; None where the check asks for more than one operation, or for one without a formula here."""
    if not isinstance(subject, BackendSubject) or check.level != OPERATIONS:
        return None
    heard = _heard(subject, check, case, dtype)
    if heard is None or heard.op not in FORMULAS:
        return None
    try:
        return _written(subject, heard, dtype)
    except Exception:  # the subject cannot even make its operations
        return None


def _heard(subject: BackendSubject, check: Check, case: Case, dtype: str) -> Heard | None:
    try:
        check.run(Listening(subject.backend, subject.device, subject.precision), case, dtype)
    except Heard as heard:
        return heard
    except Exception:  # it asks for something that a listener does not hear
        return None
    return None


def _written(subject: BackendSubject, heard: Heard, dtype: str) -> str:
    names = ARGUMENTS.get(heard.op, ("x",))
    backend, device = type(subject.backend), subject.device or subject.backend.devices()[0]
    arrays = dict(zip(names, (*heard.arrays, *heard.weights), strict=True))
    listed = ", ".join(names) + ("," if len(names) == 1 else "")
    numbers = {name: value if isinstance(value, int | tuple) else float(value) for name, value in heard.numbers.items()}
    kernel = _kernel_layout(subject, heard, dtype)
    return "\n".join(
        [
            "import math\n\nimport numpy as np" if "math." in "".join(FORMULAS[heard.op]) else "import numpy as np",
            f"from {backend.__module__} import {backend.__qualname__}",
            "",
            f"ops = {backend.__qualname__}().ops({device!r}, {dtype!r}, {subject.precision!r})",
            "rng, put = np.random.default_rng(1), ops.from_numpy",
            *(f"{name} = {_drawn(a)}" for name, a in arrays.items()),
            f"{listed} = (ops.to_numpy(put(a)).astype(float) for a in ({listed}))",
            *([f"{', '.join(numbers)} = {', '.join(map(repr, numbers.values()))}"] if numbers else []),
            f"z = {_call(heard, names, kernel)}",
            *FORMULAS[heard.op],
            "print(np.linalg.norm(ops.to_numpy(z).astype(float) - r) / np.linalg.norm(r))",
            "",
        ]
    )


def _drawn(a: np.ndarray) -> str:
    """Numbers of the same kind as these."""
    if np.array_equal(a, np.rint(a)) and np.ptp(a) > 0:
        return f"rng.integers({int(a.min())}, {int(a.max()) + 1}, {a.shape}).astype(float)"
    return f"rng.normal({a.mean():.3g}, {a.std():.3g}, {a.shape})"


def _kernel_layout(subject: BackendSubject, heard: Heard, dtype: str) -> str:
    """What turns the kernel into the backend's layout; nothing where that is the canonical one."""
    if not heard.weights or heard.weights[0].ndim == 1:
        return ""
    ops = subject.raw_ops(dtype)
    canonical, own = ("OIHW", ops.conv_layout) if heard.weights[0].ndim == 4 else ("OI", ops.linear_layout)
    return "" if own == canonical else f".transpose{tuple(canonical.index(axis) for axis in own)}"


def _call(heard: Heard, names: tuple[str, ...], kernel: str) -> str:
    """The operation, of maps and weights as the backend holds them."""
    given = [f"put({name})" for name in names[: len(heard.arrays)]]
    given = [f"ops.from_nchw({array})" for array in given] if heard.maps else given
    weights = names[len(heard.arrays) :]
    given += [f"put({name}{kernel if name == 'w' else ''})" for name in weights]
    arguments = ", ".join([*given, *(f"{name}={name}" for name in heard.numbers)])
    return f"ops.to_nchw(ops.{heard.op}({arguments}))" if heard.maps else f"ops.{heard.op}({arguments})"

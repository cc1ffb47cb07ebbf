"""Subjects as the checks call them: NumPy in, NumPy out. An exception or a wrong result is a ConformanceError."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import numpy as np

from vaespec import AutoencoderConfig
from vaespec.architecture import DECODER, ENCODER, HALVES, Half
from vaespec.layers import Sequential
from vaespec.layouts import OIHW
from vaespec.reference import ReferenceOps
from vaespec_conformance.subjects.capabilities import LACKING, NO_TERMS, Terms, refused_size
from vaespec_conformance.subjects.declared import Declared
from vaespec_conformance.subjects.errors import ConformanceError, NotSupportedError, blamed

_WHAT: dict[str, str] = {half.verb: LACKING[name] for name, half in HALVES.items()}
"""Method -> what is not asked if the port has it in name only."""


class VaeFacade:
    """A VAE whose methods take and return NumPy arrays; arguments are converted to `input_dtype`, float32 or float64.

    A method whose name ends in "encode" returns (mean, logvar), or (mean,) if the terms say so; `weights` returns a
    dictionary; any other an array.
    """

    def __init__(self, vae: Any, input_dtype: type[np.floating], terms: Terms = NO_TERMS) -> None:
        self.vae, self.input_dtype, self.terms = vae, input_dtype, terms

    def has(self, half: Half) -> bool:
        """Whether the VAE has the half."""
        return True

    def __getattr__(self, name: str) -> Callable[..., Any]:
        with blamed(name):
            method = getattr(self.vae, name)

        def call(*arrays: np.ndarray) -> Any:
            with self._guarded(name, *arrays):
                return self._result(name, method(*(np.asarray(a, self.input_dtype) for a in arrays)))

        return call

    def _result(self, name: str, result: Any) -> Any:
        """What a method returned, in NumPy."""
        if name == "weights":
            return {key: real(a, f"the weight {key}") for key, a in result.items()}
        if is_encode(name):
            return tuple(real(moment, name) for moment in self._moments(name, result))
        return real(result, name)

    def _guarded(self, name: str, *arrays: np.ndarray) -> AbstractContextManager[None]:
        """Blames the subject for what a call raises."""
        return blamed(name, _given(name, arrays))

    def _moments(self, name: str, result: Any) -> tuple[Any, ...]:
        """The arrays that an encode returned: mean and log-variance, or the mean alone if no more is asked."""
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise ConformanceError(
                f"{name} returned a {type(result).__name__}: expected a pair of arrays (mean, logvar)."
            )
        return (result[0],) if self.terms.mean_alone else (result[0], result[1])


def real(result: Any, call: str) -> np.ndarray:
    """A result as a NumPy array of real numbers; raises ConformanceError for any other kind of elements.

    NumPy would drop the imaginary part of a complex number, and read a string as a number.
    """
    array = np.asarray(result)
    if array.dtype.kind not in "fiu" and not array.dtype.name.startswith(("bfloat", "float")):
        raise ConformanceError(f"{call} returned an array of {array.dtype}: expected real numbers, such as float32.")
    return array


def is_encode(name: str) -> bool:
    """Whether a method returns the parameters of a posterior."""
    return name.endswith("encode")


def _half(name: str) -> Half | None:
    """The half that a method runs; None if it runs none."""
    if "decode" in name:
        return DECODER
    return ENCODER if "encode" in name or name == "sample" else None


def _given(name: str, arrays: tuple[np.ndarray, ...]) -> str:
    """The suite's arguments in words: "latents (2, 4, 3, 4)"."""
    kind = "latents" if "decode" in name else "images"
    return ", ".join(f"{kind} {a.shape}" for a in arrays[:1])


class PortFacade(VaeFacade):
    """A port's VAE. Raises NotSupportedError for a half or a size that the port does not have.

    `seen` gets "mean alone" once encode has returned one array, "packages", those of the objects that were seen, and
    "answered", the methods that have answered a call.
    `stub` says why a method is none, if it raises NotImplementedError whatever it is given: see `PortSubject.stub`.
    """

    def __init__(
        self,
        vae: Any,
        input_dtype: type[np.floating],
        terms: Terms,
        config: AutoencoderConfig,
        declared: Declared,
        seen: dict[str, Any],
        stub: Callable[[str, Any, AutoencoderConfig], str | None],
    ) -> None:
        super().__init__(vae, input_dtype, terms)
        self.config, self.declared, self.seen, self.stub = config, declared, seen, stub
        self._note(vae, *vars(vae).values() if hasattr(vae, "__dict__") else ())

    def _note(self, *objects: Any) -> None:
        """Remembers the packages that the classes of objects are of."""
        modules = (kind.__module__ for one in objects for kind in type(one).__mro__)
        self.seen.setdefault("packages", set()).update(name.partition(".")[0] for name in modules)

    def has(self, half: Half) -> bool:
        """Whether the port has the half."""
        return self._shows(half) and self.stub(half.verb, self.vae, self.config) is None

    def _shows(self, half: Half) -> bool:
        """Whether there is a method for the half, which may be a stub."""
        return half.name not in self.declared.lacks and hasattr(self.vae, half.verb)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        half = _half(name)
        if half and not self._shows(half):
            raise NotSupportedError(f"it has no {half.name}", LACKING[half.name])
        return super().__getattr__(name)

    @contextmanager
    def _guarded(self, name: str, *arrays: np.ndarray) -> Iterator[None]:
        with blamed(name, _given(name, arrays)):
            if arrays:
                self._require_size(name, arrays[0].shape)
            answered = self.seen.setdefault("answered", set())
            try:
                yield
            except NotImplementedError:
                if name not in answered and (reason := self.stub(name, self.vae, self.config)):
                    raise NotSupportedError(reason, _WHAT.get(name, name)) from None
                raise  # it answers other calls, so that this one is a failure
            if words := self.seen.get("stubs", {}).get(name):
                raise ConformanceError(f"{name} answers this call, but raised NotImplementedError in others: {words}")
            answered.add(name)

    def _result(self, name: str, result: Any) -> Any:
        self._note(*(result if isinstance(result, tuple | list) else (result,)))
        return super()._result(name, result)

    def _require_size(self, name: str, shape: tuple[int, ...]) -> None:
        factor = 1 if "decode" in name else self.config.downsampling_factor
        height, width = (n // factor for n in shape[2:])
        if reason := refused_size(self.declared.sizes, height, width, shape[0]):
            raise NotSupportedError(reason, f"latents {height} × {width} in a batch of {shape[0]}")

    def _moments(self, name: str, result: Any) -> tuple[Any, ...]:
        one = result[0] if isinstance(result, tuple | list) and len(result) == 1 else result
        if not isinstance(one, tuple | list) and getattr(one, "ndim", None) == 4:
            self.seen["mean alone"] = True
            return (one,)
        return super()._moments(name, result)


class Watched(NamedTuple):
    """One call of an operation: copies of its arguments before and after it, and the dtype of the result as NumPy.

    `own` says whether the result is one of the backend's own arrays; `kind` is the name of its type.
    """

    before: list[np.ndarray]
    after: list[np.ndarray]
    dtype: str
    own: bool
    kind: str


class OpsFacade:
    """A backend's operations on NumPy arrays: maps (B, C, H, W) and canonical kernels, in any layout of the backend."""

    def __init__(self, ops: ReferenceOps) -> None:
        self.ops = ops

    def on_maps(self, op: str, *maps: np.ndarray, weights: tuple[np.ndarray, ...] = (), **numbers: Any) -> np.ndarray:
        """ops.op(*maps, *weights, **numbers), which returns a map."""
        with blamed(op):
            return self._run(
                lambda: self.leave(getattr(self.ops, op)(*map(self.enter, maps), *self.place(weights), **numbers))
            )

    def on_tokens(self, op: str, *tokens: np.ndarray, weights: tuple[np.ndarray, ...] = (), **numbers: Any) -> Any:
        """ops.op(*tokens, *weights, **numbers) on tokens (B, N, C), which returns tokens or a tuple of them."""

        def call() -> Any:
            y = getattr(self.ops, op)(*map(self.enter_tokens, tokens), *self.place(weights), **numbers)
            return tuple(map(self.numpy, y)) if isinstance(y, tuple) else self.numpy(y)

        with blamed(op):
            return self._run(call)

    def tokens(self, x: np.ndarray) -> np.ndarray:
        """ops.tokens of a map."""
        with blamed("tokens"):
            return self.numpy(self._run(lambda: self.ops.tokens(self.enter(x))))

    def tokens_and_back(self, x: np.ndarray) -> np.ndarray:
        """ops.pixels of ops.tokens of a map."""
        with blamed("pixels"):
            entered = self.enter(x)
            return self.leave(self._run(lambda: self.ops.pixels(self.ops.tokens(entered), like=entered)))

    def channel_statistics(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ops.channel_statistics of a map."""
        with blamed("channel_statistics"):
            mean, sigma2 = self._run(lambda: self.ops.channel_statistics(self.enter(x)))
            return self.numpy(mean), self.numpy(sigma2)

    def normalize(self, x: np.ndarray, *moments: np.ndarray, weights: tuple[np.ndarray, ...], eps: float) -> np.ndarray:
        """ops.normalize of a map, with moments in float32."""
        with blamed("normalize"):
            statistics = map(self.ops.from_host, moments)
            return self._run(
                lambda: self.leave(self.ops.normalize(self.enter(x), *statistics, *self.place(weights), eps=eps))
            )

    def round_trip(self, a: np.ndarray) -> np.ndarray:
        """to_numpy(from_numpy(a))."""
        with blamed("from_numpy"):
            return self.numpy(self.ops.from_numpy(a))

    def through_map(self, x: np.ndarray) -> np.ndarray:
        """to_nchw(from_nchw(x))."""
        with blamed("from_nchw"):
            return self.leave(self.enter(x))

    def after_change(self, a: np.ndarray) -> np.ndarray:
        """The result of from_numpy(a), read after `a` was changed in place."""
        with blamed("from_numpy"):
            array = self.ops.from_numpy(a)
            a += 1
            return self.numpy(array)

    def watched(self, op: str, *arrays: np.ndarray, weights: tuple[np.ndarray, ...], **numbers: Any) -> Watched:
        """Calls ops.op on maps (B, C, H, W) or tokens (B, N, C), and records its arguments before and after."""
        with blamed(op):
            entered = [self.enter(a) if a.ndim == 4 else self.enter_tokens(a) for a in arrays]
            arguments = [*entered, *self.place(weights)]
            before = [self.numpy(a) for a in arguments]
            y = self._run(lambda: getattr(self.ops, op)(*arguments, **numbers))
            after = [self.numpy(a) for a in arguments]
            left = self.leave(y if arrays[0].ndim == 4 else self._pixels(y, arrays[0].shape))
        return Watched(before, after, left.dtype.name, self.ops.is_array(y), type(y).__name__)

    def _pixels(self, t: Any, shape: tuple[int, ...]) -> Any:
        """Tokens as a map of one row, so that they can be converted to NumPy."""
        B, N, C = shape
        return self.ops.pixels(t, like=self.enter(np.zeros((B, C, 1, N))))

    def layer(self, layer: Sequential, x: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
        """Runs a layer with canonical weights on x (B, C, H, W)."""
        with blamed("a layer"):
            params = self.ops.load_params(weights, dict(layer.parameters()))
            return self.numpy(self.ops.compile(layer)(self.ops.from_numpy(x), params))

    def enter(self, x: np.ndarray) -> Any:
        """NumPy (B, C, H, W) -> map."""
        return self.ops.from_nchw(self.ops.from_numpy(x))

    def enter_tokens(self, t: np.ndarray) -> Any:
        """NumPy (B, N, C) -> tokens, through a map: a backend may compute in a wider dtype than it stores."""
        return self.ops.tokens(self.enter(t.transpose(0, 2, 1)[:, :, None]))

    def leave(self, y: Any) -> np.ndarray:
        """Map -> NumPy (B, C, H, W)."""
        return self.numpy(self.ops.to_nchw(y))

    def numpy(self, x: Any) -> np.ndarray:
        """A backend's array -> NumPy; copied, since it may be a view of the backend's memory."""
        return np.array(real(self.ops.to_numpy(x), "to_numpy"))

    def place(self, weights: tuple[np.ndarray, ...]) -> list[Any]:
        """Canonical kernels, scales and biases -> the backend's arrays, in its layout."""
        return [self.ops.from_numpy(OIHW.convert(w, self.ops.layout)) for w in weights]

    def _run(self, call: Callable[[], Any]) -> Any:
        """Calls through ops.apply, in which a backend sets its device and precision."""
        return self.ops.apply(lambda x, params: call(), None, {})

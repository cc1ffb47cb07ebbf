"""Who is examined: a backend, which has operations, or a port, which is somebody's whole VAE behind two methods.

A backend is a port as well, once the model is put together on its operations: what is asked of a whole VAE is asked of
both in the same words, `subject.build(config, weights, dtype).decode(z)`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, Literal, Self

import numpy as np

from vaespec import AutoencoderConfig
from vaespec.backend import Backend
from vaespec.errors import BackendError
from vaespec.initialize import initialize
from vaespec.reference import ReferenceOps
from vaespec_conformance.subjects.assembly import Assembled
from vaespec_conformance.subjects.errors import ConformanceError, blamed
from vaespec_conformance.subjects.numpy_facade import DrivenOps, DrivenVae

Weights = Mapping[str, np.ndarray]
Factory = Callable[[AutoencoderConfig, dict[str, np.ndarray], str], Any]
"""(config, canonical weights, dtype) -> an object with encode and decode, and perhaps more of FEATURES."""

Alter = Callable[[Factory], Factory]
"""What a mutant does to a subject that is not seen in its operations."""

FEATURES = {
    "sample": ("sample",),
    "latents": ("encode_latents", "decode_latents"),
    "tiling": ("tiled_encode", "tiled_decode"),
    "slicing": ("sliced_encode", "sliced_decode"),
    "weights": ("weights",),
}
"""What a VAE may have besides encode and decode, and the methods that show it. They mean what `Assembled`'s mean."""

PRESUMED = frozenset({"deterministic", "threads"})
"""What is taken for granted where a subject declares no capabilities: the same bits again, and in several threads.

What no method shows and is not presumed, a port declares: "legacy_names", that it builds from diffusers' names of
before 0.18.
"""

OF_BACKENDS = frozenset({"banding"})
"""What a backend can do besides, since it needs no more than operations: the model in bands of rows."""

SMALLEST = AutoencoderConfig(block_out_channels=(4,), norm_num_groups=2)
"""The config that is built to see which methods a port has."""


@dataclass(frozen=True)
class Capabilities:
    """What a subject claims to do. To encode, decode and load weights in float32 is claimed by being examined."""

    dtypes: tuple[str, ...] = ("float32",)
    devices: tuple[str, ...] = ("cpu",)
    features: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Gap:
    """A check that the subject is known to fail, and says so: `check` is an id, or "id[dtype]" for one dtype."""

    check: str
    kind: Literal["bug", "unsupported", "planned"]
    reason: str
    url: str | None = None
    until: str | None = None

    def covers(self, check: str, dtype: str) -> bool:
        """Whether it is about this check in this dtype."""
        return self.check in (check, f"{check}[{dtype}]")


def given(dtype: str) -> type[np.floating]:
    """NumPy's dtype of the images, latents and weights that a VAE of this dtype is given."""
    return np.float64 if dtype == "float64" else np.float32


class Subject:
    """What the two kinds have in common."""

    kind: ClassVar[str]
    name: str
    alter: Alter

    def build(self, config: AutoencoderConfig, weights: Weights, dtype: str) -> DrivenVae:
        """The VAE of this config and these canonical weights, in this dtype; it gets copies, of float32 or float64."""
        return self.build_from(config, {name: np.array(w, given(dtype)) for name, w in weights.items()}, dtype)

    def build_from(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> DrivenVae:
        """The same from the very arrays given."""
        with blamed("build"):
            return DrivenVae(self.factory(config, weights, dtype), given(dtype))

    def factory(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> Any:
        """The VAE itself."""
        return self.alter(self._make)(config, weights, dtype)

    def _make(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> Any:
        raise NotImplementedError

    def replace(self, **changes: Any) -> Self:
        """A copy with another name, backend, factory …"""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]  # both kinds are dataclasses

    @property
    def capabilities(self) -> Capabilities:
        """What it claims, or what can be seen of it where it claims nothing."""
        raise NotImplementedError

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What it is known to fail."""
        raise NotImplementedError


def unaltered(factory: Factory) -> Factory:
    """The same."""
    return factory


@dataclass(frozen=True)
class BackendSubject(Subject):
    """A backend, on its best device where none is named, in the most exact float32 that it has there."""

    backend: Backend
    device: str | None = None
    precision: str = "highest"
    alter: Alter = unaltered
    kind = "backend"

    @property
    def name(self) -> str:  # type: ignore[override]  # a field of the other kind
        """The backend's."""
        return self.backend.name

    def raw_ops(self, dtype: str) -> ReferenceOps:
        """The backend's operations, in the "default" precision where it has no other."""
        device = self.device or self.backend.devices()[0]
        try:
            return self.backend.ops(device, dtype, self.precision)
        except BackendError:
            return self.backend.ops(device, dtype, "default")

    def ops(self, dtype: str) -> DrivenOps:
        """The same, as the checks call them."""
        with blamed("ops"):
            return DrivenOps(self.raw_ops(dtype))

    def _make(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> Assembled:
        return Assembled(config, weights, self.raw_ops(dtype))

    @cached_property
    def capabilities(self) -> Capabilities:
        """The backend's own, else: the dtypes that it has here, and whatever a model on its operations can do."""
        declared = getattr(self.backend, "capabilities", None)
        dtypes = tuple(dtype for dtype in self.backend.dtypes if self._has(dtype))
        return declared or Capabilities(dtypes, self._devices(), features=PRESUMED | OF_BACKENDS | FEATURES.keys())

    def _devices(self) -> tuple[str, ...]:
        try:
            return tuple(self.backend.devices())
        except Exception:  # the checks tell what it raises
            return ()

    def _has(self, dtype: str) -> bool:
        """A backend may have a dtype only where the process asked for it, and says so with a BackendError."""
        try:
            self.raw_ops(dtype).from_numpy(np.zeros(1))
        except BackendError:
            return False
        except Exception:  # a claim that the checks will find wrong
            return True
        return True

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Those that the backend declares."""
        return tuple(getattr(self.backend, "gaps", ()))


@dataclass(frozen=True)
class PortSubject(Subject):
    """Somebody's whole VAE: `maker(config, weights)` gives it, and `maker(config, weights, dtype=)` in other dtypes."""

    maker: Callable[..., Any]
    name: str
    alter: Alter = unaltered
    kind = "port"

    @classmethod
    def of(cls, subject: Subject) -> PortSubject:
        """Another subject, of which nothing is seen but the whole VAE."""
        maker: Any = partial(subject.factory)
        maker.capabilities, maker.gaps = subject.capabilities, subject.gaps
        return cls(maker, subject.name)

    def _make(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> Any:
        if "dtype" in inspect.signature(self.maker).parameters:
            return self.maker(config, weights, dtype=dtype)
        return self.maker(config, weights)

    @cached_property
    def capabilities(self) -> Capabilities:
        """Those that `maker` declares, else: float32, and the methods that the smallest VAE has."""
        declared = getattr(self.maker, "capabilities", None)
        return declared or Capabilities(features=PRESUMED.union(self._features()))

    def _features(self) -> list[str]:
        try:
            vae = self.build(SMALLEST, initialize(SMALLEST, 0), "float32").vae
        except ConformanceError:  # the checks tell what it raises
            return []
        return [name for name, methods in FEATURES.items() if all(hasattr(vae, method) for method in methods)]

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Those that `maker` declares."""
        return tuple(getattr(self.maker, "gaps", ()))

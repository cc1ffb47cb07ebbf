"""Subjects of the suite: a backend, which has operations, or a port, which is a whole VAE behind two methods.

The suite assembles the model on a backend's operations, so a check of a whole VAE examines both kinds with the same
call: `subject.build(config, weights, dtype).decode(z)`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
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
from vaespec_conformance.subjects.numpy_facade import OpsFacade, VaeFacade

Weights = Mapping[str, np.ndarray]
Factory = Callable[[AutoencoderConfig, dict[str, np.ndarray], str], Any]
"""(config, canonical weights, dtype) -> an object with encode and decode, and perhaps the methods in FEATURES."""

Alter = Callable[[Factory], Factory]
"""Changes a subject's whole VAE: how a mutant makes a mistake outside the operations."""

FEATURES = {
    "sample": ("sample",),
    "latents": ("encode_latents", "decode_latents"),
    "tiling": ("tiled_encode", "tiled_decode"),
    "slicing": ("sliced_encode", "sliced_decode"),
    "weights": ("weights",),
}
"""Optional features of a VAE, and the methods that show each. `Assembled` documents the methods."""

PRESUMED = frozenset({"deterministic", "threads"})
"""Features that are assumed if a subject declares no capabilities: equal bits in every run, and in several threads.

A port declares any other feature that no method shows: "legacy_names", if it accepts diffusers' names before 0.18.
"""

BACKEND_FEATURES = frozenset({"banding"})
"""Features of every backend, since they need operations alone: the model in bands of rows."""

SMALLEST = AutoencoderConfig(block_out_channels=(4,), norm_num_groups=2)
"""The config of the VAE that is built to find out which methods a port has."""


@dataclass(frozen=True)
class Capabilities:
    """The dtypes, devices and features that a subject claims. Encoding, decoding and loading weights are required."""

    dtypes: tuple[str, ...] = ("float32",)
    devices: tuple[str, ...] = ("cpu",)
    features: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Gap:
    """A check that the subject declares it fails: `check` is an id, or "id[dtype]" for one dtype."""

    check: str
    kind: Literal["bug", "unsupported", "planned"]
    reason: str
    url: str | None = None
    until: str | None = None

    def covers(self, check: str, dtype: str) -> bool:
        """Whether the gap is about this check in this dtype."""
        return self.check in (check, f"{check}[{dtype}]")


def input_dtype(dtype: str) -> type[np.floating]:
    """NumPy's dtype of the images, latents and weights that are passed to a VAE of `dtype`."""
    return np.float64 if dtype == "float64" else np.float32


class Subject:
    """What backends and ports have in common."""

    kind: ClassVar[str]
    name: str
    alter: Alter

    def build(self, config: AutoencoderConfig, weights: Weights, dtype: str) -> VaeFacade:
        """Builds the VAE from a config and copies of canonical weights, in float32 or float64."""
        return self.build_from(config, {name: np.array(w, input_dtype(dtype)) for name, w in weights.items()}, dtype)

    def build_from(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> VaeFacade:
        """Builds the VAE from the arrays themselves, not from copies."""
        with blamed("build"):
            return VaeFacade(self.factory(config, weights, dtype), input_dtype(dtype))

    def factory(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> Any:
        """Builds the VAE without the NumPy facade."""
        return self.alter(self._make)(config, weights, dtype)

    def _make(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> Any:
        raise NotImplementedError

    def prepare(self, check: Any, cases: Sequence[Any], dtype: str) -> None:
        """Is called before the cases of a check are run: a program answers all of them at once."""

    @property
    def recording(self) -> bool:
        """Whether the subject only notes what it is asked, and returns zeros that are not to be compared."""
        return False

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]  # every kind is a dataclass

    @property
    def capabilities(self) -> Capabilities:
        """The declared capabilities, or the observed ones if none are declared."""
        raise NotImplementedError

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """The checks that the subject declares it fails."""
        raise NotImplementedError


def unaltered(factory: Factory) -> Factory:
    """Returns the factory unchanged."""
    return factory


@dataclass(frozen=True)
class BackendSubject(Subject):
    """A backend, by default on its best device and in its most exact float32."""

    backend: Backend
    device: str | None = None
    precision: str = "highest"
    alter: Alter = unaltered
    kind = "backend"

    @property
    def name(self) -> str:  # type: ignore[override]  # a field of the other kind
        """The backend's name."""
        return self.backend.name

    def raw_ops(self, dtype: str) -> ReferenceOps:
        """The backend's operations, in the "default" precision if it lacks the requested one."""
        device = self.device or self.backend.devices()[0]
        try:
            return self.backend.ops(device, dtype, self.precision)
        except BackendError:
            return self.backend.ops(device, dtype, "default")

    def ops(self, dtype: str) -> OpsFacade:
        """The backend's operations on NumPy arrays, as the checks call them."""
        with blamed("ops"):
            return OpsFacade(self.raw_ops(dtype))

    def _make(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> Assembled:
        return Assembled(config, weights, self.raw_ops(dtype))

    @cached_property
    def capabilities(self) -> Capabilities:
        """The declared capabilities; otherwise the dtypes available here and every feature of `Assembled`."""
        declared = getattr(self.backend, "capabilities", None)
        dtypes = tuple(dtype for dtype in self.backend.dtypes if self._has(dtype))
        return declared or Capabilities(dtypes, self._devices(), features=PRESUMED | BACKEND_FEATURES | FEATURES.keys())

    def _devices(self) -> tuple[str, ...]:
        try:
            return tuple(self.backend.devices())
        except Exception:  # the checks report it
            return ()

    def _has(self, dtype: str) -> bool:
        """Whether the backend has the dtype in this process: it raises BackendError if not."""
        try:
            self.raw_ops(dtype).from_numpy(np.zeros(1))
        except BackendError:
            return False
        except Exception:  # a claim that the checks will find wrong
            return True
        return True

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """The gaps that the backend declares."""
        return tuple(getattr(self.backend, "gaps", ()))


@dataclass(frozen=True)
class PortSubject(Subject):
    """A user's whole VAE: `maker(config, weights)` builds it, `maker(config, weights, dtype=)` in other dtypes."""

    maker: Callable[..., Any]
    name: str
    alter: Alter = unaltered
    kind = "port"

    @classmethod
    def of(cls, subject: Subject) -> PortSubject:
        """Another subject as a port: only its whole VAE can be called."""
        maker: Any = partial(subject.factory)
        maker.capabilities, maker.gaps = subject.capabilities, subject.gaps
        return cls(maker, subject.name)

    def _make(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> Any:
        if "dtype" in inspect.signature(self.maker).parameters:
            return self.maker(config, weights, dtype=dtype)
        return self.maker(config, weights)

    @cached_property
    def capabilities(self) -> Capabilities:
        """The capabilities that `maker` declares; otherwise float32, and the features that its methods show."""
        declared = getattr(self.maker, "capabilities", None)
        return declared or Capabilities(features=PRESUMED.union(self._features()))

    def _features(self) -> list[str]:
        try:
            vae = self.build(SMALLEST, initialize(SMALLEST, 0), "float32").vae
        except ConformanceError:  # the checks report it
            return []
        return [name for name, methods in FEATURES.items() if all(hasattr(vae, method) for method in methods)]

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """The gaps that `maker` declares."""
        return tuple(getattr(self.maker, "gaps", ()))

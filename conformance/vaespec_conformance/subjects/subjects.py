"""Subjects of the suite: a backend, which has operations, or a port, which is a whole VAE behind two methods.

The suite assembles the model on a backend's operations, so a check of a whole VAE examines both kinds with the same
call: `subject.build(config, weights, dtype).decode(z)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Any, ClassVar, Self

import numpy as np

from vaespec import AutoencoderConfig
from vaespec.analysis.rounding import rounded
from vaespec.backend import Backend
from vaespec.errors import BackendError
from vaespec.initialize import initialize
from vaespec.reference import ReferenceOps
from vaespec_conformance.cases.models import CONFIGS
from vaespec_conformance.subjects.assembly import Assembled
from vaespec_conformance.subjects.capabilities import (
    BACKEND_FEATURES,
    FEATURES,
    LOGVAR,
    NO_TERMS,
    PRESUMED,
    Capabilities,
    Gap,
    OwnWeights,
    Terms,
    refused_config,
)
from vaespec_conformance.subjects.declared import Declared, require_valid
from vaespec_conformance.subjects.errors import ConformanceError, NotSupportedError, blamed
from vaespec_conformance.subjects.numpy_facade import OpsFacade, PortFacade, VaeFacade
from vaespec_conformance.subjects.stubs import stub_words

Weights = Mapping[str, np.ndarray]
Factory = Callable[[AutoencoderConfig, dict[str, np.ndarray], str], Any]
"""(config, canonical weights, dtype) -> an object with encode and decode, and perhaps the methods in FEATURES."""

Alter = Callable[[Factory], Factory]
"""Changes a subject's whole VAE: how a mutant makes a mistake outside the operations."""


def input_dtype(dtype: str) -> type[np.floating]:
    """NumPy's dtype of the images, latents and weights that are passed to a VAE of `dtype`."""
    return np.float64 if dtype == "float64" else np.float32


class Subject:
    """What backends and ports have in common."""

    kind: ClassVar[str]
    name: str
    alter: Alter
    terms: Terms
    own_configs: tuple[AutoencoderConfig, ...] = ()
    """Configs that the subject names itself: the cases of every check are put to them too."""

    @property
    def home(self) -> AutoencoderConfig | None:
        """The config in which a subject is examined that does not take the usual one; None if it takes that."""
        return None

    def takes(self, config: AutoencoderConfig) -> bool:
        """Whether the subject takes a config, as far as it has said."""
        return True

    def prepare(self, check: Any, cases: Sequence[Any], dtype: str) -> None:
        """Is called before the cases of a check are run, so that a subject may compute all of them at once."""

    def build(self, config: AutoencoderConfig, weights: Weights, dtype: str) -> VaeFacade:
        """Builds the VAE from a config and copies of canonical weights, in float32 or float64."""
        return self.build_from(config, {name: np.array(w, input_dtype(dtype)) for name, w in weights.items()}, dtype)

    def build_from(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> VaeFacade:
        """Builds the VAE from the arrays themselves, not from copies. A subject that has only its own takes those.

        Raises NotSupportedError if the subject does not take the config.
        """
        return self._facade(config, self.own_weights(config, dtype) or weights, dtype)

    def own_weights(self, config: AutoencoderConfig, dtype: str) -> dict[str, np.ndarray]:
        """Copies of the only weights that the subject has for a config, rounded to the dtype; empty if it takes any."""
        given = self.terms.weights
        return {name: w.copy() for name, w in _own_weights(given, config, dtype).items()} if given else {}

    def _facade(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> VaeFacade:
        with blamed("build"):
            return VaeFacade(self.factory(config, weights, dtype), input_dtype(dtype), self.terms)

    def factory(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> Any:
        """Builds the VAE without the NumPy facade."""
        return self.alter(self._make)(config, weights, dtype)

    def _make(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> Any:
        raise NotImplementedError

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


@lru_cache(1)
def _own_weights(given: OwnWeights, config: AutoencoderConfig, dtype: str) -> dict[str, np.ndarray]:
    """The subject's own weights, rounded to the dtype."""
    with blamed("weights"):
        return {name: rounded(np.asarray(w), dtype).astype(input_dtype(dtype)) for name, w in given(config).items()}


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
    terms: Terms = NO_TERMS
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
        declared: Capabilities | None = self._declared("capabilities")
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
        return tuple(self._declared("gaps") or ())

    def _declared(self, name: str) -> Any:
        """What the backend declares under a name; None if nothing. Raises LoadError if it is not what it has to be."""
        value = getattr(self.backend, name, None)
        require_valid(name, value)
        return value


@dataclass(frozen=True)
class PortSubject(Subject):
    """A user's whole VAE: `maker(config, weights)` builds it, `maker(config, weights, dtype=)` in other dtypes.

    What it takes and lacks is declared by attributes of `maker` (see `Declared`), or by NotImplementedError.
    """

    maker: Callable[..., Any]
    name: str
    alter: Alter = unaltered
    seen: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What its results have shown: see `PortFacade`."""
    refused: dict[AutoencoderConfig, str] = field(default_factory=dict, compare=False, repr=False)
    """The configs that build refuses with NotImplementedError, and its words."""
    built: set[AutoencoderConfig] = field(default_factory=set, compare=False, repr=False)
    """The configs that have been built: none of them can be refused any more."""
    kind = "port"

    @classmethod
    def of(cls, subject: Subject) -> PortSubject:
        """Another subject as a port: only its whole VAE can be called."""
        maker: Any = partial(subject.factory)
        maker.capabilities, maker.gaps = subject.capabilities, subject.gaps
        return cls(maker, subject.name)

    @cached_property
    def declared(self) -> Declared:
        """What the maker declares."""
        return Declared(self.maker)

    @property
    def own_configs(self) -> tuple[AutoencoderConfig, ...]:  # type: ignore[override]  # a default of the other kind
        """The configs that the maker names."""
        return self.declared.own_configs

    @property
    def terms(self) -> Terms:  # type: ignore[override]  # a field of the other kind
        """Whether encode gives the mean alone, which may show in a result only; the weights that the maker brings."""
        return Terms(LOGVAR in self.declared.lacks or "mean alone" in self.seen, self.declared.weights)

    @property
    def takes_dtype(self) -> bool:
        """Whether the maker has an argument for the dtype."""
        return "dtype" in self.declared.parameters

    def _facade(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> VaeFacade:
        if reason := self._refusal(config):
            raise NotSupportedError(reason)
        with blamed("build"):
            vae = self._built(config, weights, dtype)
        return PortFacade(vae, input_dtype(dtype), self.terms, config, self.declared, self.seen, self.stub)

    def _built(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> Any:
        """The port's VAE. Raises NotSupportedError if build refuses the config, whatever the weights."""
        try:
            vae = self.factory(config, weights, dtype)
        except NotImplementedError as error:
            if config in self.built or self._builds(config):
                raise  # it refuses these weights or this dtype, which is a failure
            self.refused[config] = str(error) or "build raised NotImplementedError"
            raise NotSupportedError(self.refused[config]) from error
        if vae is None:
            message = "build returned None: expected an object with encode or decode; does it end with return?"
            raise ConformanceError(message, raised=("build", "None", ""))
        self.built.add(config)
        return vae

    def _builds(self, config: AutoencoderConfig) -> bool:
        """Whether build takes the config with ordinary weights, in float32, so that no check's own can refuse it."""
        given = self.terms.weights
        try:
            weights = _own_weights(given, config, "float32") if given else initialize(config, 0)
            self.factory(config, {name: np.array(w, np.float32) for name, w in weights.items()}, "float32")
        except NotImplementedError:
            return False
        except Exception:  # another mistake, which the checks report
            return True
        return True

    def stub(self, method: str, vae: Any, config: AutoencoderConfig) -> str | None:
        """The words of a method that raises NotImplementedError in every call; None if it answers one.

        It is called in the config of this VAE, and if it answers nothing there, in the home config as well.
        """
        stubs, home = self.seen.setdefault("stubs", {}), self.home
        if method not in stubs:
            words = stub_words(vae, method, config, self.declared.sizes)
            if words and home not in (None, config):
                assert home
                words = stub_words(
                    self.build(home, initialize(home, 0), "float32").vae, method, home, self.declared.sizes
                )
            stubs[method] = words
        known: str | None = stubs[method]
        return known

    def _refusal(self, config: AutoencoderConfig) -> str | None:
        with blamed("accepts"):
            return self.refused.get(config) or refused_config(self.declared.configs, config)

    def takes(self, config: AutoencoderConfig) -> bool:
        """Whether the port takes a config, by what it declares and has raised."""
        return self._refusal(config) is None

    def _make(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> Any:
        return self.maker(config, weights, dtype=dtype) if self.takes_dtype else self.maker(config, weights)

    @cached_property
    def capabilities(self) -> Capabilities:
        """The capabilities that the maker declares; otherwise float32, and the features that its methods show."""
        return self.declared.complete(self._features)

    @property
    def home(self) -> AutoencoderConfig | None:
        """The first config that the port names or builds; None if that is the usual one, or if it builds none."""
        return self._first[0]

    def _features(self) -> list[str]:
        return self._first[1]

    @cached_property
    def _first(self) -> tuple[AutoencoderConfig | None, list[str]]:
        """The first config that can be built, and the features that the VAE's methods show."""
        for config in dict.fromkeys((*self.own_configs, *CONFIGS.values())):
            try:
                vae = self.build(config, initialize(config, 0), "float32").vae
            except (ConformanceError, NotSupportedError):  # the checks report it
                continue
            features = [n for n, methods in FEATURES.items() if all(hasattr(vae, method) for method in methods)]
            return config, features
        return None, []

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """The gaps that the maker declares."""
        return self.declared.gaps

"""What a port declares: by `capabilities`, or by plain attributes of the function that builds it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vaespec import AutoencoderConfig
from vaespec_conformance.subjects.capabilities import (
    DTYPES,
    LACKING,
    OTHER_WEIGHTS,
    PRESUMED,
    Capabilities,
    Configs,
    Gap,
    OwnWeights,
    Sizes,
)
from vaespec_conformance.subjects.errors import LoadError


def _are(kind: type | Collection[str], values: Any) -> bool:
    """Whether values, not none, are of a type, or among names."""
    if isinstance(values, str) or not isinstance(values, Collection) or not values:
        return False
    return all(isinstance(v, kind) if isinstance(kind, type) else isinstance(v, str) and v in kind for v in values)


def _are_configs(value: Any) -> bool:
    return isinstance(value, Sequence) and _are(AutoencoderConfig, value)


def _listed(value: Any) -> Any:
    """The names; one alone may be given as it is."""
    return (value,) if isinstance(value, str) else value


FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "capabilities": ("an object of Capabilities", lambda value: isinstance(value, Capabilities)),
    "accepts": ("a function of a config", callable),
    "configs": ("a list of one AutoencoderConfig or more, or nothing", _are_configs),
    "config": ("an AutoencoderConfig", lambda value: isinstance(value, AutoencoderConfig)),
    "sizes": ("a function of height, width and batch", callable),
    "lacks": (
        f"a set of names among {', '.join(map(repr, LACKING))}",
        lambda value: not value or _are(LACKING, _listed(value)),
    ),
    "weights": ("a function of a config", callable),
    "gaps": ("a list of Gap", lambda value: isinstance(value, Sequence) and (not value or _are(Gap, value))),
    "distribution": ("the name of a package", lambda value: isinstance(value, str)),
    "framework": ("the name of a package", lambda value: isinstance(value, str)),
    "switches": ("a dictionary of environment variables", lambda value: isinstance(value, Mapping)),
}
"""What may be declared -> what it has to be, in words and as a test."""
OF_CAPABILITIES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **{name: FIELDS[name] for name in ("sizes", "lacks")},
    "dtypes": (f"a tuple of names among {', '.join(DTYPES)}", lambda value: value == () or _are(DTYPES, value)),
    "features": ("a set of names", lambda value: value == frozenset() or _are(str, value)),
    "configs": ("a list of one AutoencoderConfig or more, or a function", lambda v: callable(v) or _are_configs(v)),
}
"""The same for the fields of an object of Capabilities."""


def require_valid(name: str, value: Any) -> None:
    """Raises LoadError if something that a subject declares is not what it has to be. None is nothing declared."""
    if value is not None:
        _require(name, value, *FIELDS[name])
    for field, rule in OF_CAPABILITIES.items() if isinstance(value, Capabilities) else ():
        part = getattr(value, field)
        if part is not None or field not in ("configs", "sizes"):
            _require(f"{name}.{field}", part, *rule)


def _require(name: str, value: Any, expected: str, holds: Callable[[Any], bool]) -> None:
    if not holds(value):
        raise LoadError(f"{name} is declared as {value!r:.60}: give {expected}.")


@dataclass(frozen=True)
class Declared:
    """The attributes of `maker`, by the names in FIELDS. Raises LoadError if one of them is not what it has to be."""

    maker: Callable[..., Any]

    def __post_init__(self) -> None:
        for name in FIELDS:
            require_valid(name, self.given(name))

    def given(self, name: str) -> Any:
        """What is declared under a name; None if nothing is. A class that builds the port has members of its own."""
        value = getattr(self.maker, name, None)
        return None if isinstance(self.maker, type) and _is_member(name, value) else value

    @cached_property
    def parameters(self) -> frozenset[str]:
        """The names of the arguments of `maker`; empty for a function that hides them."""
        try:
            return frozenset(inspect.signature(self.maker).parameters)
        except (TypeError, ValueError):
            return frozenset()

    @property
    def capabilities(self) -> Capabilities | None:
        """The capabilities that stand in one object."""
        declared: Capabilities | None = self.given("capabilities")
        return declared

    @cached_property
    def configs(self) -> Configs:
        """The configs that the port takes: a function of one, a tuple, or None for any."""
        declared = self.capabilities.configs if self.capabilities else None
        return declared or self.given("accepts") or self.own_configs or None

    @cached_property
    def own_configs(self) -> tuple[AutoencoderConfig, ...]:
        """The configs that the port names itself."""
        named = self.capabilities.configs if self.capabilities else None
        listed = () if named is None or callable(named) else tuple(named)
        fixed = self.given("config")
        return tuple(dict.fromkeys((*listed, *(self.given("configs") or ()), *((fixed,) if fixed else ()))))

    @property
    def sizes(self) -> Sizes:
        """The function (height, width of the latents, batch) -> None, or why not."""
        declared = self.capabilities.sizes if self.capabilities else None
        return declared or self.given("sizes")

    @cached_property
    def lacks(self) -> frozenset[str]:
        """The required things that the port says it does not have."""
        declared = self.capabilities.lacks if self.capabilities else ()
        own = (OTHER_WEIGHTS,) if self.weights else ()
        return frozenset((*_listed(declared or ()), *_listed(self.given("lacks") or ()), *own))

    @property
    def weights(self) -> OwnWeights | None:
        """The function that gives the only weights that the port has for a config."""
        given: OwnWeights | None = self.given("weights")
        return given

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """The checks that the port says it fails."""
        return tuple(self.given("gaps") or ())

    def complete(self, features: Callable[[], list[str]]) -> Capabilities:
        """All capabilities; without an object of them, float32 and the features that the port's methods show."""
        declared = self.capabilities
        return Capabilities(
            declared.dtypes if declared else ("float32",),
            declared.devices if declared else ("cpu",),
            declared.features if declared else PRESUMED.union(features()),
            self.configs,
            self.sizes,
            self.lacks,
        )


def _is_member(name: str, value: Any) -> bool:
    """Whether an attribute of a class is a member of its own: a method, or not what is declared under this name."""
    if not FIELDS[name][1](value):
        return True
    if not callable(value):
        return False
    try:
        return isinstance(value, type) or next(iter(inspect.signature(value).parameters), "self") == "self"
    except (TypeError, ValueError):
        return True

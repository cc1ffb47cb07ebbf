"""What a port declares: by `capabilities`, or by plain attributes of the function that builds it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import FunctionType
from typing import Any

from vaespec import AutoencoderConfig
from vaespec_conformance.subjects.capabilities import (
    PRESUMED,
    WEIGHTS,
    Capabilities,
    Configs,
    OwnWeights,
    Sizes,
)


@dataclass(frozen=True)
class Declared:
    """The attributes of `maker`: capabilities, accepts, configs, config, sizes, lacks, weights.

    If `maker` is a class, the methods and properties of its objects, such as weights(), declare nothing.
    """

    maker: Callable[..., Any]

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
        return self._attribute("capabilities")

    @cached_property
    def configs(self) -> Configs:
        """The configs that the port takes: a function of one, a tuple, or None for any."""
        declared = self.capabilities.configs if self.capabilities else None
        return declared or self._attribute("accepts") or self.own_configs or None

    @cached_property
    def own_configs(self) -> tuple[AutoencoderConfig, ...]:
        """The configs that the port names itself."""
        named = self.capabilities.configs if self.capabilities else None
        listed = () if named is None or callable(named) else tuple(named)
        fixed = self._attribute("config")
        return tuple(dict.fromkeys((*listed, *self._attribute("configs", ()), *((fixed,) if fixed else ()))))

    @property
    def sizes(self) -> Sizes:
        """The function (height, width of the latents, batch) -> None, or why not."""
        declared = self.capabilities.sizes if self.capabilities else None
        return declared or self._attribute("sizes")

    @cached_property
    def lacks(self) -> frozenset[str]:
        """The required things that the port says it does not have."""
        named = self._attribute("lacks", ())
        declared = self.capabilities.lacks if self.capabilities else ()
        own = (WEIGHTS,) if self.weights else ()
        return frozenset((*declared, *((named,) if isinstance(named, str) else named), *own))

    @property
    def weights(self) -> OwnWeights | None:
        """The function that gives the only weights that the port has for a config."""
        given: OwnWeights | None = self._attribute("weights")
        return given

    def _attribute(self, name: str, default: Any = None) -> Any:
        held = inspect.getattr_static(self.maker, name, None) if isinstance(self.maker, type) else None
        method = isinstance(held, FunctionType) and next(iter(inspect.signature(held).parameters), "") == "self"
        of_objects = method or isinstance(held, property | cached_property)
        return default if of_objects else getattr(self.maker, name, default)

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

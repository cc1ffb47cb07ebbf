"""What encode and decode return: read by attribute, by key, by index, or as a tuple (as diffusers' BaseOutput)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from vaespec.ops import Array
from vaespec.posterior import DiagonalGaussian


class Output:
    """Fields that are None count as absent."""

    def keys(self) -> tuple[str, ...]:
        """The names of the fields that are there, in order."""
        return tuple(name for name, value in vars(self).items() if value is not None)

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are there, in order."""
        return tuple(getattr(self, name) for name in self.keys())

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


@dataclass(frozen=True)
class AutoencoderKLOutput(Output):
    """`latent_dist`: the posterior over latents (B, C, h, w)."""

    latent_dist: DiagonalGaussian


@dataclass(frozen=True)
class DecoderOutput(Output):
    """`sample`: images (B, C, H, W), about [-1, 1] but not clipped; `posterior` where it was asked for."""

    sample: Array
    posterior: DiagonalGaussian | None = None


ARRAY_FIELDS: dict[type, tuple[str, ...]] = {
    DiagonalGaussian: ("parameters",),
    AutoencoderKLOutput: ("latent_dist",),
    DecoderOutput: ("sample", "posterior"),
}
"""Which fields hold arrays, or what holds arrays: what a framework's transforms look into. Adapters register these."""


def flatten(output: Any) -> tuple[tuple[Any, ...], tuple[tuple[str, Any], ...]]:
    """(array fields, the other fields by name)."""
    arrays = ARRAY_FIELDS[type(output)]
    constants = tuple((name, value) for name, value in vars(output).items() if name not in arrays)
    return tuple(getattr(output, name) for name in arrays), constants


def unflatten(cls: type, children: Iterable[Any], constants: Iterable[tuple[str, Any]]) -> Any:
    """The inverse of `flatten`. Unchecked, since transforms put other things than arrays into the fields."""
    output: Any = object.__new__(cls)
    for name, value in (*zip(ARRAY_FIELDS[cls], children, strict=True), *constants):
        object.__setattr__(output, name, value)
    return output

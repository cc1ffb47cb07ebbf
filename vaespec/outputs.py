"""The results of encode and decode: read by attribute, key or index, or as a tuple, like diffusers' BaseOutput."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from vaespec.ops import Array
from vaespec.posterior import DiagonalGaussian


class Output:
    """A result with named fields; a field that is None counts as absent."""

    def keys(self) -> tuple[str, ...]:
        """The names of the present fields, in order."""
        return tuple(name for name, value in vars(self).items() if value is not None)

    def to_tuple(self) -> tuple[Any, ...]:
        """The values of the present fields, in order."""
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
    """The result of encode: `latent_dist` is the posterior over latents (B, C, h, w)."""

    latent_dist: DiagonalGaussian


@dataclass(frozen=True)
class DecoderOutput(Output):
    """The result of decode: `sample` are images (B, C, H, W), about [-1, 1] but not clipped; `posterior` on request."""

    sample: Array
    posterior: DiagonalGaussian | None = None


ARRAY_FIELDS: dict[type, tuple[str, ...]] = {
    DiagonalGaussian: ("parameters",),
    AutoencoderKLOutput: ("latent_dist",),
    DecoderOutput: ("sample", "posterior"),
}
"""The fields that hold arrays, or objects with arrays. Adapters register them for their framework's transforms."""


def flatten(output: Any) -> tuple[tuple[Any, ...], tuple[tuple[str, Any], ...]]:
    """Splits an output into (the fields with arrays, the other fields by name)."""
    arrays = ARRAY_FIELDS[type(output)]
    constants = tuple((name, value) for name, value in vars(output).items() if name not in arrays)
    return tuple(getattr(output, name) for name in arrays), constants


def unflatten(cls: type, children: Iterable[Any], constants: Iterable[tuple[str, Any]]) -> Any:
    """Inverse of `flatten`. It checks nothing, because transforms put other objects than arrays into the fields."""
    output: Any = object.__new__(cls)
    for name, value in (*zip(ARRAY_FIELDS[cls], children, strict=True), *constants):
        object.__setattr__(output, name, value)
    return output

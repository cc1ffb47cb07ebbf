"""What encode and decode return: read by attribute, by key, by index, or as a tuple (as diffusers' BaseOutput)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
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

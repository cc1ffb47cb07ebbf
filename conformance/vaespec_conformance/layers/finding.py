"""What was found out about the layers of a VAE: the first wrong one, and the error after each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from vaespec.layers import NormAct

Strip = tuple[tuple[str, float], ...]
"""(layer, used share of its budget), in the order of the computation."""


@dataclass(frozen=True)
class LayerFinding:
    """The first wrong layer of a half, by diffusers' name: "decoder.up_blocks.1.resnets.0".

    `part` is what is wrong inside it, if that is known: "norm1". `strip` is the used share of the budget after each
    layer, from the input to the output; more than 1 is wrong. `where` is the place in the map, `picture` a PNG of the
    error as a data URI. `how` says in words how it was found, and `cause` what the mistake seems to be.
    """

    layer: str
    half: str
    strip: Strip
    where: str | None
    how: str
    part: str | None = None
    cause: str | None = None
    picture: str | None = None

    @property
    def name(self) -> str:
        """The layer with the part: "decoder.up_blocks.1.resnets.0.norm1"."""
        return f"{self.layer}.{self.part}" if self.part else self.layer

    def to_dict(self) -> dict[str, Any]:
        """The fields that are not None, as a report holds them: shares as three digits, infinity as 1e308."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return {**fields, "strip": [[layer, float(f"{min(used, 1e308):.3g}")] for layer, used in self.strip]}


def name_of(layer: Any) -> str:
    """The name of a layer of the model; the norm and activation before the last convolution have the norm's name."""
    return str(layer.norm.name if isinstance(layer, NormAct) else layer.name)

"""Tiling: which parts of its input a model works on at one time. A value: to change it is to make another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from vaespec.config import AutoencoderConfig
from vaespec.config_checks import brief
from vaespec.errors import InputError
from vaespec.model import Model
from vaespec.reference import ReferenceOps
from vaespec.tiling.banded import BandedOps, Bands
from vaespec.tiling.geometry import TileGeometry
from vaespec.tiling.padding import PADDINGS, PaddingOps
from vaespec.tiling.stores import Place

Mode = Literal["blend", "exact", "auto"]
_CHOICES = f"{', '.join(map(repr, PADDINGS[:-1]))} or {PADDINGS[-1]!r}"


@dataclass(frozen=True)
class Tiling:
    """The settings of slicing, tiling and padding. Raises InputError for settings that contradict each other.

    `mode`, if `enabled`: blended tiles of `tile_…` sizes, exact bands of rows (with the options `bands`), or the
    quickest of whole images, slices and bands that needs at most `max_memory` bytes, with files in `offload_folder` for
    bands that memory cannot hold; `on_plan` is called with the plan before a run. `slicing`: one item of the batch at a
    time. `padding`: how maps continue beyond their borders, one word of PADDINGS or two for (height, width).
    """

    enabled: bool = False
    mode: Mode = "blend"
    tile_sample_min_size: int | Sequence[int] | None = None
    tile_latent_min_size: int | Sequence[int] | None = None
    tile_overlap_factor: float | Sequence[float] = 0.25
    bands: Bands = field(default_factory=Bands)
    max_memory: int | None = None
    offload_folder: Place | None = None
    on_plan: Callable[[Any], object] | None = None
    slicing: bool = False
    padding: str | Sequence[str] = ("zeros", "zeros")

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise InputError(f"tiling {self.mode!r}: choose True or 'blend', 'exact', 'auto', or False.")
        if unknown := self.bands.keys() - Bands.__annotations__.keys():
            raise InputError(
                f"enable_tiling has no {min(unknown)}=: bands of rows have {', '.join(Bands.__annotations__)}, blended "
                "tiles tile_sample_min_size, tile_latent_min_size, tile_overlap_factor."
            )
        planned = {"max_memory": self.max_memory, "offload_folder": self.offload_folder}
        options = [*self.bands, *(name for name, value in planned.items() if value is not None)]
        if self.mode == "blend" and options:
            raise InputError(f"{', '.join(options)}: only bands have it; use enable_tiling('exact', ...) or 'auto'.")
        axes = (self.padding, self.padding) if isinstance(self.padding, str) else self.padding
        if not isinstance(axes, list | tuple) or len(axes) != 2 or any(word not in PADDINGS for word in axes):
            raise InputError(f"padding {brief(self.padding)}: choose {_CHOICES}, or two of them (height, width).")
        object.__setattr__(self, "padding", tuple(axes))
        if self.blends:
            self._refuse_circular()

    @property
    def blends(self) -> bool:
        """Whether inputs larger than a tile are cut into blended tiles."""
        return self.enabled and self.mode == "blend"

    def tiles(self, config: AutoencoderConfig) -> TileGeometry:
        """Blended tiles for this config. Raises InputError if they do not join, or if the padding is circular."""
        self._refuse_circular()
        return TileGeometry.from_config(
            config, self.tile_sample_min_size, self.tile_latent_min_size, self.tile_overlap_factor
        )

    def check(self, model: Model) -> None:
        """Raises InputError if the model cannot work in such parts: tiles that do not join, or bands without rows."""
        if self.offload_folder is not None and not Path(self.offload_folder).is_dir():
            raise InputError(f"offload_folder {str(self.offload_folder)!r}: there is no such folder; create it first.")
        if self.mode != "blend":
            BandedOps(model.ops, **self.bands)
        elif self.enabled:
            self.tiles(model.config)

    def padded(self, ops: ReferenceOps) -> ReferenceOps:
        """`ops` with convolutions that pad as the settings say."""
        ops = ops.ops if isinstance(ops, PaddingOps) else ops
        height, width = self.padding
        padded = (height, width) != ("zeros", "zeros")
        return PaddingOps(ops, height, width) if padded else ops  # type: ignore[return-value]

    def _refuse_circular(self) -> None:
        if "circular" in self.padding:
            raise InputError("blended tiles cannot be padded with their other end: use enable_tiling('exact').")

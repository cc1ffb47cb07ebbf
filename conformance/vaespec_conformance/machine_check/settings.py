"""What to check: whose weights, on what, at which size; and whether the memory suffices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vaespec.architecture import HALVES, Half
from vaespec.config import AutoencoderConfig
from vaespec.dtypes import storage_dtype
from vaespec.errors import InputError, MemoryLimitError
from vaespec.machine import host_memory
from vaespec.model import Model
from vaespec.reference import ReferenceOps
from vaespec.tiling import planner
from vaespec.tiling.settings import Tiling
from vaespec_conformance.machine_check.setups import Setup
from vaespec_conformance.machine_check.sides import Weights

COPIES = 12
"""How many pictures of float32 are held beside the maps: inputs, results, and what compares them."""


@dataclass(frozen=True)
class CheckSettings:
    """The weights, the setup, the halves to run, the size of the picture in px, and the most bytes of memory.

    `tell` is called with a line before each step, `progress(done, total)` within one.
    """

    config: AutoencoderConfig
    weights: Weights
    setup: Setup
    reference_ops: ReferenceOps
    halves: Sequence[Half]
    height: int
    width: int
    max_memory: int
    tell: Callable[[str], object]
    progress: Callable[[int, int], None]

    def shape(self, half: Half, size: int | None = None) -> tuple[int, int, int, int]:
        """The shape of the input of a half; `size` crops the picture to so many px a side."""
        height, width = (side if size is None else min(side, size) for side in (self.height, self.width))
        return half.input_shape(self.config, 1, height, width)

    @property
    def bands(self) -> Tiling:
        """Exact bands for the reference, within the memory."""
        return Tiling(enabled=True, mode="exact", max_memory=self.max_memory, bands={"progress": self.progress})

    def require(self) -> None:
        """Raises InputError if the picture is too small, or if the memory is too little for either side."""
        f = self.config.downsampling_factor
        if min(self.height, self.width) < f:
            raise InputError(f"--size {self.height}x{self.width} is too small: this VAE needs at least {f} x {f} px.")
        self._require_whole()
        for half in self.halves:  # last, since the plan of bands takes seconds for a large picture
            reference = Model.outline(self.config, self.weights, self.reference_ops)
            planner.choose(
                reference, half, self.shape(half), self.bands, self._held(self.halves, self.reference_ops.dtype)
            )

    def _held(self, halves: Iterable[Half], dtype: str) -> int:
        """Bytes of the weights of the halves, and of pictures."""
        rows = [row for half in halves for _, row in half.build(self.config).parameters()]
        channels = max(self.config.in_channels, self.config.out_channels)
        pictures = COPIES * 4 * channels * self.height * self.width
        return sum(math.prod(row.shape) for row in rows) * storage_dtype(dtype).itemsize + pictures

    def _require_whole(self) -> None:
        """Raises MemoryLimitError if the pictures, and a run on the whole one if it is on the host, need too much."""
        runs = {half: self._run(half) if self.setup.on_host else 0 for half in self.halves}
        half, run = max(runs.items(), key=lambda item: item[1])
        loaded = HALVES.values() if self.setup.ops is None else self.halves
        need = host_memory().used + self._held(loaded, self.setup.dtype) + run + planner.SLACK_OF_FORECASTS
        if need > self.max_memory:
            enough = math.ceil(need / 2**20) / 1024
            few = self.max_memory < 2**30 / 100  # "4", meant as GiB, shows
            limit = f"{self.max_memory:,} bytes" if few else f"{self.max_memory / 2**30:.2f} GiB"
            raise MemoryLimitError(
                f"to {half.verb} {self.height} x {self.width} px as a whole, {self.setup.name} needs about "
                f"{enough:,.2f} GiB of the host's memory, and {limit} are allowed: give a smaller --size, or more "
                "--max-memory.",
                need,
            )

    def _run(self, half: Half) -> int:
        """Bytes of the setup's run on the whole picture."""
        model = Model.outline(self.config, self.weights, self.setup.planned_by).computing(half)
        return int(self.setup.margin * planner.estimate(model, half, self.shape(half), planner.MemoryPlan()).run)

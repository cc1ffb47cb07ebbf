"""What is asked: whose weights, on what, at which size; and whether the memory suffices to answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vaespec.architecture import Half
from vaespec.config import AutoencoderConfig
from vaespec.dtypes import storage_dtype
from vaespec.errors import InputError, MemoryLimitError
from vaespec.machine import host_memory
from vaespec.model import Model
from vaespec.reference import ReferenceOps
from vaespec.tiling import execution, planner
from vaespec.tiling.settings import Tiling
from vaespec_conformance.machine_check.models import WHOLE, Subject, Weights

COPIES = 12
"""How many pictures of float32 are held beside the maps: inputs, results, and what compares them."""


@dataclass(frozen=True)
class Question:
    """The weights, the subject, the halves to run, the size of the picture in px, and the most bytes of memory.

    `tell` is called with a line before each step, `progress(done, total)` within one.
    """

    config: AutoencoderConfig
    weights: Weights
    subject: Subject
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
        for half in self.halves:
            reference = Model.outline(self.config, self.weights, self.reference_ops)
            planner.choose(reference, half, self.shape(half), self.bands, self._held(self.reference_ops.dtype))
            if self.subject.on_host:
                self._require_whole(half)

    def _held(self, dtype: str) -> int:
        """Bytes of the weights of the halves, and of pictures."""
        rows = [row for half in self.halves for _, row in half.build(self.config).parameters()]
        channels = max(self.config.in_channels, self.config.out_channels)
        pictures = COPIES * 4 * channels * self.height * self.width
        return sum(math.prod(row.shape) for row in rows) * storage_dtype(dtype).itemsize + pictures

    def _require_whole(self, half: Half) -> None:
        """Raises MemoryLimitError if the subject's run on the whole picture needs more than the memory."""
        subject = self.subject
        model = Model.outline(self.config, self.weights, subject.planned_by)
        run = execution.estimate(model, half, self.shape(half), WHOLE).run
        need = host_memory().used + self._held(subject.dtype) + int(planner.MARGIN * run) + planner.SLACK_OF_FORECASTS
        if need > self.max_memory:
            enough, limit = (math.ceil(count / 2**20) / 1024 for count in (need, self.max_memory))
            raise MemoryLimitError(
                f"to {half.verb} {self.height} x {self.width} px as a whole, {subject.name} needs about {enough:.2f} "
                f"GiB, and {limit:.2f} GiB are allowed: give a smaller --size, or more --max-memory.",
                need,
            )

"""Parameter: one row of the parameter table, its shape and what its numbers are for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["conv", "linear", "bias", "norm_scale", "norm_shift", "statistic", "counter"]


@dataclass(frozen=True)
class Parameter:
    """Shape in canonical order (convolutions OIHW, linear maps OI) and what the numbers are for.

    `fan_in` is the number of inputs each output sums over (0 where nothing is summed): it sets the initial values.
    FLUX.2's batch-norm brings two "statistic" tensors and a "counter", an integer: stored, but not trained.
    """

    shape: tuple[int, ...]
    role: Role
    fan_in: int = 0

    @property
    def is_counter(self) -> bool:
        """Whether the tensor is an integer that counts, FLUX.2's num_batches_tracked."""
        return self.role == "counter"

    @property
    def trained(self) -> bool:
        """Whether it is a parameter of the model, to be trained and counted."""
        return self.role not in ("statistic", "counter")

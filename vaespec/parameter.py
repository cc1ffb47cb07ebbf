"""Parameter: a row of the parameter table, with the shape and the role of one tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["conv", "linear", "bias", "norm_scale", "norm_shift", "statistic", "counter"]


@dataclass(frozen=True)
class Parameter:
    """The shape of a tensor in canonical order (convolutions OIHW, linear maps OI), and its role.

    `fan_in` is the number of inputs that each output sums over, 0 if nothing is summed: it sets the initial values.
    FLUX.2's batch norm has two "statistic" tensors and a "counter", an integer: they are stored, but not trained.
    """

    shape: tuple[int, ...]
    role: Role
    fan_in: int = 0

    @property
    def is_counter(self) -> bool:
        """Whether the tensor is FLUX.2's integer num_batches_tracked."""
        return self.role == "counter"

    @property
    def trained(self) -> bool:
        """Whether training changes the tensor; only such tensors count as parameters of the model."""
        return self.role not in ("statistic", "counter")

"""How does a backend compute each convolution? The model on fake arrays, which asks the backend at every one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vaespec.analysis.cost import CostOps, FakeArray
from vaespec.ops import Layer, Padding
from vaespec.parameter import Parameter
from vaespec.reference import ReferenceOps


@dataclass(frozen=True)
class PlannedConvolution:
    """A convolution of maps x (B, C, H, W): the form that it takes, and the cost of each form.

    `doubled` says whether x is a map upsampled by 2. Costs are in multiplications with an addition, or work that takes
    as long; `direct` is the cost of the sum as it is written. If the framework decides, `costs` is empty and `direct`
    None.
    """

    name: str
    x: tuple[int, ...]
    kernel: tuple[int, ...]
    doubled: bool
    form: str
    costs: Mapping[str, float]
    direct: float | None = None


def planned(model: Layer, shape: tuple[int, ...], ops: ReferenceOps) -> list[PlannedConvolution]:
    """List the convolutions of model(x), x of that shape, in the order of their calls."""
    inner, _ = ops.inference_ops({})
    table = dict(model.parameters())
    plan = _PlanOps(inner, {id(parameter): name.removesuffix(".weight") for name, parameter in table.items()})
    model(plan.array(*shape), table, plan)
    return plan.convolutions


class _Upsampled(FakeArray):
    """Stands for a map upsampled by 2, in which every pixel occurs four times."""


class _PlanOps(CostOps):
    def __init__(self, ops: Any, names: Mapping[int, str]) -> None:
        super().__init__(bytes_per_number=0)
        self.ops, self.names, self.convolutions = ops, names, list[PlannedConvolution]()

    def conv2d(self, x: FakeArray, w: Parameter, b: Parameter, *, stride: int, padding: Padding) -> FakeArray:
        doubled = isinstance(x, _Upsampled)
        choice = self.ops.convolution_form(x.shape, w.shape, stride=stride, padding=padding, doubled=doubled)
        choice = choice or (f"{self.ops.provenance('conv2d')} conv2d", {}, None)
        self.convolutions.append(PlannedConvolution(self.names[id(w)], x.shape, w.shape, doubled, *choice))
        return super().conv2d(x, w, b, stride=stride, padding=padding)

    def upsample_nearest2x(self, x: FakeArray) -> FakeArray:
        y = super().upsample_nearest2x(x)
        return _Upsampled(y.shape, y.memory)

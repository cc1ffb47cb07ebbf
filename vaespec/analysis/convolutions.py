"""How does a backend compute each convolution? The model, with shapes for arrays, asking at every one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vaespec.analysis.cost import CostOps, Shape
from vaespec.ops import Layer, Padding
from vaespec.parameter import Parameter
from vaespec.reference import ReferenceOps


@dataclass(frozen=True)
class PlannedConvolution:
    """A convolution of maps (B, C, H, W), `doubled` before or not: the `form` it takes, and what each would `cost`.

    Costs are in multiplications with an addition, or what takes as long. Where the framework decides, there are none.
    `direct` is the cost of the formula as it is written.
    """

    name: str
    x: tuple[int, ...]
    kernel: tuple[int, ...]
    doubled: bool
    form: str
    costs: Mapping[str, float]
    direct: float | None


def planned(model: Layer, shape: tuple[int, ...], ops: ReferenceOps) -> list[PlannedConvolution]:
    """The convolutions of model(x), x of that shape, in the order in which they are called."""
    inner, _ = ops.inference_ops({})
    asking, table = _PlanOps(inner), dict(model.parameters())
    asking.names = {id(parameter): name.removesuffix(".weight") for name, parameter in table.items()}
    model(asking.array(*shape), table, asking)
    return asking.found


class _Doubled(Shape):
    """A map in which every pixel stands four times."""


class _PlanOps(CostOps):
    def __init__(self, ops: Any) -> None:
        super().__init__(bytes_per_number=0)
        self.ops, self.found = ops, list[PlannedConvolution]()
        self.names: dict[int, str] = {}

    def conv2d(self, x: Shape, w: Parameter, b: Parameter, *, stride: int, padding: Padding) -> Shape:
        doubled = isinstance(x, _Doubled)
        told = self.ops.convolution_form(x.shape, w.shape, stride=stride, padding=padding, doubled=doubled)
        form, costs = told or (f"{self.ops.provenance('conv2d')} conv2d", dict[str, float]())
        direct = costs.get("gathered")
        self.found.append(PlannedConvolution(self.names[id(w)], x.shape, w.shape, doubled, form, costs, direct))
        return super().conv2d(x, w, b, stride=stride, padding=padding)

    def upsample_nearest2x(self, x: Shape) -> Shape:
        y = super().upsample_nearest2x(x)
        return _Doubled(y.shape, y.memory)

"""How much memory does a run on the engine take? MemoryOps with the scratch memory of forms, and with lazy maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vaespec.analysis.cost import FakeArray
from vaespec.analysis.memory import MemoryOps, surrounded_shape
from vaespec.ops import Padding, Sides
from vaespec.parameter import Parameter
from vaespec.reference import ReferenceOps
from vaespec_cpu.convolution import DIRECT, Form, Task, choose_form


class CpuMemoryOps(MemoryOps):
    """MemoryOps that also count what the form of a convolution holds, of `forms` and numbers of `itemsize` bytes."""

    def __init__(self, ops: ReferenceOps, forms: Mapping[str, Form], itemsize: int) -> None:
        super().__init__(ops, itemsize)
        self.forms, self.itemsize = forms, itemsize
        self.chosen: dict[Task, tuple[str, int]] = {}  # bands have few shapes, and a choice takes long

    def conv2d(self, x: FakeArray, w: Parameter, b: Parameter, *, stride: int, padding: Padding) -> FakeArray:
        """Assume the usual padding k // 2, on which the scratch memory hardly depends."""
        y = super().conv2d(x, w, b, stride=stride, padding=padding)
        (B, C, H, W), (O, _, kh, kw) = x.shape, w.shape
        k = kh // 2
        task = Task.of((B, H, W, C), (kh, kw, C, O), stride, ((k, k), (k, k)))
        if task not in self.chosen:
            form = choose_form(task, self.forms).form
            self.chosen[task] = form, self.forms[form].scratch(task)
        form, scratch = self.chosen[task]
        computed = x.size if form == DIRECT and isinstance(x, FakePendingMap) else 0  # that form reads arrays only
        wide = self.wide_weight(w)
        self.briefly(self.itemsize * (scratch + computed))
        del wide
        return y

    def surround(self, x: FakeArray, *, axis: str, sides: Sides) -> FakeArray:
        return FakePendingMap(surrounded_shape(x.shape, axis, sides), x.memory)


class LazyMemoryOps(CpuMemoryOps):
    """CpuMemoryOps for LazyOps: what is computed while a convolution reads or stores is no array of its own."""

    def group_norm(self, x: FakeArray, scale: Parameter, shift: Parameter, *, groups: int, eps: float) -> FakeArray:
        return FakePendingMap(x.shape, x.memory)

    def normalize(self, x: FakeArray, mean: Any, sigma2: Any, scale: Any, shift: Any, *, eps: float) -> FakeArray:
        return FakePendingMap(x.shape, x.memory)

    def silu(self, x: FakeArray) -> FakeArray:
        return x

    mish = gelu = relu = silu

    def add(self, x: FakeArray, y: FakeArray) -> FakeArray:
        return y

    def upsample_nearest2x(self, x: FakeArray) -> FakeArray:
        B, C, H, W = x.shape
        return FakeArray((B, C, 2 * H, 2 * W), x.memory)


class FakePendingMap(FakeArray):
    """Stands for a lazy map that is computed while a convolution reads it."""

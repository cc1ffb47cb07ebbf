"""Parameters that are read within a call of the module that owns them, so that its hooks run around each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from vaespec.ops import Layer, Padding
from vaespec_torch.ops import TorchOps

Compute = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A function of a map or tokens, a weight and a bias."""

Call = Callable[[nn.Module, Tensor, Compute], Tensor]
"""Calls a module such that `compute(x, weight, bias)` runs inside, and returns its result."""


class Owner:
    """Stands among the params for the weight of a module, and for its bias: `owner(x, compute)` computes with both.

    `shape` is that of the whole weight, whatever part of it this process holds.
    """

    def __init__(self, module: nn.Module, shape: tuple[int, ...], call: Call) -> None:
        self.module, self.shape, self.call = module, shape, call

    def __call__(self, x: Tensor, compute: Compute) -> Tensor:
        return self.call(self.module, x, compute)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weight now; float32 if the module has not got it."""
        weight = stored(self.module, "weight")
        return torch.float32 if weight is None else weight.dtype

    def converted(self, convert: Callable[[Tensor], Tensor]) -> Owner:
        """Return an owner of the same module that converts its weight and bias before each use."""

        def call(module: nn.Module, x: Tensor, compute: Compute) -> Tensor:
            return self.call(module, x, lambda x, w, b: compute(x, convert(w), b if b is None else convert(b)))

        return Owner(self.module, self.shape, call)


class ModuleOps(TorchOps):
    """TorchOps for which a parameter may be an Owner. What is recorded for a gradient may be NaN or infinite.

    GradScaler relies on it: it skips the step.
    """

    def compile(self, model: Layer) -> Callable[[Tensor, Mapping[str, Any]], Tensor]:
        return lambda x, params: model(x, params, self)

    def inference_ops(self, params: Mapping[str, Any]) -> tuple[ModuleOps, Mapping[str, Any]]:
        return self, params

    def all_finite(self, x: Any) -> bool:
        return isinstance(x, Owner) or torch.is_grad_enabled() or super().all_finite(x)

    def conv2d(self, x: Tensor, w: Any, b: Any, *, stride: int, padding: Padding) -> Tensor:
        return _owned(partial(super().conv2d, stride=stride, padding=padding), x, w, b)

    def group_norm(self, x: Tensor, scale: Any, shift: Any, *, groups: int, eps: float) -> Tensor:
        return _owned(partial(super().group_norm, groups=groups, eps=eps), x, scale, shift)

    def normalize(self, x: Tensor, mean: Tensor, sigma2: Tensor, scale: Any, shift: Any, *, eps: float) -> Tensor:
        normalize = super().normalize
        return _owned(lambda x, w, b: normalize(x, mean, sigma2, w, b, eps=eps), x, scale, shift)

    def linear(self, t: Tensor, w: Any, b: Any) -> Tensor:
        return _owned(super().linear, t, w, b)

    def widen(self, weight: Any) -> Any:
        """An owner widens within its own call, since a hook may bring the weight there."""
        widen = super().widen
        return weight.converted(widen) if isinstance(weight, Owner) else widen(weight)


class CheckpointingOps(ModuleOps):
    """Computes each layer again for the gradient, and keeps only its input: less memory for a third more time."""

    def run(self, layer: Layer, x: Tensor, params: Mapping[str, Any]) -> Tensor:
        return checkpoint(super().run, layer, x, params, use_reentrant=False)


def stored(owner: nn.Module, attribute: str) -> Tensor | None:
    """The tensor beneath a parameter, without a call of a parametrization; None if the owner has not got it now."""
    if parametrize.is_parametrized(owner, attribute):
        return next(owner.parametrizations[attribute].parameters())  # type: ignore[index, union-attr]
    tensor = getattr(owner, attribute, None)
    return tensor if isinstance(tensor, Tensor) else None


def _owned(compute: Callable[..., Tensor], x: Tensor, w: Any, b: Any) -> Tensor:
    """Compute with a weight and a bias, within the call of the module that owns them, if there is one."""
    return w(x, partial(_in_one_dtype, compute)) if isinstance(w, Owner) else _in_one_dtype(compute, x, w, b)


def _in_one_dtype(compute: Callable[..., Tensor], x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """Compute in the dtype of x, if parameters have several; autocast chooses by itself."""
    if w.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        w, b = w.to(x.dtype), b if b is None else b.to(x.dtype)
    return compute(x, w, b)

"""Why a call must be left to diffusers' own code: what a VAE has been given that vaespec's layers do not know."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType
from typing import Any

import torch
from diffusers.models.activations import get_activation
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.nn.utils import parametrize

from vaespec.architecture import DECODER, Half
from vaespec.errors import InputError
from vaespec.layers import GROUP_NORM_EPS
from vaespec.processors import as_processor
from vaespec_diffusers.hooks import devices_of, hooks_of, is_known

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Attributes of a module, and with "_global" before them of PyTorch, that hold its hooks."""


CHILDREN = {"encode": ("encoder", "quant_conv"), "decode": ("post_quant_conv", "decoder")}
"""The children of a VAE that a run reads, if it has them."""


def modules_read(vae: nn.Module, half: Half) -> dict[str, nn.Module]:
    """Return the modules that a run of this half reads, by name."""
    children = {name: getattr(vae, name, None) for name in CHILDREN[half.verb]}
    return {
        path: module
        for name, child in children.items()
        if child is not None
        for path, module in child.named_modules(prefix=name)
    }


def reason_for_diffusers(vae: Any, half: Half, x: Tensor) -> str:
    """Say why diffusers must compute; empty if vaespec can."""
    if any(getattr(global_hooks, f"_global{kind}") for kind in HOOKS):
        return "hooks are registered for every module"
    modules = modules_read(vae, half)
    devices = {device for module in modules.values() for hook in hooks_of(module) for device in devices_of(hook)}
    if len(devices) > 1:
        return f"its layers are on several devices, {' and '.join(sorted(devices))}"
    tensors = [x, *(p for module in modules.values() for p in module._parameters.values() if p is not None)]
    recorded = torch.is_grad_enabled() and any(getattr(tensor, "requires_grad", False) for tensor in tensors)
    activation = type(get_activation(vae.config.act_fn))
    found = (problem for name, module in modules.items() for problem in _problems(name, module, recorded, activation))
    return next(found, "")


def decodes_by_itself(vae: nn.Module) -> bool:
    """Whether vaespec computes what the VAE decodes, and not diffusers, perhaps compiled."""
    return "decode" not in vars(vae) and not reason_for_diffusers(vae, DECODER, torch.empty(0))


def _problems(name: str, module: nn.Module, recorded: bool, activation: type) -> Iterator[str]:
    """Say what is unusual about a module."""
    kind = type(module)
    while parametrize.is_parametrized(module) and kind.__name__.startswith("Parametrized"):
        kind = kind.__mro__[1]  # its parameters are what the parametrization makes of them
    if not kind.__module__.startswith(("diffusers.models.", "torch.nn.modules.", "torch.nn.utils.parametrize")):
        yield f"{name} is a {kind.__module__}.{kind.__name__}"
    if name.endswith(".nonlinearity") and kind is not activation:
        yield f"{name} is a {kind.__name__}"
    if any(getattr(module, kind) for kind in HOOKS):
        yield f"{name} has a hook of PyTorch"
    hooks = hooks_of(module)
    if unknown := [hook for hook in hooks if not is_known(hook)]:
        yield f"{name} has a hook of an unknown kind, {type(unknown[0]).__name__}"
    if hooks and recorded:
        yield f"a gradient is recorded, and {name} has a hook that moves or casts weights"
    if ("forward" in vars(module) and not hooks) or "_conv_forward" in vars(module):
        yield f"{name} has another forward than its class"
    if getattr(module, "_compiled_call_impl", None) is not None:
        yield f"{name} is compiled"
    if unusual := [type(p) for p in module._parameters.values() if type(p) not in (nn.Parameter, Tensor, NoneType)]:
        yield f"{name} has parameters of the type {unusual[0].__name__}"
    yield from (f"{name} {problem}" for problem in _settings(module))


def _settings(module: nn.Module) -> Iterator[str]:
    """Say which settings of a module are not those of vaespec's layers."""
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        yield f"pads with {module.padding_mode!r}"
    if isinstance(module, nn.Conv2d) and (set(module.dilation), module.groups) != ({1}, 1):
        yield "is dilated or grouped"
    if isinstance(module, nn.GroupNorm) and module.eps != GROUP_NORM_EPS:
        yield f"has eps={module.eps}"
    if isinstance(module, nn.Dropout) and module.training and module.p:
        yield f"drops out {module.p}"
    processor: Any = getattr(module, "processor", None)
    if processor is not None and not _is_known(processor):
        yield f"has the attention processor {type(processor).__name__}"


def _is_known(processor: Any) -> bool:
    """Whether an attention processor is one of diffusers', of a kind that vaespec has too."""
    try:
        as_processor(processor)
    except InputError:
        return False
    return type(processor).__module__.startswith("diffusers.models.")

"""Hooks of a VAE's submodules: entered while a layer computes, since the submodules themselves are not called.

accelerate's hooks (`_hf_hook`) bring the weights of a module to its device before it runs, and away after it; so do
diffusers' (`_diffusers_hook`) with groups of modules, or they cast the weights of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vaespec.ops import Array, Layer, Ops
from vaespec.parameter import Parameter
from vaespec_torch.ops import TorchOps

KNOWN = ("accelerate.hooks", "diffusers.hooks.group_offloading", "diffusers.hooks.layerwise_casting")
"""The modules whose hooks read and write nothing but weights, so that they can be entered without the module's call."""


def hooks_of(module: nn.Module) -> list[Any]:
    """Return the hooks of one module in the order in which a call of the module enters them."""
    registry = getattr(module, "_diffusers_hook", None)
    layered = [] if registry is None else [registry.hooks[name] for name in reversed(registry._hook_order)]
    hook = getattr(module, "_hf_hook", None)
    return layered if hook is None else [hook, *layered]


def hooks_of_whole(vae: nn.Module) -> list[Any]:
    """Return the hooks of the VAE itself that its encode and decode must enter: of the group it leads.

    diffusers enters them when `forward` is called, so that after offloading FLUX.2's VAE by blocks its decode fails.
    `_hf_hook` is entered by diffusers' apply_forward_hook.
    """
    registry = getattr(vae, "_diffusers_hook", None)
    hook = None if registry is None else registry.get_hook("group_offloading")
    return [] if hook is None else [hook]


def is_known(hook: Any) -> bool:
    """Whether a hook can be entered without its module's call."""
    if type(hook).__name__ == "SequentialHook":
        return all(map(is_known, hook.hooks))
    return type(hook).__module__ in KNOWN and not hasattr(hook, "new_forward")


def devices_of(hook: Any) -> set[str]:
    """Return the devices to which a hook brings weights."""
    each = getattr(hook, "hooks", (hook,))
    places = [getattr(h, "execution_device", None) for h in each]
    places += [getattr(getattr(h, "group", None), "onload_device", None) for h in each]
    return {str(torch.device(place)) for place in places if place is not None}


class Hooks:
    """Which modules of a VAE are entered now. Modules are entered before their first layer, and left after their last.

    A module that holds several layers, such as the decoder, is entered once, as in diffusers. `hold` leaves nothing
    before the end: for runs that return to a layer, such as those in bands.
    """

    def __init__(self, vae: nn.Module, hold: bool = False) -> None:
        self.vae, self.hold = vae, hold
        self._entered: list[nn.Module] = []

    def enter(self, layer: Layer) -> dict[str, Tensor]:
        """Enter what a layer needs, leave what it does not need, and return the layer's parameters."""
        return self.fetch([name for name, _ in layer.parameters()])

    def fetch(self, names: list[str]) -> dict[str, Tensor]:
        """Do as `enter` does, for the parameters of these names."""
        needed = self._holders(names)
        if not self.hold:
            self._leave_all_but(needed)
        for module in needed:
            if not any(module is entered for entered in self._entered):
                for hook in self._hooks(module):
                    hook.pre_forward(module)
                self._entered.append(module)
        # The memory as it is now: when the hooks are left, they give the parameters another, or none.
        return {name: tensor.detach() for name, tensor in parameters(self.vae, names).items()}

    def close(self) -> None:
        """Leave every module."""
        self._leave_all_but([])

    def _leave_all_but(self, needed: list[nn.Module]) -> None:
        for module in reversed(self._entered):
            if not any(module is other for other in needed):
                for hook in reversed(self._hooks(module)):
                    hook.post_forward(module, None)
        self._entered = [module for module in self._entered if any(module is other for other in needed)]

    def _holders(self, names: list[str]) -> list[nn.Module]:
        """The modules with hooks that hold these parameters, each after those that hold it."""
        paths: dict[str, None] = {}
        for name in names:
            words = name.split(".")[:-1]
            paths |= dict.fromkeys(".".join(words[: depth + 1]) for depth in range(len(words)))
        return [module for module in (self.vae, *map(self.vae.get_submodule, paths)) if self._hooks(module)]

    def _hooks(self, module: nn.Module) -> list[Any]:
        return hooks_of_whole(module) if module is self.vae else hooks_of(module)


def parameters(vae: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Return the VAE's parameters as they are now: also what parametrizations make of them."""
    owners = {path: vae.get_submodule(path) for path in {name.rpartition(".")[0] for name in names}}
    return {name: getattr(owners[name.rpartition(".")[0]], name.rpartition(".")[2]) for name in names}


class FetchedParams(Mapping[str, Tensor]):
    """The parameters of a VAE with hooks, for a run of HookedLayers: an empty mapping, so that none is converted.

    Each can be looked up nevertheless, to learn which of them is not finite, and is kept then.
    """

    def __init__(self, hooks: Hooks) -> None:
        self.hooks = hooks
        self._found: dict[str, Tensor] = {}

    def of(self, layer: Layer) -> dict[str, Tensor]:
        """Enter the hooks of a layer, and return its parameters."""
        return {name: self._found.get(name, tensor) for name, tensor in self.hooks.enter(layer).items()}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._found:
            self._found |= self.hooks.fetch([name])
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


@dataclass(frozen=True)
class HookedLayer:
    """A layer that fetches its own parameters, from modules whose hooks it enters.

    It does so only if it is given no parameters: a plan, which runs on shapes, gives some. `ops` converts parameters
    for the engine, which has none of the FetchedParams.
    """

    layer: Layer
    fetched: FetchedParams
    ops: TorchOps

    def __call__(self, x: Array, params: Mapping[str, Array], ops: Ops) -> Array:
        if not params:
            tensors = self.fetched.of(self.layer)
            params = tensors if params is self.fetched else self.ops.inference_ops(tensors)[1]
        return self.layer(x, params, ops)

    def parameters(self) -> Iterator[tuple[str, Parameter]]:
        return self.layer.parameters()

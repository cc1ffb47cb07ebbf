"""The parameters of an AutoencoderKLModule: registered under dotted names, and replaced when processors change."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vaespec.model import Model
from vaespec_torch.live import Live, LiveParams
from vaespec_torch.parts import Part, Weights


def register(root: nn.Module, name: str, tensor: Tensor, parts: Mapping[str, Part], *, trains: bool) -> None:
    """Register a tensor under its dotted name, with a module for each word of the name."""
    *path, leaf = name.split(".")
    for word in path:
        if word not in root._modules:
            root.add_module(word, parts[word] if word in parts else Weights())
        root = root.get_submodule(word)
    if trains:
        root.register_parameter(leaf, nn.Parameter(tensor))
    else:
        root.register_buffer(leaf, tensor)


def replace_parameters(root: nn.Module, live: Live, model: Model) -> None:
    """Give a module the parameters of a changed model: its own are kept, unless other processors need others.

    A parameter whose values change keeps its place in optimizers. New ones train, unless what they replace did not.
    """
    if isinstance(model.params, LiveParams):
        return
    before = live.placed(root._outline, root._tiling).params  # type: ignore[arg-type]
    removed = [name for name in before if name not in model.params]
    frozen = bool(removed) and not any(_owned(live, name).requires_grad for name in removed)
    for name in removed:
        _remove(live, name)
    for name, tensor in model.params.items():
        if name not in before:
            part, _, rest = name.partition(".")
            register(live.owner(part), rest, model.ops.copy(tensor), {}, trains=True)
            _owned(live, name).requires_grad_(not frozen)
        elif tensor.data_ptr() != before[name].data_ptr():
            with torch.no_grad():
                _owned(live, name).copy_(tensor)


def _owned(live: Live, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(live.owner(path), leaf)
    return tensor


def _remove(live: Live, name: str) -> None:
    """Remove a parameter, and the modules that are empty without it."""
    path, _, leaf = name.rpartition(".")
    delattr(live.owner(path), leaf)
    while "." in path and not (live.owner(path)._parameters or live.owner(path)._modules):
        path, _, word = path.rpartition(".")
        delattr(live.owner(path), word)

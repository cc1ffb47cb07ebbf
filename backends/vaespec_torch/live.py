"""Runs halves of a model on the parameters that an nn.Module has now, whoever wrote it and whatever wraps it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import _get_current_dispatch_mode

from vaespec.architecture import Half
from vaespec.errors import InputError
from vaespec.inputs import as_images, as_latents
from vaespec.layers import Sequential
from vaespec.model import Model
from vaespec.tiling import execution
from vaespec.tiling.settings import Tiling
from vaespec_torch.ops import TorchOps
from vaespec_torch.owners import Compute, ModuleOps, Owner

MODELS = 8
"""How many models are kept with what was compiled for them: one for each device, dtype and padding of a module."""


class Leaf(NamedTuple):
    """A parameter of a layer: the module that owns it now, its attribute there, and its shape in the model."""

    owner: nn.Module
    attribute: str
    shape: tuple[int, ...]

    def stored(self) -> Tensor | None:
        """The tensor beneath it, without a call of a parametrization; None if the owner has not got it now."""
        if parametrize.is_parametrized(self.owner, self.attribute):
            return next(self.owner.parametrizations[self.attribute].parameters())  # type: ignore[index, union-attr]
        tensor = getattr(self.owner, self.attribute, None)
        return tensor if isinstance(tensor, Tensor) else None


class Live:
    """Runs halves of a model on the parameters of `root`, a module whose state_dict has the model's names.

    They are looked up anew for each run. Where nothing but their values matters, they are read in place, and computed
    with as a model of this backend does: by the engine on a CPU, by fused kernels on CUDA. Otherwise (a gradient is
    wanted, autocast, hooks, parametrizations, wrappers) each layer computes within the call of the module that owns its
    parameters. A subclass says how modules that are not ours are entered: `is_plain` and `call`.
    """

    def __init__(self, root: nn.Module, *, precision: str = "default", compile: bool = False) -> None:
        self.root, self.precision, self.compile = root, precision, compile
        self._models: dict[tuple[Any, ...], Model] = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_models": {}}

    # -- what a subclass says of its modules -------------------------------------------------------------------

    def is_plain(self, owner: nn.Module) -> bool:
        """Whether a call of this owner would do nothing but compute: then its parameters are read without it."""
        return is_unhooked(owner)

    def call(self, owner: nn.Module, x: Tensor, compute: Compute) -> Tensor:
        """Call an owner such that compute(x, weight, bias) runs inside, after its hooks have brought the parameters."""
        return owner(x, compute)

    def execution_device(self, leaf: Leaf) -> torch.device | None:
        """The device on which an owner computes; None if the input decides. Offloaded parameters are on "meta"."""
        hook = getattr(leaf.owner, "_hf_hook", None)
        for each in (hook, *getattr(hook, "hooks", ())):
            if getattr(each, "execution_device", None) is not None:
                return torch.device(each.execution_device)
        tensor = leaf.stored()
        return None if tensor is None or tensor.is_meta else tensor.device

    def called(self, model: Model) -> Model:
        """The model, whose params are Owners, as it is run if its modules are to be called."""
        return model

    # -- running -----------------------------------------------------------------------------------------------

    def run(self, model: Model, half: Half, x: Any, tiling: Tiling, *, tiled: bool = False) -> Tensor:
        """The encoder's moments or the decoder's images, in the parts that `tiling` names; `tiled` as in `execution`.

        `model` gives the config, the layers and their processors; its params are not read. Raises InputError for an
        input of another shape, and for bands of which a gradient is wanted.
        """
        leaves = self._leaves(model.layers(half))
        device, dtype = self.place(leaves.values(), x)
        recorded = _is_recorded(x, leaves.values())
        if recorded and tiling.enabled and tiling.mode == "exact":
            raise InputError(
                f"exact tiling to {half.verb} gives no gradient: use torch.no_grad(), or enable_tiling() with blended "
                "tiles, or disable_tiling() and enable_gradient_checkpointing()."
            )
        if recorded and not tiling.blends:
            tiling = replace(tiling, enabled=False, mode="blend", max_memory=None, offload_folder=None, bands={})
        if self.reads_in_place(leaves, dtype, x, recorded):
            model = self._in_place(model, device, dtype, tiling)
        else:
            owners = {name: Owner(leaf.owner, leaf.shape, self.call) for name, leaf in leaves.items()}
            ops = tiling.padded(ModuleOps(str(device), dtype, self.precision))
            model = self.called(model.replace(params=owners, ops=ops))
        check = as_images if half.source == "images" else as_latents
        return execution.run(model, half, check(x, model.config, model.ops), tiling, tiled=tiled)

    def reads_in_place(self, leaves: Mapping[str, Leaf], dtype: str, x: Any, recorded: bool) -> bool:
        """Whether nothing but the values of the parameters matters to a run."""
        if recorded or is_transformed(x):
            return False
        if not all(map(self.is_plain, {leaf.owner for leaf in leaves.values()})):
            return False
        tensors = [leaf.stored() for leaf in leaves.values()]
        if {type(tensor) for tensor in tensors} - {Tensor, nn.Parameter}:
            return False
        places = {(t.device, t.dtype) for t in tensors if t is not None}
        return len(places) == 1 and not torch.is_autocast_enabled(next(iter(places))[0].type)

    def place(self, leaves: Iterable[Leaf], x: Any) -> tuple[torch.device, str]:
        """The device and the dtype of a run: those of the parameters now; the widest dtype, if they have several."""
        leaves = list(leaves)
        devices = (self.execution_device(leaf) for leaf in leaves)
        device = next((d for d in devices if d is not None), getattr(x, "device", torch.device("cpu")))
        dtypes = {tensor.dtype for leaf in leaves if (tensor := leaf.stored()) is not None and tensor.itemsize > 1}
        dtype = torch.float32
        for i, each in enumerate(d for d in dtypes if d.is_floating_point):
            dtype = torch.promote_types(dtype, each) if i else each
        return torch.device(device), str(dtype).removeprefix("torch.")

    def _in_place(self, model: Model, device: torch.device, dtype: str, tiling: Tiling) -> Model:
        """The model on the parameters themselves; kept, since to compile it takes long."""
        key = (id(model.encoder), id(model.decoder), device, dtype, tiling.padding)
        if key not in self._models:
            if len(self._models) >= MODELS:
                self._models.clear()
            ops = TorchOps(str(device), dtype, self.precision)
            padded = tiling.padded(ops.with_compiler() if self.compile else ops)
            self._models[key] = model.replace(params=LiveParams(self, model), ops=padded)
        return self._models[key]

    def _leaves(self, layers: Sequential) -> dict[str, Leaf]:
        """The parameters of the layers by name, with their owners now."""
        owners: dict[str, nn.Module] = {}
        leaves = {}
        for name, row in layers.parameters():
            path, _, leaf = name.rpartition(".")
            if path not in owners:
                owners[path] = self.root.get_submodule(path)
            leaves[name] = Leaf(owners[path], leaf, row.shape)
        return leaves


class LiveParams(Mapping[str, Tensor]):
    """The parameters of a module under the model's names, each looked up when it is read."""

    def __init__(self, live: Live, model: Model) -> None:
        self.live, self.names = live, tuple(model.table())

    def __getitem__(self, name: str) -> Tensor:
        path, _, leaf = name.rpartition(".")
        try:
            tensor = getattr(self.live.root.get_submodule(path), leaf)
        except AttributeError:
            raise KeyError(name) from None
        return tensor.detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def is_unhooked(module: nn.Module) -> bool:
    """Whether a call of a module runs the forward of its class, and nothing around it."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not (any(hooks) or "forward" in vars(module) or parametrize.is_parametrized(module) or _has_global_hooks())


def is_transformed(x: Any) -> bool:
    """Whether PyTorch records or transforms what is computed now: it compiles, exports, traces, or maps."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or _get_current_dispatch_mode() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or (isinstance(x, Tensor) and type(x) not in (Tensor, nn.Parameter))
    )


def _has_global_hooks() -> bool:
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


def _is_recorded(x: Any, leaves: Iterable[Leaf]) -> bool:
    """Whether a gradient is wanted."""
    tensors = (x, *(leaf.stored() for leaf in leaves)) if torch.is_grad_enabled() else ()
    return any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors)

"""Runs halves of a model on the parameters that an nn.Module has now, whoever wrote it and whatever wraps it."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import _get_current_dispatch_mode

from vaespec.architecture import Half
from vaespec.callers import warn_user
from vaespec.errors import InputError, NonFiniteError, NonFiniteWarning
from vaespec.inputs import as_images, as_latents
from vaespec.layers import Sequential
from vaespec.model import Model
from vaespec.tiling import execution
from vaespec.tiling.settings import Tiling
from vaespec.upcast import unchecked
from vaespec_torch.ops import TorchOps
from vaespec_torch.owners import Compute, ModuleOps, Owner, stored

MODELS = 8
"""How many models are kept with what was compiled for them: one for each device, dtype and padding of a module."""


class Leaf(NamedTuple):
    """A parameter of a layer: the module that owns it now, its attribute there, and its shape in the model."""

    owner: nn.Module
    attribute: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, live: Live, name: str, shape: tuple[int, ...]) -> Leaf:
        """The parameter of that name, with its owner now."""
        path, _, attribute = name.rpartition(".")
        return cls(live.owner(path), attribute, shape)

    def stored(self) -> Tensor | None:
        """The tensor beneath it, without a call of a parametrization; None if the owner has not got it now."""
        return stored(self.owner, self.attribute)


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

    def on(self, root: nn.Module) -> Self:
        """Return a runner with these options for another module."""
        twin = copy.copy(self)
        twin.root = root
        return twin

    # -- what a subclass says of its modules -------------------------------------------------------------------

    def owner(self, path: str) -> nn.Module:
        """The module that owns the parameters of the layer with this name now. Raises AttributeError without one."""
        return self.root.get_submodule(path)

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

        `model` gives the config, the layers and their processors; its params are not read. A result that is not finite
        is returned; if no gradient is recorded, a NonFiniteWarning names the layer. Raises InputError for an input of
        another shape, and for bands of which a gradient is wanted.
        """
        leaves = self._leaves(model.layers(half))
        recorded = _is_recorded(x, leaves.values())
        tiling = _differentiable(tiling, half) if recorded else tiling
        model = self._placed(model, half, leaves, x, recorded, tiling)
        return returned(model, half, x, tiling, tiled=tiled)

    def placed(self, model: Model, tiling: Tiling) -> Model:
        """The model on the parameters as they are now, each looked up when it is read."""
        names = tuple(model.table())
        device, dtype = self._place([Leaf.of(self, names[0], ())], None)
        return self._in_place(model, names, device, dtype, tiling)

    def _placed(
        self, model: Model, half: Half, leaves: Mapping[str, Leaf], x: Any, recorded: bool, tiling: Tiling
    ) -> Model:
        """The model for a run: on the parameters in place, or on their owners."""
        device, dtype = self._place(leaves.values(), x)
        if not recorded and self.reads_in_place(model, half, leaves, x):
            return self._in_place(model, tuple(leaves), device, dtype, tiling)
        ops = tiling.padded(ModuleOps(str(device), dtype, self.precision))
        owners = {name: Owner(leaf.owner, leaf.shape, self.call) for name, leaf in leaves.items()}
        ops = unchecked(ops, model.layers(half), owners, model.config.force_upcast) if recorded else ops
        return self.called(model.replace(params=owners, ops=ops))

    def reads_in_place(self, model: Model, half: Half, leaves: Mapping[str, Leaf], x: Any) -> bool:
        """Whether nothing but the values of the parameters matters to a run that is not recorded for a gradient."""
        if is_transformed(x) or not all(map(self.is_plain, {leaf.owner for leaf in leaves.values()})):
            return False
        tensors = [leaf.stored() for leaf in leaves.values()]
        if {type(tensor) for tensor in tensors} - {Tensor, nn.Parameter}:
            return False
        places = {(t.device, t.dtype) for t in tensors if t is not None}
        device, _ = next(iter(places))
        return len(places) == 1 and device.type != "meta" and not torch.is_autocast_enabled(device.type)

    def _place(self, leaves: Collection[Leaf], x: Any) -> tuple[torch.device, str]:
        """The device and the dtype of a run: those of the parameters now; the widest dtype, if they have several."""
        devices = (self.execution_device(leaf) for leaf in leaves)
        device = next((d for d in devices if d is not None), getattr(x, "device", torch.device("cpu")))
        stored = {t.dtype for leaf in leaves if (t := leaf.stored()) is not None and t.is_floating_point()}
        dtypes = {dtype for dtype in stored if dtype.itemsize > 1} or {getattr(x, "dtype", torch.float32)}
        dtype = reduce(torch.promote_types, dtypes)
        return torch.device(device), str(dtype).removeprefix("torch.")

    def _in_place(
        self, model: Model, names: tuple[str, ...], device: torch.device, dtype: str, tiling: Tiling
    ) -> Model:
        """The model on the named parameters themselves; kept, since to compile it takes long."""
        key = (id(model.encoder), id(model.decoder), names, device, dtype, tiling.padding)
        if key not in self._models:
            if len(self._models) >= MODELS:
                self._models.clear()
            ops = TorchOps(str(device), dtype, self.precision)
            padded = tiling.padded(ops.with_compiler() if self.compile else ops)
            self._models[key] = model.replace(params=LiveParams(self, names), ops=padded)
        if self._models[key].config != model.config:
            self._models[key] = self._models[key].replace(config=model.config)
        return self._models[key]

    def _leaves(self, layers: Sequential) -> dict[str, Leaf]:
        """The parameters of the layers by name, with their owners now."""
        return {name: Leaf.of(self, name, row.shape) for name, row in layers.parameters()}


def returned(model: Model, half: Half, x: Any, tiling: Tiling, *, tiled: bool = False) -> Tensor:
    """The result of a run, even if it is not finite: then a NonFiniteWarning names the layer."""
    check = as_images if half.source == "images" else as_latents
    try:
        return execution.run(model, half, check(x, model.config, model.ops), tiling, tiled=tiled)
    except NonFiniteError as error:
        warn_user(f"a result is returned although {error}", NonFiniteWarning)
    model = model.replace(ops=UncheckedOps(model.ops))
    return execution.run(model, half, check(x, model.config, model.ops), tiling, tiled=tiled)


class LiveParams(Mapping[str, Tensor]):
    """Parameters of a module under the model's names, each looked up when it is read."""

    def __init__(self, live: Live, names: tuple[str, ...]) -> None:
        self.live, self.names = live, names

    def __getitem__(self, name: str) -> Tensor:
        try:
            leaf = Leaf.of(self.live, name, ())
            tensor: Tensor = getattr(leaf.owner, leaf.attribute)
        except AttributeError:
            raise KeyError(name) from None
        return tensor.detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class UncheckedOps:
    """The operations of `ops`, for which every number counts as finite: results are returned as they are."""

    ops: Any

    def __getattr__(self, name: str) -> Any:
        if name == "ops":  # not set yet, while a copy is made
            raise AttributeError(name)
        return getattr(self.ops, name)

    def all_finite(self, x: Any) -> bool:
        """True."""
        return True


def is_unhooked(module: nn.Module) -> bool:
    """Whether a call of a module runs the forward of its class, and nothing around it."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    around = (*hooks, torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
    return not (any(around) or "forward" in vars(module) or parametrize.is_parametrized(module))


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


def _is_recorded(x: Any, leaves: Iterable[Leaf]) -> bool:
    """Whether a gradient is wanted."""
    tensors = (x, *(leaf.stored() for leaf in leaves)) if torch.is_grad_enabled() else ()
    return any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors)


def _differentiable(tiling: Tiling, half: Half) -> Tiling:
    """The settings for a run that is recorded: "auto" is the whole image, or slices. InputError for exact bands."""
    if tiling.enabled and tiling.mode == "exact":
        raise InputError(
            f"exact tiling to {half.verb} gives no gradient: use torch.no_grad(), or enable_tiling() with blended "
            "tiles, or disable_tiling() and enable_gradient_checkpointing()."
        )
    return tiling if tiling.blends else Tiling(slicing=tiling.slicing, padding=tiling.padding, on_plan=tiling.on_plan)

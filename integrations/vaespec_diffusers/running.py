"""Runs half of a diffusers VAE on its own parameters, and records what ran."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vaespec.architecture import Half
from vaespec.errors import InputError, VaespecError
from vaespec.inputs import as_images, as_latents
from vaespec.layers import Sequential
from vaespec.model import Model
from vaespec.tiling import execution
from vaespec.tiling.planner import MemoryPlan
from vaespec.tiling.settings import Tiling
from vaespec_diffusers.hooks import FetchedParams, HookedLayer, Hooks, hooks_of, hooks_of_whole
from vaespec_diffusers.reasons import modules_read
from vaespec_diffusers.reports import Call
from vaespec_diffusers.settings import Settings, Switches
from vaespec_torch.live import Live
from vaespec_torch.ops import TorchOps
from vaespec_torch.owners import CheckpointingOps, Compute


class VaeLive(Live):
    """Runs halves of a model on the parameters of diffusers' modules, whose hooks are entered around each layer."""

    def is_plain(self, owner: nn.Module) -> bool:
        return super().is_plain(owner) and not hooks_of(owner)

    def call(self, owner: nn.Module, x: Tensor, compute: Compute) -> Tensor:
        """Compute with what the owner has now: a module of diffusers would pad and compute by itself."""
        return compute(x, owner.weight, owner.bias)  # type: ignore[arg-type]

    def called(self, model: Model) -> Model:
        """The model as it is run for a gradient: with diffusers' switch of gradient checkpointing."""
        if not (torch.is_grad_enabled() and _is_checkpointing(self.root)):
            return model
        ops: Any = model.ops
        inner = ops if isinstance(ops, TorchOps) else ops.ops  # beneath a padding
        checkpointing = CheckpointingOps.like(inner)
        return model.replace(ops=checkpointing if inner is ops else replace(ops, ops=checkpointing))

    def run_hooked(self, model: Model, half: Half, x: Any, tiling: Tiling, *, tiled: bool = False) -> Tensor:
        """The result of `run` if hooks bring the parameters, and no gradient is wanted."""
        layers = model.layers(half).layers
        with closing(Hooks(self.root, hold=tiling.enabled and not tiling.blends)) as hooks:
            first = next(iter(hooks.enter(layers[0]).values()))
            ops = TorchOps(str(first.device), str(first.dtype).removeprefix("torch."), self.precision)
            hooked = Sequential(tuple(HookedLayer(layer, hooks, ops) for layer in layers))
            model = model.replace(**{half.name: hooked}, params=FetchedParams(hooks), ops=tiling.padded(ops))
            check = as_images if half.source == "images" else as_latents
            return execution.run(model, half, check(x, model.config, model.ops), tiling, tiled=tiled)


def _is_checkpointing(vae: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in (vae.encoder, vae.decoder))


def compute(vae: Any, settings: Settings, half: Half, x: Tensor, tiled: bool = False) -> Tensor:
    """Run half of a VAE: images -> moments, or latents -> images, and record what ran."""
    tiling = settings.tiling_of(vae)
    plans: list[MemoryPlan] = []

    def on_plan(plan: MemoryPlan) -> None:
        plans.append(plan)
        if tiling.on_plan is not None:
            tiling.on_plan(plan)

    model = settings.model_now(vae)
    live = settings.kept("live", lambda: VaeLive(vae, precision=settings.precision, compile=settings.compile))
    hooked = hooks_of_whole(vae) or any(map(hooks_of, modules_read(vae, half).values()))
    run = live.run_hooked if hooked else live.run
    start = time.perf_counter()
    y: Tensor = run(model, half, x, replace(tiling, on_plan=on_plan), tiled=tiled)
    call = Call(
        half.verb,
        _computed_by(y),
        str(plans[0]) if plans else "blended tiles",
        tuple(x.shape),
        str(y.dtype).removeprefix("torch."),
        str(y.device),
        time.perf_counter() - start,
    )
    settings.record(call, partial(_memory, model, half, call, tiling))
    return y


def leave_to_diffusers(
    vae: Any,
    settings: Settings,
    half: Half,
    x: Tensor,
    reason: str,
    method: Callable[..., Any],
    return_dict: bool,
) -> Any:
    """Call diffusers' method, warn, and record why. Raises InputError if it cannot do what the settings say."""
    if settings.pads:
        raise InputError(
            f"padding {settings.tiling.padding} needs vaespec to {half.verb}, but this call is diffusers' own, since "
            f"{reason}: set_padding('zeros'), or change that."
        )
    settings.warn(reason)
    tiling = settings.tiling_of(vae)
    blends = vae.use_tiling
    vae.use_tiling = tiling.blends  # diffusers' code has no bands, and its tiles are not what was requested
    start = time.perf_counter()
    try:
        output = method(x, return_dict=return_dict)
    finally:
        vae.use_tiling = blends
    seconds = time.perf_counter() - start
    dtype = str(x.dtype).removeprefix("torch.")
    settings.record(Call(half.verb, "diffusers", "", tuple(x.shape), dtype, str(x.device), seconds, reason=reason))
    return output


def _computed_by(y: Tensor) -> str:
    if y.requires_grad:
        return "autograd"
    ops = TorchOps(str(y.device), str(y.dtype).removeprefix("torch."))
    return "engine" if ops.on_engine and not torch.is_autocast_enabled(y.device.type) else "torch"


def _memory(model: Model, half: Half, call: Call, tiling: Tiling) -> int | None:
    """The bytes that a run needed besides the weights, as estimated; None for one with gradients, which is unknown."""
    if call.computed_by == "autograd":
        return None
    model = model.replace(ops=tiling.padded(TorchOps(call.device, call.dtype)))
    try:
        return execution.estimate(model, half, call.shape, replace(tiling, on_plan=None, max_memory=None)).run
    except VaespecError:
        return None


def switches(vae: Any, settings: Settings) -> Switches:
    """Return vaespec's methods for a VAE where it is now, to estimate its memory."""
    ops = TorchOps(str(vae.device) if vae.device.type != "meta" else "cpu", str(vae.dtype).removeprefix("torch."))
    tiling = settings.tiling_of(vae)
    return Switches(settings.model(vae).replace(ops=tiling.padded(ops)), tiling)

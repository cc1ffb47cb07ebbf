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
from vaespec.layers import Sequential
from vaespec.model import Model
from vaespec.tiling import execution
from vaespec.tiling.planner import MemoryPlan
from vaespec.tiling.settings import Tiling
from vaespec_diffusers.hooks import FetchedParams, HookedLayer, Hooks, hooks_of, hooks_of_whole
from vaespec_diffusers.reasons import modules_read
from vaespec_diffusers.reports import Call
from vaespec_diffusers.settings import Settings, Switches
from vaespec_torch.live import returned
from vaespec_torch.ops import TorchOps

RECORDED = "a gradient is recorded; torch.no_grad() is faster if none is wanted"


def run_hooked(
    vae: nn.Module, precision: str, model: Model, half: Half, x: Any, tiling: Tiling, *, tiled: bool = False
) -> Tensor:
    """Run half of a VAE whose weights are brought by hooks, and of which no gradient is wanted."""
    layers = model.layers(half).layers
    with closing(Hooks(vae, hold=tiling.enabled and not tiling.blends)) as hooks:
        first = next(iter(hooks.enter(layers[0]).values()))
        ops = TorchOps(str(first.device), str(first.dtype).removeprefix("torch."), precision)
        fetched = FetchedParams(hooks)
        hooked = Sequential(tuple(HookedLayer(layer, fetched, ops) for layer in layers))
        model = model.replace(**{half.name: hooked}, params=fetched, ops=tiling.padded(ops))
        return returned(model, half, x, tiling, tiled=tiled)


def compute(vae: Any, settings: Settings, half: Half, x: Tensor, tiled: bool = False) -> Tensor:
    """Run half of a VAE: images -> moments, or latents -> images, and record what ran."""
    tiling = settings.tiling_of(vae)
    plans: list[MemoryPlan] = []

    def on_plan(plan: MemoryPlan) -> None:
        plans.append(plan)
        if tiling.on_plan is not None:
            tiling.on_plan(plan)

    model = settings.model_now(vae)
    hooked = hooks_of_whole(vae) or any(map(hooks_of, modules_read(vae, half).values()))
    run = partial(run_hooked, vae, settings.precision) if hooked else settings.live(vae).run
    start = time.perf_counter()
    y: Tensor = run(model, half, x, replace(tiling, on_plan=on_plan), tiled=tiled)
    call = Call(
        half.verb,
        _computed_by(y),
        str(plans[0]) if plans else "blended tiles" if tiled or tiling.blends else str(MemoryPlan(tiling.slicing)),
        tuple(getattr(x, "shape", ())),  # a picture has none
        str(y.dtype).removeprefix("torch."),
        str(y.device),
        time.perf_counter() - start,
        reason=RECORDED if y.requires_grad else "",
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
    """The bytes that a run needed besides the weights, as estimated; None for gradients and pictures: unknown."""
    if call.computed_by == "autograd" or not call.shape:
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

"""Runs half of a diffusers VAE on its own parameters, and records what ran."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vaespec.architecture import ENCODER, Half
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


LARGE = 1 << 28
"""Bytes of a feature map at the size of the image. From there on the CPU engine works in exact bands, if nothing else
was requested: the same numbers, in two thirds of the memory, in 7 % more time (`python -m benchmarks.in_diffusers`).
"""


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
    if x.ndim == 4 and not (hooked or tiled or torch.is_grad_enabled()):
        f = 1 if half is ENCODER else model.config.downsampling_factor
        tiling = _with_bands_if_large(tiling, vae, settings, (*x.shape[:2], f * x.shape[2], f * x.shape[3]))
    start = time.perf_counter()
    y: Tensor = run(model, half, x, replace(tiling, on_plan=on_plan), tiled=tiled)
    call = Call(
        half.verb,
        _computed_by(y),
        str(plans[0]) if plans else "blended tiles" if tiled or tiling.blends else str(MemoryPlan(tiling.slicing)),
        tuple(x.shape),
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
    """The bytes that a run needed besides the weights, as estimated; None for one with gradients: unknown."""
    if call.computed_by == "autograd":
        return None
    model = model.replace(ops=tiling.padded(TorchOps(call.device, call.dtype)))
    try:
        return execution.estimate(model, half, call.shape, replace(tiling, on_plan=None, max_memory=None)).run
    except VaespecError:
        return None


def switches(vae: Any, settings: Settings, image: Sequence[int]) -> Switches:
    """Return vaespec's methods for a VAE where it is now, to estimate its memory for images of this shape."""
    tiling = _with_bands_if_large(settings.tiling_of(vae), vae, settings, image)
    return Switches(settings.model(vae).replace(ops=tiling.padded(_ops(vae))), tiling)


def _with_bands_if_large(tiling: Tiling, vae: Any, settings: Settings, image: Sequence[int]) -> Tiling:
    """The settings, with exact bands if they leave the choice, the engine computes, and maps are LARGE.

    `image` is the shape (B, C, height, width) of the images.
    """
    if tiling.enabled or settings.whole or len(image) != 4 or not _ops(vae).on_engine:
        return tiling
    config, (B, _, H, W) = settings.model(vae).config, image
    width = max(config.block_out_channels[0], config.decoder_widths[0])
    return replace(tiling, enabled=True, mode="exact") if 4 * B * width * H * W >= LARGE else tiling


def _ops(vae: Any) -> TorchOps:
    """The operations where the VAE is now; on the CPU while it is offloaded."""
    return TorchOps(str(vae.device) if vae.device.type != "meta" else "cpu", str(vae.dtype).removeprefix("torch."))

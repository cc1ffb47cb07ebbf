"""VaeLive: runs halves of a model on the parameters of diffusers' modules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vaespec.model import Model
from vaespec_torch.live import Live
from vaespec_torch.ops import TorchOps
from vaespec_torch.owners import CheckpointingOps, Compute


class VaeLive(Live):
    """Runs halves of a model on the parameters of diffusers' modules."""

    def call(self, owner: nn.Module, x: Tensor, compute: Compute) -> Tensor:
        """Compute with what the owner has now: a module of diffusers would pad and compute by itself."""
        return compute(x, owner.weight, owner.bias)  # type: ignore[arg-type]

    def called(self, model: Model) -> Model:
        """The model as it is run for a gradient: with diffusers' switch of gradient checkpointing."""
        if not (torch.is_grad_enabled() and _is_checkpointing(self.root)):
            return model
        return model.replace(ops=_checkpointing(model.ops))


def _checkpointing(ops: Any) -> Any:
    """The ops with gradient checkpointing, beneath a padding, or float32 maps."""
    return CheckpointingOps.like(ops) if isinstance(ops, TorchOps) else replace(ops, ops=_checkpointing(ops.ops))


def _is_checkpointing(vae: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in (vae.encoder, vae.decoder))

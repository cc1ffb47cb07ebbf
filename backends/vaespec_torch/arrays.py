"""PyTorch's tensors outside the model: placing values, drawing noise, and outputs as pytrees."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vaespec.arrays import asarray_like, normal_like
from vaespec.errors import InputError
from vaespec.outputs import ARRAY_FIELDS, flatten, unflatten


@asarray_like.register
def _(like: Tensor, values: Any) -> Tensor:
    return torch.tensor(values, device=like.device)


@normal_like.register
def _(like: Tensor, generator: Any) -> Tensor:
    """Draw as diffusers does: in the dtype of `like`, on the generator's device, then moved; None: torch's own."""
    if isinstance(generator, np.random.Generator):
        return normal_like.dispatch(object)(like, generator)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InputError(
            f"generator is a {type(generator).__name__}: give a torch.Generator, a numpy.random.Generator, or seed=."
        )
    device = like.device if generator is None else generator.device
    if device.type not in (like.device.type, "cpu"):
        devices = "the CPU" if like.device.type == "cpu" else f"{like.device} or the CPU"
        raise InputError(f"a generator on {device} for latents on {like.device}: give one on {devices}.")
    return torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def _flatten(output: Any) -> tuple[list[Any], Any]:
    """Flatten an output. PyTorch takes None for a leaf, so an absent posterior is put among the constants."""
    fields, constants = flatten(output)
    return [field for field in fields if field is not None], ([field is not None for field in fields], constants)


def _unflatten(cls: type, children: Iterable[Any], context: Any) -> Any:
    (present, constants), children = context, iter(children)
    return unflatten(cls, [next(children) if is_present else None for is_present in present], constants)


for output in ARRAY_FIELDS:
    pytree.register_pytree_node(
        output, _flatten, partial(_unflatten, output), serialized_type_name=f"vaespec.{output.__name__}"
    )

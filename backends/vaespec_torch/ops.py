"""The operations on PyTorch, one native call each: maps are (B, C, H, W), in the memory order of their device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import array_api_compat.torch as array_namespace
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import vaespec_torch.arrays  # noqa: F401  (registers tensors, generators and pytrees)
from vaespec import machine
from vaespec.machine import MemoryUse
from vaespec.ops import Layer, Padding
from vaespec.parameter import Parameter
from vaespec.reference import ReferenceOps
from vaespec_torch.engine import engine, from_engine, to_engine, tracked
from vaespec_torch.views import as_numpy, as_tensor

CHANNELS_LAST = ("cuda",)
"""The kinds of device whose maps and kernels lie in memory as (B, H, W, C), which their convolutions want."""


def channels_last(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether maps and kernels lie as (B, H, W, C); on a CPU only those of bfloat16.

    There the sums of that order are 3 to 20 times less exact in float32 (oneDNN's convolutions, group_norm), and no
    sooner done.
    """
    return device.type in CHANNELS_LAST or (device.type == "cpu" and dtype == torch.bfloat16)


class TorchOps(ReferenceOps):
    """On one device, in one dtype. Nothing here breaks autograd or `torch.compile(fullgraph=True)`."""

    def __init__(self, device: str, dtype: str, precision: str = "default") -> None:
        super().__init__(array_namespace, dtype, torch.device(device))
        self.storage = getattr(torch, dtype)
        self.precision = precision

    @classmethod
    def like(cls, ops: Any) -> Self:
        """This kind of ops, where and as exact as others."""
        return cls(str(ops.device), ops.dtype, ops.precision)

    def __reduce__(self) -> tuple[Any, ...]:
        """To copy and pickle, with a module that holds it: the namespace, a Python module, cannot be."""
        return type(self), (str(self.device), self.dtype, self.precision)

    @property
    def on_engine(self) -> bool:
        """Whether NumPy's engine computes where no gradient is wanted: it reads a CPU's tensors where they lie.

        In bfloat16 not where the CPU multiplies that itself, and PyTorch twice as fast.
        """
        kept = self.dtype == "float64" or (self.dtype == "bfloat16" and machine.multiplies_bfloat16())
        return self.on_host and self.precision == "default" and not kept

    def compile(self, model: Layer) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor]:
        run = super().compile(model)

        def native_if_tracked(x: Tensor, params: Mapping[str, Tensor]) -> Tensor:
            result: Tensor = model(x, params, self) if tracked(x, *params.values()) else run(x, params)
            return result

        return native_if_tracked

    def with_compiler(self) -> TorchOps:
        from vaespec_torch.compiled import CompilingOps

        return CompilingOps.like(self)

    def inference_ops(self, params: Mapping[str, Tensor]) -> tuple[Any, Mapping[str, Any]]:
        if self.on_engine:
            return engine(self.dtype), {name: to_engine(t) for name, t in params.items()}
        if self.precision == "default" and channels_last(self.device, self.storage):
            from vaespec_torch.fused import FusedOps

            return FusedOps.like(self), params
        return self, params

    def run(self, layer: Layer, x: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        switched = self.precision == "highest" and not torch.compiler.is_compiling()
        with true_float32() if switched else nullcontext():
            result: Tensor = layer(x, params, self)
            return result

    def from_numpy(self, a: np.ndarray) -> Tensor:
        return as_tensor(a).to(device=self.device, dtype=self.storage, copy=True)  # a copy: its source may change

    def from_host(self, a: np.ndarray) -> Tensor:
        return as_tensor(a).to(device=self.device, copy=True)

    def materialize(self, x: Tensor) -> Tensor:
        return x.detach()

    @property
    def on_host(self) -> bool:  # type: ignore[override]
        return self.device.type == "cpu"

    def memory(self) -> MemoryUse:
        if self.device.type != "cuda":
            return super().memory()  # Apple's GPU shares the process's
        used = torch.cuda.memory_allocated(self.device)
        reserved = torch.cuda.memory_reserved(self.device) - used
        return MemoryUse(used, torch.cuda.mem_get_info(self.device)[0] + reserved)

    def workspace(self, op: str, x: tuple[int, ...], y: tuple[int, ...], kernel: tuple[int, ...] = ()) -> int:
        """On a CPU, oneDNN's convolutions reorder what they read, then what they write."""
        reordered = op == "conv2d" and self.on_host
        return reordered * max(math.prod(x), math.prod(y)) * self.storage.itemsize

    def to_numpy(self, x: Tensor) -> np.ndarray:
        return as_numpy(x.detach().cpu())

    def load_params(self, params: Mapping[str, np.ndarray], table: Mapping[str, Parameter]) -> dict[str, Tensor]:
        """Kernels in the memory order that convolutions want, so that none reorders them."""
        if self.on_engine:
            return {name: from_engine(a) for name, a in engine(self.dtype).load_params(params, table).items()}
        prepared = super().load_params(params, table).items()
        return {name: in_device_order(t) if t.ndim == 4 else t for name, t in prepared}

    def cast(self, x: Tensor) -> Tensor:
        return x.to(device=self.device, dtype=self.storage)

    def is_array(self, x: object) -> bool:
        return isinstance(x, Tensor)

    def from_nchw(self, x: Tensor) -> Tensor:
        return in_device_order(x)

    def to_nchw(self, x: Tensor) -> Tensor:
        return x.contiguous()

    def conv2d(self, x: Tensor, w: Tensor, b: Tensor, *, stride: int, padding: Padding) -> Tensor:
        (top, bottom), (left, right) = padding
        if top == bottom and left == right:
            return F.conv2d(x, w, b, stride=stride, padding=(top, left))
        x = F.pad(x, (left, right, top, bottom))  # torch names the last axis first
        return F.conv2d(x, w, b, stride=stride)

    def group_norm(self, x: Tensor, scale: Tensor, shift: Tensor, *, groups: int, eps: float) -> Tensor:
        # Where x is channels-last, CUDA's kernel copies it, and the CPU's computes E[x²] - E[x]², which cancels.
        y = torch.group_norm(x.contiguous(), groups, scale, shift, eps)  # F.group_norm refuses 1 x 1 maps
        return in_device_order(y)

    def normalize(self, x: Tensor, mean: Tensor, sigma2: Tensor, scale: Tensor, shift: Tensor, *, eps: float) -> Tensor:
        (B, C, H, W), wide = x.shape, mean.dtype
        scale, shift = (p.to(wide).expand(B, C).flatten() for p in (scale, shift))
        samples = x.reshape(1, B * C, H, W)  # moments are per sample, a batch norm's are not
        y = F.batch_norm(samples, mean.flatten(), sigma2.flatten(), scale, shift, eps=eps)
        return in_device_order(y.reshape(B, C, H, W))

    def silu(self, x: Tensor) -> Tensor:
        return F.silu(x)

    def mish(self, x: Tensor) -> Tensor:
        return F.mish(x)

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x)

    def relu(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def upsample_nearest2x(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")

    def linear(self, t: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.linear(t, w, b)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        q, k, v = (t.unsqueeze(1) for t in (q, k, v))  # without an axis of heads, the fused kernels are not taken
        return F.scaled_dot_product_attention(q, k, v, scale=scale).squeeze(1)


class CheckpointingOps(TorchOps):
    """Forgets what is inside each layer, and computes it again for the gradient: less memory for a third more time."""

    def run(self, layer: Layer, x: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        recomputed: Tensor = checkpoint(super().run, layer, x, params, use_reentrant=False)
        return recomputed


def in_device_order(x: Tensor) -> Tensor:
    """A map or kernel in the memory order of its device. By axes, since vmap knows no memory formats."""
    if channels_last(x.device, x.dtype):
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.contiguous()


@contextmanager
def true_float32() -> Iterator[None]:
    """Inside, no product of float32 numbers is made from TF32 or bfloat16, in cuDNN, cuBLAS or oneDNN.

    The settings belong to the process: another thread's products are slower meanwhile. What runs later, gradients and
    whatever torch.compile or torch.export has traced, is as precise as the process says then: set
    torch.backends.fp32_precision = "ieee" for it.
    """
    of: Any = torch.backends
    switches = of, of.cudnn, of.cudnn.conv, of.cuda.matmul, of.mkldnn.conv, of.mkldnn.matmul
    changed = []
    try:
        for switch in switches:  # the general before the special: one that is not set follows, and is left unset
            if switch.fp32_precision != "ieee":
                changed.append((switch, switch.fp32_precision))
                switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, before in changed:
            switch.fp32_precision = before

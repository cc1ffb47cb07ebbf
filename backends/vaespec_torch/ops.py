"""The operations on PyTorch, one native call each: maps are (B, C, H, W), in the memory order of their device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, Self

import array_api_compat.torch as array_namespace
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import vaespec_torch.arrays  # noqa: F401  (registers tensors, generators and pytrees)
from vaespec import machine
from vaespec.machine import MemoryUse
from vaespec.ops import Layer, Padding
from vaespec.parameter import Parameter
from vaespec.reference import ReferenceOps
from vaespec_cpu.engine import Engine
from vaespec_torch.channels_last import PendingNorm, group_moments, has_triton, norm_near_zero
from vaespec_torch.upsampled import Upsampled2x
from vaespec_torch.views import as_numpy, as_tensor

CHANNELS_LAST = ("cuda",)
"""The kinds of device on which maps and kernels are stored as (B, H, W, C), which their convolutions want."""


def channels_last(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether maps and kernels are stored as (B, H, W, C); on a CPU, only in bfloat16.

    In float32 on a CPU, the sums of that order are 3 to 20 times less exact (oneDNN's convolutions, group_norm), and
    not faster.
    """
    return device.type in CHANNELS_LAST or (device.type == "cpu" and dtype == torch.bfloat16)


class TorchOps(ReferenceOps):
    """The operations on one device, in one dtype. None breaks autograd or `torch.compile(fullgraph=True)`."""

    compiles = False  # whether torch.compile makes the functions that run a model

    def __init__(self, device: str, dtype: str, precision: str = "default") -> None:
        super().__init__(array_namespace, dtype, torch.device(device))
        self.storage = getattr(torch, dtype)
        self.precision = precision

    @classmethod
    def like(cls, ops: Any) -> Self:
        """Return this class of ops, with the device, dtype and precision of others."""
        return cls(str(ops.device), ops.dtype, ops.precision)

    @property
    def on_engine(self) -> bool:
        """Whether the CPU engine computes if no gradient is wanted: it reads a CPU's tensors in place.

        Not in bfloat16 on a CPU that multiplies bfloat16 itself: there PyTorch is twice as fast.
        """
        native = self.dtype == "float64" or (self.dtype == "bfloat16" and machine.multiplies_bfloat16())
        return self.on_host and self.precision == "default" and not native

    @property
    def engine(self) -> Engine:
        return Engine(self.xp, self.dtype, self.layout, as_numpy, as_tensor)

    def needs_framework(self, *arrays: Tensor) -> bool:
        """Whether PyTorch itself must compute with these tensors: it records them for a gradient, or compiles."""
        return torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(t.requires_grad for t in arrays))

    def compile(self, model: Layer) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor]:
        run = super().compile(model)

        def run_unless_recorded(x: Tensor, params: Mapping[str, Tensor]) -> Tensor:
            return model(x, params, self) if self.needs_framework(x, *params.values()) else run(x, params)

        return run_unless_recorded

    def with_compiler(self) -> TorchOps:
        return CompilingOps.like(self)

    def inference_ops(self, params: Mapping[str, Tensor]) -> tuple[Any, Mapping[str, Any]]:
        if self.on_engine:
            return self.engine.ops(), self.engine.params(params)
        if self.precision == "default" and channels_last(self.device, self.storage):
            return ChannelsLastOps.like(self), params
        return self, params

    def apply(self, function: Callable[[Any, Mapping[str, Tensor]], Any], x: Any, params: Mapping[str, Tensor]) -> Any:
        switched = self.precision == "highest" and not torch.compiler.is_compiling()
        with true_float32() if switched else nullcontext():
            return function(x, params)

    def from_numpy(self, a: np.ndarray) -> Tensor:
        return as_tensor(a).to(device=self.device, dtype=self.storage, copy=True)  # a copy: its source may change

    def to_numpy(self, x: Tensor) -> np.ndarray:
        return as_numpy(x.detach().cpu())

    def from_host(self, a: np.ndarray) -> Tensor:
        return as_tensor(a).to(device=self.device, copy=True)

    def materialize(self, x: Tensor) -> Tensor:
        return x.detach()

    @property
    def on_host(self) -> bool:  # type: ignore[override]
        return self.device.type == "cpu"

    def memory(self) -> MemoryUse:
        if self.device.type != "cuda":
            return super().memory()  # Apple's GPU shares the memory of the process
        used = torch.cuda.memory_allocated(self.device)
        reserved = torch.cuda.memory_reserved(self.device) - used
        return MemoryUse(used, torch.cuda.mem_get_info(self.device)[0] + reserved)

    def workspace(self, op: str, x: tuple[int, ...], y: tuple[int, ...], kernel: tuple[int, ...] = ()) -> int:
        """On a CPU, oneDNN's convolutions reorder their input, then their result."""
        reordered = op == "conv2d" and self.on_host
        return reordered * max(math.prod(x), math.prod(y)) * self.storage.itemsize

    def cast(self, x: Tensor) -> Tensor:
        return x.to(device=self.device, dtype=self.storage)

    def is_array(self, x: object) -> bool:
        return isinstance(x, Tensor)

    def load_params(self, params: Mapping[str, np.ndarray], table: Mapping[str, Parameter]) -> dict[str, Tensor]:
        """Store kernels in the memory order that convolutions want, so that no run reorders them."""
        if self.on_engine:
            return self.engine.load_params(params, table)
        loaded = super().load_params(params, table).items()
        return {name: in_device_order(t) if t.ndim == 4 else t for name, t in loaded}

    def copy(self, x: Tensor) -> Tensor:
        """Copy in the order of the axes, which safetensors requires."""
        return x.clone(memory_format=torch.contiguous_format)

    def store(self, x: Tensor) -> Tensor:
        """Values alone of a module's parameter: it is the module that trains it."""
        x = x.full_tensor() if hasattr(x, "full_tensor") else x  # a DTensor, of which each process has a part
        x = self.copy(self.cast(x.detach() if isinstance(x, torch.nn.Parameter) else x))
        if self.on_engine:
            return self.engine.ordered(x, Tensor.contiguous)
        return in_device_order(x) if x.ndim == 4 else x

    def from_nchw(self, x: Tensor) -> Tensor:
        return in_device_order(x)

    def to_nchw(self, x: Tensor) -> Tensor:
        return x.contiguous()

    def conv2d(self, x: Tensor, w: Tensor, b: Tensor, *, stride: int, padding: Padding) -> Tensor:
        (top, bottom), (left, right) = padding
        w = in_device_order(w)  # those of functional() and of modules are contiguous
        if top == bottom and left == right:
            return F.conv2d(x, w, b, stride=stride, padding=(top, left))
        x = F.pad(x, (left, right, top, bottom))  # torch names the last axis first
        return F.conv2d(x, w, b, stride=stride)

    def group_norm(self, x: Tensor, scale: Tensor, shift: Tensor, *, groups: int, eps: float) -> Tensor:
        # If x is channels-last, CUDA's kernel copies it, and the CPU's computes E[x²] - E[x]², which cancels.
        y = torch.group_norm(x.contiguous(), groups, scale, shift, eps)  # F.group_norm refuses 1 x 1 maps
        return in_device_order(y)

    def normalize(self, x: Tensor, mean: Tensor, sigma2: Tensor, scale: Tensor, shift: Tensor, *, eps: float) -> Tensor:
        (B, C, H, W), wide = x.shape, mean.dtype
        scale, shift = (p.to(wide).expand(B, C).flatten() for p in (scale, shift))
        samples = x.reshape(1, B * C, H, W)  # the moments are per sample, a batch norm's are not
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
        q, k, v = (t.unsqueeze(1) for t in (q, k, v))  # PyTorch takes its fused kernels only with an axis of heads
        return F.scaled_dot_product_attention(q, k, v, scale=scale).squeeze(1)


class ChannelsLastOps(TorchOps):
    """TorchOps for one run without gradients, on maps that are stored as (B, H, W, C).

    A norm is deferred to the activation after it: with Triton, both are one pass. An upsampling is deferred to its
    convolution, which would read every pixel four times.
    """

    def conv2d(self, x: Tensor | Upsampled2x, w: Tensor, b: Tensor, *, stride: int, padding: Padding) -> Tensor:
        if isinstance(x, Upsampled2x):
            if x.suits(w, stride, padding):
                return x.convolved(w, b, padding)
            x = x.whole()
        return super().conv2d(x, w, b, stride=stride, padding=padding)

    def group_norm(self, x: Tensor, scale: Tensor, shift: Tensor, *, groups: int, eps: float) -> PendingNorm:  # type: ignore[override]
        return PendingNorm(x, scale, shift, groups, eps)

    def silu(self, x: Tensor | PendingNorm) -> Tensor:
        return super().silu(x) if isinstance(x, Tensor) else self._normalized(x, silu=True)

    def mish(self, x: Tensor | PendingNorm) -> Tensor:
        return super().mish(self._computed(x))

    def gelu(self, x: Tensor | PendingNorm) -> Tensor:
        return super().gelu(self._computed(x))

    def relu(self, x: Tensor | PendingNorm) -> Tensor:
        return super().relu(self._computed(x))

    def upsample_nearest2x(self, x: Tensor) -> Upsampled2x:  # type: ignore[override]
        return Upsampled2x.of(x)

    def rows(self, x: Tensor | Upsampled2x, start: int, stop: int) -> Tensor | Upsampled2x:
        return x.rows(start, stop) if isinstance(x, Upsampled2x) else super().rows(x, start, stop)

    def to_array(self, x: Tensor | Upsampled2x) -> Tensor:
        return x.whole() if isinstance(x, Upsampled2x) else x

    def tokens(self, x: Tensor | PendingNorm) -> Tensor:
        return super().tokens(self._computed(x))

    def _computed(self, x: Tensor | PendingNorm) -> Tensor:
        return x if isinstance(x, Tensor) else self._normalized(x)

    def _normalized(self, norm: PendingNorm, silu: bool = False) -> Tensor:
        """Compute a norm, and its SiLU if requested."""
        x, scale, shift, groups, eps = norm
        if has_triton(x):
            from vaespec_torch import group_norm  # which imports Triton

            if group_norm.suits(x.shape[1], groups):
                return group_norm.group_norm(x, scale, shift, groups=groups, eps=eps, silu=silu)
        y = norm_near_zero(norm) if self.on_host else None
        y = self.normalize(x, *group_moments(x, groups), scale, shift, eps=eps) if y is None else y
        return F.silu(y, inplace=True) if silu else y


class CompilingOps(TorchOps):
    """Runs what torch.compile makes of a model: one graph for the first shape, one for shapes that differ in a size.

    Where the CPU engine computes, it stays, since it is faster than the graph, and only what is recorded for a gradient
    is compiled. On CUDA each shape is recorded as a CUDA graph too (mode "reduce-overhead"); its results are copied,
    since the next run writes into the same memory.
    """

    compiles = True

    def compile(self, model: Layer) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor]:
        recorded = self.device.type == "cuda"

        def run(x: Tensor, params: Mapping[str, Tensor]) -> Tensor:
            return model(x, params, self)

        @cache
        def graph() -> Callable[[Tensor, Mapping[str, Tensor]], Tensor]:
            """Made when it is needed: to import the compiler takes seconds."""
            return torch.compile(run, mode="reduce-overhead" if recorded else None)

        engine = super().compile(model)

        def compiled(x: Tensor, params: Mapping[str, Tensor]) -> Tensor:
            if self.on_engine and not self.needs_framework(x, *params.values()):
                return engine(x, params)
            with true_float32() if self.precision == "highest" else nullcontext():
                y = graph()(x, params)
            return y.clone() if recorded else y

        return compiled

    def with_compiler(self) -> Self:
        """Already compiled: return self."""
        return self


def in_device_order(x: Tensor) -> Tensor:
    """Return a map or kernel in the memory order of its device; by moving axes, since vmap knows no memory formats."""
    if channels_last(x.device, x.dtype):
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.contiguous()


@contextmanager
def true_float32() -> Iterator[None]:
    """Inside, no product of float32 numbers is computed in TF32 or bfloat16, by cuDNN, cuBLAS or oneDNN.

    The settings belong to the process: products in other threads are slower meanwhile. Gradients, and graphs of
    torch.compile or torch.export, run later, in the precision that is set then: set
    torch.backends.fp32_precision = "ieee" for them.
    """
    backends: Any = torch.backends
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    switches = backends, cudnn, cudnn.conv, backends.cuda.matmul, mkldnn.conv, mkldnn.matmul
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

"""The operations on PyTorch: maps are NCHW tensors, one native call each."""

from __future__ import annotations

import array_api_compat.torch as array_namespace
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vaespec.ops import Padding, ReferenceOps


class TorchOps(ReferenceOps):
    """On one device, in one dtype. Nothing here breaks autograd."""

    def __init__(self, device: str, dtype: str) -> None:
        super().__init__(array_namespace, dtype, torch.device(device))
        self.storage = getattr(torch, dtype)

    def from_numpy(self, a: np.ndarray) -> Tensor:
        if a.dtype.name == "bfloat16":  # torch.from_numpy does not know ml_dtypes' type, but the bits are the same
            tensor = torch.from_numpy(np.array(a.view(np.int16))).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(np.array(a))  # a copy: the array may be read-only or mapped to a file
        return tensor.to(device=self.device, dtype=self.storage)

    def to_numpy(self, x: Tensor) -> np.ndarray:
        x = x.detach().cpu()
        if x.dtype == torch.bfloat16:
            import ml_dtypes

            return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return x.numpy()

    def cast(self, x: Tensor) -> Tensor:
        return x.to(device=self.device, dtype=self.storage)

    def is_array(self, x: object) -> bool:
        return isinstance(x, Tensor)

    def conv2d(self, x: Tensor, w: Tensor, b: Tensor, *, stride: int, padding: Padding) -> Tensor:
        (top, bottom), (left, right) = padding
        if top == bottom and left == right:
            return F.conv2d(x, w, b, stride=stride, padding=(top, left))
        x = F.pad(x, (left, right, top, bottom))  # torch names the last axis first
        return F.conv2d(x, w, b, stride=stride)

    def group_norm(self, x: Tensor, scale: Tensor, shift: Tensor, *, groups: int, eps: float) -> Tensor:
        return torch.group_norm(x, groups, scale, shift, eps)  # F.group_norm refuses 1 x 1 maps

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

    def linear(self, t: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.linear(t, w, b)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        q, k, v = (t.unsqueeze(1) for t in (q, k, v))  # without an axis of heads, the fused kernels are not taken
        return F.scaled_dot_product_attention(q, k, v, scale=scale).squeeze(1)

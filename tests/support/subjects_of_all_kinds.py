"""Backends and ports that are good, wrong, empty, or worse; the suite must judge each rightly."""

from __future__ import annotations

import os
import sys
import threading

import numpy as np

from vaespec import AutoencoderKL, ReferenceOps
from vaespec_conformance import Capabilities, Gap
from vaespec_numpy.ops import NumpyOps

GAP_IN_GELU = Gap("ops.gelu[float16]", "bug", "the tail is rounded", "https://example.org/1", until="2.0")


class Good:
    """NumPy's kernels under another name."""

    name = "good"
    framework = "numpy"
    dtypes = ("float32", "float16")

    def devices(self):
        return ("cpu",)

    def ops(self, device, dtype, precision):
        return self.Ops(dtype)

    class Ops(NumpyOps):
        pass


class Wrong(Good):
    """GroupNorm has a wrong epsilon."""

    name = "wrong"

    class Ops(NumpyOps):
        def group_norm(self, x, scale, shift, *, groups, eps):
            return super().group_norm(x, scale, shift, groups=groups, eps=10 * eps)


class Empty(Good):
    """Claims no dtype at all."""

    name = "empty"
    dtypes = ()


class Narrow(Good):
    """Does not claim float32, which is required."""

    name = "narrow"
    dtypes = ("float16",)


class Identity(Good):
    """Every operation returns its first argument."""

    name = "identity"

    class Ops(NumpyOps):
        def _itself(self, x, *args, **kwargs):
            return x

        conv2d = group_norm = silu = mish = gelu = relu = add = upsample_nearest2x = linear = attention = _itself


class Unfinished(Good):
    """Raises NotImplementedError everywhere."""

    name = "unfinished"

    class Ops(NumpyOps):
        def __getattribute__(self, name):
            raise NotImplementedError(name)


class Hangs(Good):
    """SiLU never ends."""

    name = "hangs"

    class Ops(NumpyOps):
        def silu(self, x):
            threading.Event().wait()


class Stuck(Good):
    """No operation ever ends."""

    name = "stuck"

    class Ops(NumpyOps):
        def _never(self, *args, **kwargs):
            threading.Event().wait()

        conv2d = group_norm = silu = mish = gelu = relu = add = upsample_nearest2x = linear = attention = _never


class Crashes(Good):
    """SiLU aborts the process."""

    name = "crashes"

    class Ops(NumpyOps):
        def silu(self, x):
            os.abort()


class Talks(Good):
    """Prints to stdout and reads from stdin."""

    name = "talks"

    def ops(self, device, dtype, precision):
        print("{}")
        assert sys.stdin.read() == ""
        return super().ops(device, dtype, precision)


class Declares(Good):
    """Declares a gap that it has."""

    name = "declares"
    gaps = (GAP_IN_GELU,)

    class Ops(NumpyOps):
        def gelu(self, x):
            return super().gelu(x) + np.asarray(self.dtype == "float16", x.dtype)


class DeclaresTooMuch(Declares):
    """Declares a gap that it does not have."""

    name = "declares-too-much"

    class Ops(NumpyOps):
        pass


class DeclaresTheCore(Wrong):
    """Declares a gap for a required check."""

    name = "declares-the-core"
    gaps = (Gap("ops.group_norm", "bug", "known"),)


class DeclaresNonsense(Good):
    """Declares a gap for a check that does not exist."""

    name = "declares-nonsense"
    gaps = (Gap("ops.grup_norm", "bug", "known"),)


class OverClaims(Good):
    """Claims bfloat16, but drops the lowest four bits."""

    name = "over-claims"
    dtypes = ("float32", "bfloat16")

    class Ops(NumpyOps):
        def from_numpy(self, a):
            x = super().from_numpy(a)
            return x if self.dtype == "float32" else (x.view(np.uint16) & 0xFFF0).view(x.dtype)


class UnderClaims(Good):
    """Declares capabilities without a dtype that works."""

    name = "under-claims"
    capabilities = Capabilities(("float32",), ("cpu",))


class Plain(Good):
    """No kernel of its own."""

    name = "plain"
    dtypes = ("float32",)

    def ops(self, device, dtype, precision):
        return ReferenceOps(np, dtype)


def port(config, weights):
    """Builds a whole VAE: vaespec's, behind the two methods."""
    return Port(config, weights)


class Port:
    def __init__(self, config, weights):
        self.vae = AutoencoderKL(config, weights, backend="numpy")

    def encode(self, x):
        posterior = self.vae.encode(x).latent_dist
        return posterior.mean, posterior.logvar

    def decode(self, z):
        return self.vae.decode(z).sample


class BrightPort(Port):
    """Decodes pictures that are a little too bright."""

    def decode(self, z):
        return super().decode(z) + 0.01

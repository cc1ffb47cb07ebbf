"""Is the wrong layer named? Faults planted in one layer of a right VAE, as a black box.

    python -m benchmarks.layer_faults            # every fault, on the narrow four-level config of SD 1
    python -m benchmarks.layer_faults --clean 20 # right ports, in as many seeds: nothing may be named

Prints for each fault what was named, and the time; at the end how many names were right.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vaespec import AutoencoderConfig
from vaespec.architecture import HALVES
from vaespec.dtypes import storage_dtype
from vaespec.reference import ReferenceOps
from vaespec_conformance.cases import models
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.layers import first_wrong_layer
from vaespec_conformance.subjects.subjects import PortSubject

CONFIG = models.narrow((32, 64, 128, 128), norm_num_groups=32, layers_per_block=2)
"""Four levels, 32 groups and two resnets a level, as in SD 1, at the narrowest width."""
SMALL = models.narrow((8, 16), layers_per_block=1)
ONE = np.float32(1)


# -- a right VAE, with a fault in one layer ----------------------------------------------------------------------------


class Changed:
    """Ops of which some operations are replaced by f(ops, *arguments, **numbers)."""

    def __init__(self, ops: ReferenceOps, **replaced: Callable[..., Any]) -> None:
        self.ops, self.replaced = ops, replaced

    def __getattr__(self, name: str) -> Any:
        return partial(self.replaced[name], self.ops) if name in self.replaced else getattr(self.ops, name)


class Port:
    """The specification in float32, layer by layer, with `fault(layer, x, params, ops)` in place of one layer."""

    def __init__(self, config, weights, *, at=None, fault=None):
        self.config, self.at, self.fault = config, at, fault
        self.params = {name: np.asarray(w, np.float32) for name, w in weights.items()}
        self.ops = ReferenceOps(np, "float32")

    def run(self, half, x):
        """Runs a half, with the fault in its layer."""
        x = np.asarray(x, np.float32)
        for layer in HALVES[half].build(self.config).layers:
            run = self.fault if layer.name == self.at else type(layer).__call__
            x = run(layer, x, self.params, self.ops)
        return x

    def encode(self, x):
        """The mean and the log-variance."""
        mean, logvar = np.split(self.run("encoder", x), 2, axis=1)
        return mean, logvar.clip(-30, 20)

    def decode(self, z):
        """The images."""
        return self.run("decoder", z)


def replacing(**methods):
    """A fault in the operations of a layer; `only` may limit it to one call of them."""
    return lambda layer, x, params, ops: layer(x, params, Changed(ops, **methods))


def only(call, method):
    """`method` for call number `call` of the operation, the right one for the others."""

    def fault(layer, x, params, ops):
        calls = iter(range(99))
        name = method.__name__.removeprefix("bad_")

        def chosen(ops, *arguments, **numbers):
            if next(calls) == call:
                return method(ops, *arguments, **numbers)
            return getattr(ops, name)(*arguments, **numbers)

        return layer(x, params, Changed(ops, **{name: chosen}))

    return fault


def weights(change):
    """A fault in the weights of a layer: change(params, name of the layer) -> the weights that it uses."""
    return lambda layer, x, params, ops: layer(x, {**params, **change(params, layer.name)}, ops)


def after(change):
    """A fault in the result of a layer."""
    return lambda layer, x, params, ops: change(layer(x, params, ops)).astype(np.float32)


def norm(**changes):
    """Norms with other numbers."""

    def bad_group_norm(ops, x, scale, shift, **numbers):
        return ops.group_norm(x, scale, shift, **{**numbers, **changes})

    return bad_group_norm


def bare_norm(ops, x, scale, shift, **numbers):
    """A norm without scale and shift."""
    return ops.group_norm(x, np.ones_like(scale), np.zeros_like(shift), **numbers)


bare_norm.__name__ = "bad_group_norm"


def kernel(change, bias=lambda b: b):
    """A convolution with a changed kernel or bias."""

    def bad_conv2d(ops, x, w, b, **numbers):
        return ops.conv2d(x, np.ascontiguousarray(change(w)), bias(b), **numbers)

    return bad_conv2d


def no_tap(w):
    """A kernel whose upper right number is zero."""
    w = w.copy()
    w[:, :, 0, -1] = 0
    return w


def padded(mode):
    """A convolution with another border."""

    def bad_conv2d(ops, x, w, b, *, stride, padding):
        x = np.pad(x, ((0, 0), (0, 0), *padding), mode=mode)
        return ops.conv2d(x, w, b, stride=stride, padding=((0, 0), (0, 0)))

    return bad_conv2d


def all_sides(ops, x, w, b, *, stride, padding):
    """A convolution with zeros on all sides."""
    return ops.conv2d(x, w, b, stride=stride, padding=((1, 1), (1, 1)))


def same_padding(ops, x, w, b, *, stride, padding):
    """TensorFlow's SAME at stride 2."""
    sides = tuple((n % 2, 1) for n in x.shape[2:])
    return ops.conv2d(x, w, b, stride=stride, padding=sides)


def act(function):
    """Another activation."""

    def bad_silu(ops, x):
        return function(x).astype(np.float32)

    return bad_silu


def relu(x):
    """max(x, 0)."""
    return np.maximum(x, 0)


def tanh_gelu(x):
    """GELU by tanh."""
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def attend(scale=None, axis=-1, order="qkv"):
    """Attention with another scale, another axis of the softmax, or other roles."""

    def bad_attention(ops, q, k, v, **numbers):
        q, k, v = ({"q": q, "k": k, "v": v}[name] for name in order)
        logits = (numbers["scale"] if scale is None else scale(q.shape[-1])) * q @ k.transpose(0, 2, 1)
        e = np.exp(logits - logits.max(axis, keepdims=True))
        return (e / e.sum(axis, keepdims=True) @ v).astype(np.float32)

    return bad_attention


def linear(change, bias=lambda b: b):
    """A linear map with a changed weight or bias."""

    def bad_linear(ops, t, w, b):
        return ops.linear(t, change(w), bias(b))

    return bad_linear


def bilinear(ops, x):
    """Upsampling that interpolates."""
    for axis in (2, 3):
        near = np.concatenate([x.take([0], axis), x, x.take([-1], axis)], axis)
        n = x.shape[axis]
        low = 0.25 * near.take(range(n), axis) + 0.75 * x
        high = 0.75 * x + 0.25 * near.take(range(2, n + 2), axis)
        x = np.stack([low, high], axis + 1).reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
    return x


def stale(other, *parts):
    """The weights of another layer of the same shapes."""
    return weights(
        lambda p, name: {
            k: p[k.replace(name, other)] for k in p if k.startswith(name + ".") and any(s in k for s in parts)
        }
    )


def skip(factor):
    """A residual connection that scales its input."""
    return replacing(add=lambda ops, x, y: factor * x + y)


def drop(channel):
    """A result with one channel of zeros."""

    def change(y):
        y = y.copy()
        y[:, channel] = 0
        return y

    return after(change)


def narrow(dtype):
    """A result that is rounded to 16 bits."""
    return after(lambda y: y.astype(storage_dtype(dtype)).astype(np.float32))


def identity_shortcut(layer, x, params, ops):
    """Channels are repeated or cut off, where a convolution belongs."""
    w = np.zeros_like(params[f"{layer.name}.conv_shortcut.weight"])
    w[np.arange(len(w)), np.arange(len(w)) % w.shape[1]] = 1
    return layer(x, {**params, f"{layer.name}.conv_shortcut.weight": w}, ops)


def normed_skip(layer, x, params, ops):
    """The residual connection adds the normalized input."""
    g = f"{layer.name}.norm1" if f"{layer.name}.norm1.weight" in params else f"{layer.name}.group_norm"
    n = ops.group_norm(x, params[f"{g}.weight"], params[f"{g}.bias"], groups=layer.groups, eps=1e-6)
    return layer(x, params, ops) - x + n


def swapped(w):
    """A kernel with height and width swapped."""
    return w.swapaxes(2, 3)


def transposed(w):
    """A kernel with its channels swapped."""
    return w.transpose(1, 0, *range(2, w.ndim)) if w.shape[0] == w.shape[1] else w


@dataclass(frozen=True)
class Fault:
    """A fault: in which half and layer, and what it is."""

    layer: str
    what: str
    fault: Callable[..., Any]

    @property
    def half(self):
        """The half that has the layer."""
        return "encoder" if self.layer.startswith(("encoder", "quant")) else "decoder"

    @property
    def expected(self):
        """The name that is to be found."""
        return self.layer.replace("conv_act", "conv_norm_out")


E, D = "encoder", "decoder"
FAULTS = [
    Fault(f"{E}.conv_in", "bias missing", replacing(conv2d=kernel(lambda w: w, lambda b: 0 * b))),
    Fault(f"{E}.conv_in", "kernel height and width swapped", replacing(conv2d=kernel(lambda w: w.swapaxes(2, 3)))),
    Fault(f"{D}.conv_in", "kernel flipped", replacing(conv2d=kernel(lambda w: w[:, :, ::-1, ::-1]))),
    Fault(f"{D}.conv_in", "border repeated", replacing(conv2d=padded("edge"))),
    Fault(f"{E}.down_blocks.0.resnets.0", "eps 1e-5 in norm1", only(0, norm(eps=1e-5))),
    Fault(f"{E}.down_blocks.0.resnets.1", "norm2 with half the groups", only(1, norm(groups=16))),
    Fault(f"{E}.down_blocks.1.resnets.0", "shortcut repeats channels", identity_shortcut),
    Fault(f"{E}.down_blocks.1.resnets.0", "skip missing", skip(0)),
    Fault(f"{E}.down_blocks.1.resnets.1", "conv1 kernel transposed", only(0, kernel(transposed))),
    Fault(f"{E}.down_blocks.2.resnets.0", "relu for the first silu", only(0, act(relu))),
    Fault(f"{E}.down_blocks.2.resnets.1", "skip missing", skip(0)),
    Fault(f"{E}.down_blocks.3.resnets.0", "conv2 without a tap", only(1, kernel(no_tap))),
    Fault(f"{E}.down_blocks.3.resnets.1", "weights of another", stale(f"{E}.down_blocks.3.resnets.0", "conv1")),
    Fault(f"{E}.down_blocks.0.downsamplers.0", "zeros on all sides", replacing(conv2d=all_sides)),
    Fault(f"{E}.down_blocks.1.downsamplers.0", "SAME", replacing(conv2d=same_padding)),
    Fault(f"{E}.down_blocks.1.downsamplers.0", "kernel transposed", replacing(conv2d=kernel(transposed))),
    Fault(f"{E}.down_blocks.2.downsamplers.0", "bias sign", replacing(conv2d=kernel(lambda w: w, lambda b: -b))),
    Fault(f"{E}.mid_block.resnets.0", "second activation missing", only(1, act(lambda x: x))),
    Fault(f"{E}.mid_block.resnets.1", "eps 1e-5 in norm2", only(1, norm(eps=1e-5))),
    Fault(f"{E}.mid_block.attentions.0", "not scaled", replacing(attention=attend(lambda c: 1.0))),
    Fault(f"{E}.mid_block.attentions.0", "softmax over queries", replacing(attention=attend(axis=-2))),
    Fault(f"{E}.mid_block.attentions.0", "skip missing", skip(0)),
    Fault(f"{E}.mid_block.attentions.0", "eps 1e-5", replacing(group_norm=norm(eps=1e-5))),
    Fault(f"{E}.conv_act", "norm without scale and shift", replacing(group_norm=bare_norm)),
    Fault(f"{E}.conv_act", "eps 1e-5", replacing(group_norm=norm(eps=1e-5))),
    Fault(f"{E}.conv_act", "half the groups", replacing(group_norm=norm(groups=16))),
    Fault(f"{E}.conv_out", "bias missing", replacing(conv2d=kernel(lambda w: w, lambda b: 0 * b))),
    Fault("quant_conv", "kernel transposed", replacing(conv2d=kernel(transposed))),
    Fault("quant_conv", "bias missing", replacing(conv2d=kernel(lambda w: w, lambda b: 0 * b))),
    Fault("post_quant_conv", "left out", lambda layer, x, params, ops: x),
    Fault("post_quant_conv", "bias missing", replacing(conv2d=kernel(lambda w: w, lambda b: 0 * b))),
    Fault(f"{D}.mid_block.resnets.0", "skip doubled", skip(2)),
    Fault(f"{D}.mid_block.resnets.0", "skip from the norm", normed_skip),
    Fault(f"{D}.mid_block.resnets.1", "one channel zero", drop(5)),
    Fault(f"{D}.mid_block.attentions.0", "queries and values swapped", replacing(attention=attend(order="vkq"))),
    Fault(f"{D}.mid_block.attentions.0", "value weights transposed", only(2, linear(lambda w: w.T))),
    Fault(f"{D}.mid_block.attentions.0", "output bias missing", only(3, linear(lambda w: w, lambda b: 0 * b))),
    Fault(f"{D}.mid_block.attentions.0", "one channel zero", drop(7)),
    Fault(f"{D}.up_blocks.0.resnets.1", "bfloat16", narrow("bfloat16")),
    Fault(f"{D}.up_blocks.0.resnets.2", "conv1 height and width swapped", only(0, kernel(swapped))),
    Fault(f"{D}.up_blocks.1.resnets.0", "gelu for the second silu", only(1, act(tanh_gelu))),
    Fault(f"{D}.up_blocks.1.resnets.2", "border mirrored in conv2", only(1, padded("reflect"))),
    Fault(f"{D}.up_blocks.2.resnets.0", "shortcut bias missing", only(2, kernel(lambda w: w, lambda b: 0 * b))),
    Fault(f"{D}.up_blocks.2.resnets.0", "shortcut cuts channels off", identity_shortcut),
    Fault(f"{D}.up_blocks.3.resnets.1", "norm1 without scale and shift", only(0, bare_norm)),
    Fault(f"{D}.up_blocks.3.resnets.2", "eps 1e-5 in norm2", only(1, norm(eps=1e-5))),
    Fault(f"{D}.up_blocks.3.resnets.2", "skip missing", skip(0)),
    Fault(f"{D}.up_blocks.0.upsamplers.0", "bilinear", replacing(upsample_nearest2x=bilinear)),
    Fault(f"{D}.up_blocks.1.upsamplers.0", "bilinear", replacing(upsample_nearest2x=bilinear)),
    Fault(f"{D}.up_blocks.2.upsamplers.0", "kernel flipped", replacing(conv2d=kernel(lambda w: w[:, :, ::-1, ::-1]))),
    Fault(f"{D}.up_blocks.2.upsamplers.0", "weights of another", stale(f"{D}.up_blocks.1.upsamplers.0", "weight")),
    Fault(f"{D}.conv_act", "relu", replacing(silu=act(relu))),
    Fault(f"{D}.conv_act", "activation missing", replacing(silu=act(lambda x: x))),
    Fault(f"{D}.conv_act", "one group", replacing(group_norm=norm(groups=1))),
    Fault(f"{D}.conv_out", "kernel height and width swapped", replacing(conv2d=kernel(lambda w: w.swapaxes(2, 3)))),
    Fault(f"{D}.conv_out", "border repeated", replacing(conv2d=padded("edge"))),
]  # fmt: skip


def fits(fault: Fault, config: AutoencoderConfig) -> bool:
    """Whether the config has the layer."""
    return any(layer.name == fault.layer for layer in HALVES[fault.half].build(config).layers)


def subject(fault: Fault | None = None) -> PortSubject:
    """A port with the fault, or a right one."""
    at, planted = (fault.layer, fault.fault) if fault else (None, None)
    return PortSubject(partial(Port, at=at, fault=planted), "planted")


def trial(config, half, regime, seed):
    """The weights and the input of a failed case."""
    case = Case.of(config=json.dumps(config.to_dict()), regime=regime, size=(4, 5), more=0, seed=seed)
    inputs = models.images if half == "encoder" else models.latents
    return {"weights": models.weights(case, "float32"), "x": inputs(case, "float32")}


def main():
    """Examines every fault, or right ports."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clean", type=int, default=0, help="examine a right port in as many seeds instead")
    parser.add_argument("--only", default="", help="faults whose layer or name contains this")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    config = SMALL if options.small else CONFIG
    if options.clean:
        named = [
            first_wrong_layer(subject(), config, half=half, **trial(config, half, regime, seed))
            for seed in range(options.clean)
            for half in HALVES
            for regime in models.REGIMES
        ]
        return print(f"{sum(found is not None for found in named)} of {len(named)} right VAEs have a layer named")
    counts = dict.fromkeys(("right", "wrong", "none"), 0)
    for fault in FAULTS:
        if options.only not in f"{fault.layer} {fault.what}" or not fits(fault, config):
            continue
        began = time.perf_counter()
        found = first_wrong_layer(subject(fault), config, half=fault.half)
        verdict = "none" if found is None else "right" if found.layer == fault.expected else "wrong"
        counts[verdict] += 1
        seconds = time.perf_counter() - began
        said = found and (found.name, found.how, found.cause)
        print(f"{verdict:5}  {seconds:5.1f} s  {fault.layer}: {fault.what}  ->  {said}", flush=True)
    print(counts)


if __name__ == "__main__":
    main()

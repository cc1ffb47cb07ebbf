"""Mistakes in some layers only, or in the order of layers: operations that know in which layer they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vaespec.analysis.observe import WatchedParams
from vaespec.reference import ReferenceOps
from vaespec_conformance.mutants.mutant import (
    as_map,
    builder,
    changed_ops,
    formula,
    map_numbers,
    method,
    named,
    operation,
    with_methods,
)

IN_16_BITS = {dtype: "norms of some layers alone may hide in rounding" for dtype in ("bfloat16", "float16")}


def _eps_where(chosen: Callable[[str], bool]) -> Callable[[ReferenceOps], ReferenceOps]:
    """Changes eps in the norms whose name is chosen."""

    def change(ops: ReferenceOps) -> ReferenceOps:
        run, norm = type(ops).run, type(ops).group_norm

        def run_watched(self: Any, layer: Any, x: Any, params: Any) -> Any:
            self.reading = WatchedParams(params)
            return run(self, layer, x, self.reading)

        def group_norm(self: Any, x: Any, scale: Any, shift: Any, *, groups: int, eps: float) -> Any:
            name = self.reading.last if hasattr(self, "reading") else ""
            return norm(self, x, scale, shift, groups=groups, eps=1e-5 if chosen(name) else eps)

        return with_methods(ops, run=run_watched, group_norm=group_norm)

    return change


SOME_NORMS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "eps_1e_5_in_attention": ("the attention's norm", lambda name: ".group_norm." in name),
    "eps_1e_5_in_resnets": ("the norms of the resnets", lambda name: ".norm1." in name or ".norm2." in name),
    "eps_1e_5_in_conv_norm_out": ("conv_norm_out", lambda name: "conv_norm_out" in name),
}

for _name, (_where, _chosen) in SOME_NORMS.items():
    changed_ops("model.encode", seen_in_ports="model.encode", equivalent_in=IN_16_BITS)(
        named(_name, f"eps is 1e-5, not 1e-6, in {_where} only.", _eps_where(_chosen))
    )


@operation("conv2d", "model.encode", seen_in_ports="model.encode")
def conv2d_same_at_stride_2(ops: Any, call: Any, x: Any, w: Any, b: Any, *, stride: int, padding: Any) -> Any:
    """The padding at stride 2 is TensorFlow's "SAME", which differs on odd sizes."""
    if stride == 2:
        padding = tuple((n % 2, 1) for n in map_numbers(ops, x).shape[2:])
    return call(x, w, b, stride=stride, padding=padding)


@formula("conv2d", "blocks.shortcut", seen_in_ports="model.encode")
def shortcut_without_its_kernel(x: np.ndarray, w: np.ndarray, b: np.ndarray, **numbers: Any) -> np.ndarray:
    """The convolution of the shortcut is left out: channels are repeated or cut off."""
    outputs, inputs, *kernel = w.shape
    if kernel != [1, 1] or outputs == inputs:
        return ReferenceOps(np).conv2d(x, w, b, **numbers)
    return x[:, np.arange(outputs) % inputs] + b[:, np.newaxis, np.newaxis]


@formula("upsample_nearest2x", "structure.upsample", seen_in_ports="model.decode")
def upsample_bilinear(x: np.ndarray) -> np.ndarray:
    """Upsampling is bilinear, not by repeating each pixel."""
    for axis in (2, 3):
        x = np.moveaxis(x, axis, -1)
        before = np.concatenate((x[..., :1], x[..., :-1]), -1)
        after = np.concatenate((x[..., 1:], x[..., -1:]), -1)
        doubled = np.stack((0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after), -1)
        x = np.moveaxis(doubled.reshape(*x.shape[:-1], -1), -1, axis)
    return x


@method("encode", "model.encode")
def encode_returns_the_deviation(vae: Any, call: Any, x: np.ndarray) -> Any:
    """encode returns the standard deviation in the place of the log-variance."""
    mean, logvar = call(x)
    return mean, np.exp(0.5 * logvar.astype(np.float64))


@method("encode", "model.encode")
def encode_expects_images_from_0_to_1_halved(vae: Any, call: Any, x: np.ndarray) -> Any:
    """encode maps its images from [-1, 1] to [0, 1] first; its layers take [-1, 1]."""
    return call(x / 2 + 0.5)


@builder("model.decode")
def middle_attention_left_out(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """The attention of the middle is left out."""
    kept = {name: 0 * w if "mid_block.attentions" in name and "to_out" in name else w for name, w in weights.items()}
    return factory(config, kept, dtype)


@builder("model.decode")
def middle_resnets_swapped(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """The two resnets of the middle are swapped."""
    turn = {"mid_block.resnets.0": "mid_block.resnets.1", "mid_block.resnets.1": "mid_block.resnets.0"}

    def other(name: str) -> str:
        old = next((old for old in turn if old in name), None)
        return name.replace(old, turn[old]) if old else name

    return factory(config, {other(name): w for name, w in weights.items()}, dtype)


@method("decode", "model.decode")
def decode_reads_latents_as_nhwc(vae: Any, call: Any, z: np.ndarray) -> Any:
    """Latents (B, C, H, W) are read as (B, H, W, C) if the last axis has as many numbers as there are channels."""
    if z.shape[3] != z.shape[1]:
        return call(z)
    return call(z.transpose(0, 3, 1, 2))


@method("encode", "model.encode")
def encode_returns_nhwc(vae: Any, call: Any, x: np.ndarray) -> Any:
    """encode returns (B, H, W, C), not (B, C, H, W)."""
    return tuple(part.transpose(0, 2, 3, 1) for part in call(x))


@operation("pixels", "structure.pixels", seen_in_ports="model.decode")
def pixels_reshaped_without_turning(ops: Any, call: Any, t: Any, like: Any) -> Any:
    """Tokens (B, N, C) are reshaped to (B, C, H, W) without turning their axes first."""
    tokens = map_numbers(ops, call(t, like))
    B, C, H, W = tokens.shape
    return as_map(ops, tokens.reshape(B, C, H * W).transpose(0, 2, 1).reshape(B, C, H, W))


@builder("model.decode", equivalent_in=dict.fromkeys(("bfloat16", "float16", "float64"), "it is tried in float32"))
def post_quant_conv_by_the_other_flag(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """post_quant_conv is applied only if use_quant_conv is set: the two flags are confused."""
    if config.use_post_quant_conv and not config.use_quant_conv:
        eye = np.eye(config.latent_channels)[:, :, None, None]
        weights = {**weights, "post_quant_conv.weight": eye, "post_quant_conv.bias": np.zeros(len(eye))}
    return factory(config, weights, dtype)

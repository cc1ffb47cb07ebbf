"""Correct variants: subjects that compute the right result in another way, and that every check must let pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vaespec.analysis.rounding import rounded
from vaespec.reference import ReferenceOps
from vaespec_conformance.judging.registry import DTYPES
from vaespec_conformance.mutants.loading import NEWER_NAMES, build_renamed
from vaespec_conformance.mutants.mutant import (
    Decorator,
    Function,
    Wrap,
    altering,
    as_map,
    changing_ops,
    computing,
    map_numbers,
    named,
    with_methods,
    with_vae_methods,
)
from vaespec_conformance.mutants.products import SPECIFICATION
from vaespec_conformance.mutants.tiling import Tiles, decode_in_tiles, encode_in_tiles

IN_FLOAT32 = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Variant:
    """A correct way to compute, in the given dtypes: float32 arithmetic is not correct in float64."""

    wrap: Wrap
    dtypes: tuple[str, ...] = DTYPES


BENIGN: dict[str, Variant] = {}


def _variant(make_wrap: Callable[[Function], Wrap], dtypes: tuple[str, ...] = DTYPES) -> Decorator:
    """A decorator that registers a function as a variant, under its name."""

    def register(function: Function) -> Function:
        BENIGN[function.__name__] = Variant(make_wrap(function), dtypes)
        return function

    return register


def _formula(op: str, dtypes: tuple[str, ...] = IN_FLOAT32) -> Decorator:
    """The function below is another formula for an operation."""
    return _variant(lambda function: changing_ops(computing(op, function)), dtypes)


def _method(name: str) -> Decorator:
    """The function below, f(vae, call, *arguments), replaces a method of the VAE."""
    return _variant(lambda function: with_vae_methods(**{name: function}))


# -- Winograd's convolutions ------------------------------------------------------------------------------------------


def _transforms(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(Aᵀ, G, Bᵀ) of F(m, 3) by Cook and Toom, from points 0, 1, -1, 2, -2, ½, -½ and ∞: Lavin & Gray, 1509.09308."""
    n = m + 2
    points = np.array([0, 1, -1, 2, -2, 0.5, -0.5])[: n - 1]
    powers = points[:, None] ** np.arange(n)
    at_infinity = np.eye(n)[-1]
    evaluate_kernel = np.vstack((powers[:, :3], np.eye(3)[-1]))
    evaluate_output = np.vstack((powers[:, :m], np.eye(m)[-1]))
    evaluate_product = np.vstack((powers, at_infinity))
    return evaluate_output.T, evaluate_kernel, np.linalg.inv(evaluate_product).T


def _winograd(m: int) -> Callable[..., np.ndarray]:
    """A convolution that transforms 3 × 3 kernels of stride 1, in float32, m × m pixels at a time."""
    A, G, B = (t.astype(np.float32) for t in _transforms(m))

    def convolve(x: np.ndarray, w: np.ndarray, b: np.ndarray, *, stride: int, padding: Any) -> np.ndarray:
        if stride != 1 or w.shape[2] != 3:
            return SPECIFICATION.conv2d(x, w, b, stride=stride, padding=padding)
        x = np.pad(x, ((0, 0), (0, 0), *padding))
        H, W = x.shape[2] - 2, x.shape[3] - 2
        rows, columns = -(-H // m), -(-W // m)
        x = np.pad(x, ((0, 0), (0, 0), (0, rows * m - H), (0, columns * m - W))).astype(np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(x, (m + 2, m + 2), (2, 3))[:, :, ::m, ::m]
        u = np.einsum("ij,ocjk,lk->ilco", G, w.astype(np.float32), G)
        v = np.einsum("ij,bcyxjk,lk->ilbyxc", B, windows, B)
        product = np.einsum("ilbyxc,ilco->ilbyxo", v, u)
        y = np.einsum("pi,ilbyxo,ql->boypxq", A, product, A)
        return y.reshape(len(x), -1, rows * m, columns * m)[:, :, :H, :W] + b[:, None, None]

    return convolve


WINOGRAD = {"conv2d_by_winograd_f2": 2, "conv2d_by_winograd_f4": 4, "conv2d_by_winograd_f6": 6}

for _name, _m in WINOGRAD.items():
    _formula("conv2d")(named(_name, "", _winograd(_m)))


# -- other orders of sums ----------------------------------------------------------------------------------------------


def _parts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three bfloat16 numbers whose sum is a float32 number."""
    high = rounded(x, "bfloat16")
    middle = rounded(x - high, "bfloat16")
    return high, middle, rounded(x - high - middle, "bfloat16")


@_formula("conv2d")
def conv2d_by_three_bfloat16_products(x: np.ndarray, w: np.ndarray, b: np.ndarray, **numbers: Any) -> np.ndarray:
    """Sums three products of bfloat16 parts for one float32 product."""
    (x0, x1, _), (w0, w1, _), none = _parts(x), _parts(w), 0 * b
    convolve: Any = partial(SPECIFICATION.conv2d, **numbers)
    return convolve(x0, w0, b) + convolve(x0, w1, none) + convolve(x1, w0, none)


@_formula("conv2d")
def conv2d_sums_in_reverse(x: np.ndarray, w: np.ndarray, b: np.ndarray, **numbers: Any) -> np.ndarray:
    """Sums the input channels in reverse order, in float32."""
    order = slice(None, None, -1)
    x, w, b = (a.astype(np.float32) for a in (x[:, order], w[:, order], b))
    return ReferenceOps(np, "float32").conv2d(x, w, b, **numbers)


@_formula("conv2d")
def conv2d_channel_by_channel(x: np.ndarray, w: np.ndarray, b: np.ndarray, **numbers: Any) -> np.ndarray:
    """Adds one input channel at a time and rounds each sum to float32, like a naive loop."""
    y = np.float32(0)
    for c in range(x.shape[1]):
        y = (y + SPECIFICATION.conv2d(x[:, c : c + 1], w[:, c : c + 1], 0 * b, **numbers)).astype(np.float32)
    return y + b[:, None, None].astype(np.float32)


@_formula("group_norm")
def group_norm_by_welford(
    x: np.ndarray, scale: np.ndarray, shift: np.ndarray, *, groups: int, eps: float
) -> np.ndarray:
    """Updates mean and squares with one number at a time, in float32."""
    B = len(x)
    x_g = x.reshape(B, groups, -1).astype(np.float32)
    mean, squares = np.zeros((B, groups), np.float32), np.zeros((B, groups), np.float32)
    for i in range(x_g.shape[2]):
        delta = x_g[..., i] - mean
        mean += delta / np.float32(i + 1)
        squares += delta * (x_g[..., i] - mean)
    sigma2 = squares / np.float32(x_g.shape[2])
    x_hat = (x_g - mean[..., None]) / np.sqrt(sigma2 + np.float32(eps))[..., None]
    return x_hat.reshape(x.shape) * scale[:, None, None] + shift[:, None, None]


@_formula("group_norm")
def group_norm_with_fused_scale(
    x: np.ndarray, scale: np.ndarray, shift: np.ndarray, *, groups: int, eps: float
) -> np.ndarray:
    """γ' (x - μ) + β with γ' = γ / √(σ² + ε)."""
    B, C = x.shape[:2]
    x_g = x.reshape(B, groups, -1).astype(np.float32)
    mean = x_g.mean(-1, keepdims=True)
    sigma2 = (x_g - mean).var(-1, keepdims=True)
    factor = np.repeat(1 / np.sqrt(sigma2 + np.float32(eps)), C // groups, axis=1)[..., 0] * scale.astype(np.float32)
    centred = (x_g - mean).reshape(x.shape)
    return centred * factor[..., None, None] + shift[:, None, None]


@_formula("silu")
def silu_by_tanh(x: np.ndarray) -> np.ndarray:
    """x (½ + ½ tanh(x / 2)) in float32. Its left tail cancels, which the budget allows."""
    x = x.astype(np.float32)
    return x * (np.float32(0.5) + np.float32(0.5) * np.tanh(x / 2))


@_formula("attention")
def attention_in_chunks(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float) -> np.ndarray:
    """Merges chunks of keys with their largest logits, in float32, as flash attention does."""
    q, k, v = (t.astype(np.float32) for t in (q, k, v))
    return ReferenceOps(np, "float32").chunked_attention(q, k, v, scale=scale, size=3)


@_formula("linear", DTYPES)
def linear_as_convolution(t: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes a linear map as a 1 × 1 convolution."""
    x = t.transpose(0, 2, 1)[..., None]
    y = SPECIFICATION.conv2d(x, w[:, :, None, None], b, stride=1, padding=((0, 0), (0, 0)))
    return y[..., 0].transpose(0, 2, 1)


# -- around the operations --------------------------------------------------------------------------------------------


@_variant(changing_ops)
def operations_round_to_storage(ops: ReferenceOps) -> ReferenceOps:
    """Rounds each result to the storage dtype, like frameworks that compute elementwise in 16 bits."""

    def method(op: str) -> Callable[..., Any]:
        call = getattr(type(ops), op)
        return lambda self, *arguments, **numbers: as_map(self, map_numbers(self, call(self, *arguments, **numbers)))

    return with_methods(ops, **{op: method(op) for op in ("conv2d", "group_norm", "silu", "mish", "add")})


@_variant(changing_ops)
def from_numpy_in_fortran_order(ops: ReferenceOps) -> ReferenceOps:
    """Stores arrays in Fortran order."""
    call = type(ops).from_numpy
    return with_methods(ops, from_numpy=lambda self, a: call(self, np.asfortranarray(a)))


@_method("tiled_decode")
def tiled_decode_by_diffusers_loops(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """Decodes tile by tile in two loops."""
    return decode_in_tiles(Tiles(), vae, z)


@_method("tiled_encode")
def tiled_encode_by_diffusers_loops(vae: Any, call: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encodes tile by tile in two loops."""
    return encode_in_tiles(Tiles(), vae, x)


@_method("sample")
def sample_by_formula(vae: Any, call: Any, x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Computes mean + e^(logvar / 2) · noise."""
    mean, logvar = (part.astype(np.float64) for part in vae.encode(x))
    return mean + np.exp(0.5 * logvar) * noise


@_method("decode_latents")
def decode_latents_by_formula(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """Decodes z / scale + shift; FLUX.2 has no scale."""
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0
    return vae.decode(z / scale + shift) if scale else call(z)


@_method("decode")
def decode_of_a_doubled_batch(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """Decodes the batch twice in one call and drops the copy."""
    return call(np.concatenate((z, z)))[: len(z)]


@_variant(lambda build: altering(lambda factory: partial(build, factory)))
def built_from_older_names(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """Builds from weights under older names or newer ones."""
    return build_renamed(NEWER_NAMES, False, factory, config, weights, dtype)

"""What is right, and computed otherwise: variants that every check must let pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vaespec.analysis.rounding import rounded
from vaespec.reference import ReferenceOps
from vaespec_conformance.judging.registry import DTYPES
from vaespec_conformance.mutants.loading import NAMES, renamed
from vaespec_conformance.mutants.mutant import (
    ChangedVae,
    Wrap,
    altering,
    as_map,
    changing_ops,
    formula_of,
    map_numbers,
    with_methods,
)
from vaespec_conformance.mutants.products import SPECIFICATION
from vaespec_conformance.mutants.tiling import Tiles, decoded, encoded


@dataclass(frozen=True)
class Variant:
    """A way to be right, in these dtypes: what is written in float32's arithmetic is not right in float64."""

    wrap: Wrap
    dtypes: tuple[str, ...] = DTYPES


BENIGN: dict[str, Variant] = {}
IN_FLOAT32 = ("float32", "bfloat16", "float16")


def _formula(
    op: str, name: str, dtypes: tuple[str, ...] = IN_FLOAT32
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The function below is another formula for an operation."""

    def register(formula: Callable[..., Any]) -> Callable[..., Any]:
        BENIGN[f"{op}: {name}"] = Variant(changing_ops(formula_of(op, formula)), dtypes)
        return formula

    return register


# -- Winograd's convolutions ------------------------------------------------------------------------------------------


def _transforms(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(Aᵀ, G, Bᵀ) of F(m, 3), by Cook and Toom: from points 0, 1, -1, 2, -2, ½, -½, and ∞. Lavin & Gray, 1509.09308."""
    n = m + 2
    points = np.array([0, 1, -1, 2, -2, 0.5, -0.5])[: n - 1]
    powers = points[:, None] ** np.arange(n)
    at_infinity = np.eye(n)[-1]
    evaluate_kernel = np.vstack((powers[:, :3], np.eye(3)[-1]))
    evaluate_output = np.vstack((powers[:, :m], np.eye(m)[-1]))
    evaluate_product = np.vstack((powers, at_infinity))
    return evaluate_output.T, evaluate_kernel, np.linalg.inv(evaluate_product).T


def _winograd(m: int) -> Callable[..., np.ndarray]:
    """A convolution whose 3 × 3 kernels of stride 1 are transformed, in float32, m × m pixels at a time."""
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


for _m in (2, 4, 6):
    _formula("conv2d", f"Winograd F{_m}")(_winograd(_m))


# -- other sums -------------------------------------------------------------------------------------------------------


def _parts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three bfloat16 numbers whose sum is a float32."""
    high = rounded(x, "bfloat16")
    middle = rounded(x - high, "bfloat16")
    return high, middle, rounded(x - high - middle, "bfloat16")


@_formula("conv2d", "three bfloat16 products")
def _(x: np.ndarray, w: np.ndarray, b: np.ndarray, **how: Any) -> np.ndarray:
    (x0, x1, _), (w0, w1, _), none = _parts(x), _parts(w), 0 * b
    convolve: Any = partial(SPECIFICATION.conv2d, **how)
    return convolve(x0, w0, b) + convolve(x0, w1, none) + convolve(x1, w0, none)


@_formula("conv2d", "sums in reverse")
def _(x: np.ndarray, w: np.ndarray, b: np.ndarray, **how: Any) -> np.ndarray:
    order = slice(None, None, -1)
    x, w, b = (a.astype(np.float32) for a in (x[:, order], w[:, order], b))
    return ReferenceOps(np, "float32").conv2d(x, w, b, **how)


@_formula("conv2d", "one by one")
def _(x: np.ndarray, w: np.ndarray, b: np.ndarray, **how: Any) -> np.ndarray:
    """Channel by channel, each sum rounded to float32, as a naive loop does."""
    y = np.float32(0)
    for c in range(x.shape[1]):
        y = (y + SPECIFICATION.conv2d(x[:, c : c + 1], w[:, c : c + 1], 0 * b, **how)).astype(np.float32)
    return y + b[:, None, None].astype(np.float32)


@_formula("group_norm", "Welford")
def _(x: np.ndarray, scale: np.ndarray, shift: np.ndarray, *, groups: int, eps: float) -> np.ndarray:
    """Mean and squares updated number by number, in float32."""
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


@_formula("group_norm", "scale and shift fused")
def _(x: np.ndarray, scale: np.ndarray, shift: np.ndarray, *, groups: int, eps: float) -> np.ndarray:
    """γ' x + β', with γ' = γ / √(σ² + ε) and β' = β - γ' μ, about the mean of the group."""
    B, C = x.shape[:2]
    x_g = x.reshape(B, groups, -1).astype(np.float32)
    mean = x_g.mean(-1, keepdims=True)
    sigma2 = (x_g - mean).var(-1, keepdims=True)
    factor = np.repeat(1 / np.sqrt(sigma2 + np.float32(eps)), C // groups, axis=1)[..., 0] * scale.astype(np.float32)
    centred = (x_g - mean).reshape(x.shape)
    return centred * factor[..., None, None] + shift[:, None, None]


@_formula("silu", "with tanh")
def _(x: np.ndarray) -> np.ndarray:
    """x (½ + ½ tanh(x / 2)), in float32: the left tail cancels, and nobody minds."""
    x = x.astype(np.float32)
    return x * (np.float32(0.5) + np.float32(0.5) * np.tanh(x / 2))


@_formula("attention", "flash")
def _(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float) -> np.ndarray:
    """Chunks of keys merged with their greatest logits, in float32."""
    q, k, v = (t.astype(np.float32) for t in (q, k, v))
    return ReferenceOps(np, "float32").chunked_attention(q, k, v, scale=scale, size=3)


@_formula("linear", "a 1 × 1 convolution", DTYPES)
def _(t: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    x = t.transpose(0, 2, 1)[..., None]
    return SPECIFICATION.conv2d(x, w[:, :, None, None], b, stride=1, padding=((0, 0), (0, 0)))[..., 0].transpose(
        0, 2, 1
    )


# -- around the operations --------------------------------------------------------------------------------------------


def _rounding(ops: ReferenceOps) -> ReferenceOps:
    """Every operation's result rounded to what is stored, as frameworks do that compute in 16 bits elementwise."""

    def method(op: str) -> Callable[..., Any]:
        call = getattr(type(ops), op)
        return lambda self, *arguments, **numbers: as_map(self, map_numbers(self, call(self, *arguments, **numbers)))

    return with_methods(ops, **{op: method(op) for op in ("conv2d", "group_norm", "silu", "mish", "add")})


BENIGN["every operation: rounded to storage"] = Variant(changing_ops(_rounding))


def _channels_last(ops: ReferenceOps) -> ReferenceOps:
    """Arrays that lie in memory as (B, H, W, C)."""
    call = type(ops).from_numpy
    return with_methods(ops, from_numpy=lambda self, a: call(self, np.asfortranarray(a)))


BENIGN["from_numpy: Fortran's order"] = Variant(changing_ops(_channels_last))


def _otherwise(**methods: Callable[..., Any]) -> Wrap:
    return altering(lambda factory: lambda *built: ChangedVae(factory(*built), methods))


BENIGN["tiled_decode: diffusers' loops"] = Variant(
    _otherwise(tiled_decode=lambda vae, call, z: decoded(Tiles(), vae, z))
)
BENIGN["tiled_encode: diffusers' loops"] = Variant(
    _otherwise(tiled_encode=lambda vae, call, x: encoded(Tiles(), vae, x))
)
BENIGN["sample: by hand"] = Variant(_otherwise(sample=lambda vae, call, x, noise: _sampled(vae.encode(x), noise)))
BENIGN["decode_latents: by hand"] = Variant(
    _otherwise(
        decode_latents=lambda vae, call, z: vae.decode(z / vae.config.scaling_factor + (vae.config.shift_factor or 0))
    )
)
BENIGN["decode: the whole batch twice"] = Variant(
    _otherwise(decode=lambda vae, call, z: call(np.concatenate((z, z)))[: len(z)])
)
BENIGN["build: older names"] = Variant(altering(lambda factory: partial(renamed, factory, names=NAMES)))


def _sampled(posterior: tuple[np.ndarray, np.ndarray], noise: np.ndarray) -> np.ndarray:
    mean, logvar = posterior
    return mean.astype(np.float64) + np.exp(0.5 * logvar.astype(np.float64)) * noise

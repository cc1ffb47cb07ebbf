"""Deferred operations compute the same as operations one at a time, and whole models stay within their budget."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.configs import drawn_weights, images, narrow, relative_l2, uniform

from vaespec import AutoencoderKL, ReferenceOps, decoder, encoder
from vaespec.analysis.cost import cost
from vaespec.layers import GroupNorm, NormAct, Resnet, Upsample
from vaespec.tiling.banded import BandedOps
from vaespec_cpu.lazy import Normalized, whole
from vaespec_numpy import backend

WIDE = narrow((64, 128), norm_num_groups=32)
"""As narrow as possible, but wide enough for forms with fewer multiplications."""


def autoencoder(precision: str = "default", dtype: str = "float32") -> AutoencoderKL:
    return AutoencoderKL(WIDE, weights(), backend="numpy", device="cpu", dtype=dtype, precision=precision)


@cache
def weights() -> dict[str, np.ndarray]:
    return drawn_weights(
        {name: row.shape for name, row in AutoencoderKL.from_config(WIDE, backend="numpy")._model.table().items()}
    )


@cache
def specified() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(images, moments, latents, decoded images) in float64."""
    x, z = images(WIDE, 42, 50, batch=2), uniform("z", (2, 4, 21, 23), -2, 2)
    reference = ReferenceOps(np)
    return x, encoder(WIDE)(x, weights(), reference), z, decoder(WIDE)(z, weights(), reference)


@pytest.mark.parametrize(("precision", "most"), [("default", 3e-5), ("highest", 2e-6)])
def test_a_model_of_real_widths_is_within_its_budget(precision, most):
    x, moments, z, pictures = specified()
    vae = autoencoder(precision)
    assert relative_l2(vae.encode(x).latent_dist.parameters, moments) <= most
    assert relative_l2(vae.decode(z).sample, pictures) <= most


@pytest.mark.parametrize("rows", [1, 16])
def test_bands_of_real_widths_are_within_the_budget(rows):
    _, _, z, pictures = specified()
    model = autoencoder()._model
    bands = BandedOps(model.ops, band_rows=rows, chunk=64)
    result = bands.compile(decoder(WIDE))(z.astype(np.float32), model.params)
    assert relative_l2(result, pictures) <= 3e-5


def counted(monkeypatch, run) -> int:
    """The multiplications of all matrix products in run()."""
    result, lock, matmul = [0], threading.Lock(), np.matmul

    def counting(a, b, **options):
        y = matmul(a, b, **options)
        with lock:
            result[0] += y.size * a.shape[-1]
        return y

    monkeypatch.setattr(np, "matmul", counting)
    run()
    monkeypatch.setattr(np, "matmul", matmul)
    return result[0]


@pytest.mark.parametrize(("direction", "most"), [("decode", 0.44), ("encode", 0.65)])
def test_a_model_multiplies_less_than_its_convolutions_as_written(monkeypatch, direction, most):
    """A guard: the saving does not silently disappear. The rest is transforms, strides, and the model's ends."""
    vae, side = autoencoder(), {"decode": (48, 48), "encode": (96, 96)}[direction]
    channels = {"decode": 4, "encode": 3}[direction]
    call = getattr(vae, direction)
    written = cost(WIDE, direction, side).conv_flops / 2
    assert counted(monkeypatch, lambda: call(uniform("x", (1, channels, *side)).astype(np.float32))) <= most * written


def of_layer(layer, ops, x: np.ndarray, fused: bool) -> np.ndarray:
    table = dict(layer.parameters())
    params = ops.load_params(drawn_weights({name: row.shape for name, row in table.items()}), table)
    for a in (x, *params.values()):
        a.flags.writeable = False
    ops = ops.inference_ops(params)[0] if fused else ops
    return whole(layer(x, params, ops))


@pytest.mark.parametrize("activation", ["silu", "mish", "gelu", "relu"])
@pytest.mark.parametrize(("dtype", "most"), [("float32", 2e-6), ("float64", 1e-14)])
@given(shape=st.tuples(st.integers(1, 2), st.integers(1, 12), st.integers(1, 12)), out=st.sampled_from([8, 12]))
def test_deferred_operations_compute_the_same(dtype, most, activation, shape, out):
    """Inputs and weights are read-only in this test, so nothing writes to them."""
    ops = backend.ops("cpu", dtype, "default")
    x = uniform("x", (*shape, 8), -3, 3).astype(dtype)
    for layer in (
        Resnet("resnet", 8, out, 4, activation),
        NormAct(GroupNorm("norm", 8, 4), activation),
        Upsample("upsample", 8),
    ):
        assert relative_l2(of_layer(layer, ops, x, fused=True), of_layer(layer, ops, x, fused=False)) <= most


def test_a_wide_block_writes_no_normalized_map(monkeypatch):
    """A guard: the norm and the activation are applied while the convolution reads."""
    ops, x = backend.ops("cpu", "float32", "default"), uniform("x", (1, 32, 32, 64)).astype(np.float32)
    monkeypatch.setattr(Normalized, "whole", None)
    of_layer(Resnet("resnet", 64, 64, 32, "silu"), ops, x, fused=True)


def test_scratch_memory_is_freed_after_a_run():
    vae = autoencoder()
    vae.decode(uniform("z", (1, 4, 9, 9)))
    assert vae._model.ops.scratch is None


def test_models_in_several_threads_do_not_share_scratch_memory():
    """Bit for bit, as one after the other."""
    vae = autoencoder()
    latents = [uniform(f"z{i}", (1, 4, 9 + i, 11)).astype(np.float32) for i in range(4)]
    alone = [vae.decode(z).sample for z in latents]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda z: vae.decode(z).sample, latents))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_batch_is_its_items():
    """Each layer takes the same form; only the blocks, and with them the order of sums, may differ."""
    vae, z = autoencoder(), uniform("z", (3, 4, 16, 16)).astype(np.float32)
    together = vae.decode(z).sample
    assert relative_l2(together, np.concatenate([vae.decode(one[None]).sample for one in z])) <= 1e-6

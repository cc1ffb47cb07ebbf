"""The projections to q, k and v as one: the results stay, and the weights that users get are canonical."""

from __future__ import annotations

import re

import numpy as np
import pytest
from support.attending import SMALL, UPDATE, Sharper, changed, distance, loaded, state, with_processor
from support.models import EXACT, each_backend, model
from support.oracle import oracle

from vaespec import InputError
from vaespec.attention import QKV, Chunked, Eager, FusedQKV
from vaespec.processors import as_processor


@each_backend
def test_fusing_replaces_three_projections_by_one(backend):
    vae = model(SMALL, backend)
    before = state(vae)
    vae.fuse_qkv_projections()
    params = vae.functional().params
    (layer, other) = (key.removesuffix(".processor") for key in vae.attn_processors)
    assert params.keys() - before[1].keys() == {f"{n}.to_qkv.{e}" for n in (layer, other) for e in ("weight", "bias")}
    assert not any(f".{part}." in name for name in params for part in QKV)
    fused = vae._model.ops.export_params(vae._model.params, vae._model.table())[f"{layer}.to_qkv.weight"]
    thirds = [oracle(SMALL)[1][f"{layer}.{part}.weight"] for part in QKV]
    np.testing.assert_array_equal(fused, np.concatenate(thirds).astype(vae.dtype))
    vae.unfuse_qkv_projections()
    np.testing.assert_equal(state(vae), before)


def test_fusing_or_unfusing_twice_is_harmless():
    vae = model(SMALL)
    before = state(vae)
    vae.unfuse_qkv_projections()
    np.testing.assert_equal(state(vae), before)
    vae.fuse_qkv_projections()
    fused = state(vae)
    vae.fuse_qkv_projections()
    np.testing.assert_equal(state(vae), fused)
    for _ in range(2):
        vae.unfuse_qkv_projections()
        np.testing.assert_equal(state(vae), before)


@pytest.mark.parametrize("processor", [Eager(), Chunked(4), Sharper(2.0)])
def test_fusing_and_unfusing_keep_the_processor_that_attends(processor):
    """In diffusers too, unfusing restores the processors."""
    vae = with_processor(processor)
    vae.fuse_qkv_projections()
    assert set(vae.attn_processors.values()) == {FusedQKV(core=processor)}
    vae.unfuse_qkv_projections()
    assert set(vae.attn_processors.values()) == {processor}


def test_a_lora_is_not_lost_by_fusing_the_projections():
    vae = with_processor(UPDATE)
    before = state(vae)
    with pytest.raises(InputError, match="is a LoRA"):
        vae.fuse_qkv_projections()
    np.testing.assert_equal(state(vae), before)


@each_backend
def test_a_fused_model_returns_and_saves_canonical_weights(backend, tmp_path):
    vae = model(SMALL, backend)
    expected = vae.weights()
    vae.fuse_qkv_projections()
    np.testing.assert_equal(vae.weights(), expected)
    vae.save_pretrained(tmp_path)
    assert distance(vae, loaded(tmp_path)) <= EXACT[vae.dtype]


@each_backend
def test_a_fused_model_moves_and_trains_with_its_fused_weights(backend):
    vae = with_processor("fused", backend=backend).to(dtype="float32")
    params = vae.functional().params
    doubled = vae.with_params({name: 2 * p if "to_qkv.bias" in name else p for name, p in params.items()})
    biases = {n: 2 * a for n, a in oracle(SMALL)[1].items() if re.search(r"\.to_[qkv]\.bias", n)}
    assert distance(doubled.with_backend("torch"), changed(biases)) <= EXACT["float32"]


@pytest.mark.parametrize("old", ["sdpa", "fused", UPDATE])
@pytest.mark.parametrize("new", ["sdpa", "fused", UPDATE, "eager"])
def test_any_processor_may_follow_any_other(old, new):
    vae = with_processor(old)
    vae.set_attn_processor(new)
    assert set(vae.attn_processors.values()) == {as_processor(new)}
    assert vae.functional().params.keys() == with_processor(new).functional().params.keys()
    assert distance(vae, oracle(SMALL)[0]) <= EXACT["float64"]

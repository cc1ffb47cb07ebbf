"""Every processor computes the same attention, and costs the same arithmetic."""

from __future__ import annotations

from itertools import pairwise

import array_api_strict
import jax
import numpy as np
import pytest
from support.attending import (
    PROCESSORS,
    SMALL,
    Sharper,
    changed,
    compared,
    distance,
    each_processor,
    processed,
    with_processor,
)
from support.configs import CONFIGS, drawn_weights, relative_l2, uniform
from support.models import EXACT, array, each_backend, model
from support.oracle import decoded, encoded, oracle

from vaespec import ReferenceOps, decoder, encoder
from vaespec.analysis.cost import CostOps
from vaespec.analysis.reach import Interval, ReachOps
from vaespec.attention import Chunked, Eager, FusedQKV, LoRA, Processor, Sdpa
from vaespec.processors import attention_layers


@each_processor
@each_backend
def test_every_processor_agrees_with_diffusers(backend, processor):
    vae = with_processor(processor, backend=backend)
    assert set(vae.attn_processors.values()) == {processor}
    assert distance(vae, oracle(SMALL)[0]) <= EXACT[vae.dtype]


@pytest.mark.parametrize("processor", [Eager(), Chunked(11), FusedQKV(core=Chunked(64))])
@pytest.mark.parametrize("name", ["sd", "kl-f16", "attention-everywhere", "attention-in-the-decoder-only"])
def test_attention_at_every_level_agrees_with_diffusers(name, processor):
    assert distance(with_processor(processor, name), oracle(name)[0], name) <= EXACT["float64"]


@each_processor
def test_every_processor_runs_on_array_api_strict(processor):
    (model, weights), x = oracle(SMALL), compared(SMALL)[0]
    layers, ops = processed(encoder(CONFIGS[SMALL]), processor), ReferenceOps(array_api_strict)
    (attention,) = attention_layers(layers)
    table = dict(layers.parameters())
    params = ops.load_params({k: a for k, a in processor.adopt(attention, weights).items() if k in table}, table)
    moments = ops.to_numpy(layers(ops.from_numpy(x), params, ops))
    assert relative_l2(moments, np.concatenate(encoded(model, x), axis=1)) <= EXACT["float64"]


class RecordingOps(ReferenceOps):
    """Ops that record which kinds of attention the model calls."""

    def __init__(self):
        super().__init__(np)
        self.called = set()

    def attention(self, q, k, v, *, scale):
        self.called.add("attention")
        return v

    def eager_attention(self, q, k, v, *, scale):
        self.called.add("eager")
        return v

    def chunked_attention(self, q, k, v, *, scale, size):
        self.called.add(f"chunks of {size}")
        return v


CALLED = {
    Sdpa(): "attention",
    Eager(): "eager",
    Chunked(): "chunks of 1024",
    Chunked(5): "chunks of 5",
    FusedQKV(): "attention",
    FusedQKV(core=Eager()): "eager",
    LoRA(): "attention",
    LoRA(core=Chunked(3)): "chunks of 3",
    LoRA(core=FusedQKV(core=Eager())): "eager",
}


@pytest.mark.parametrize(("processor", "called"), CALLED.items(), ids=map(str, CALLED))
def test_each_processor_calls_its_own_kind_of_attention(processor, called):
    layers, ops = processed(decoder(CONFIGS["kl-f16"]), processor), RecordingOps()
    layers(uniform("z", (1, 16, 1, 1)), drawn_weights({k: row.shape for k, row in layers.parameters()}), ops)
    assert ops.called == {called}


@each_backend
def test_a_model_encodes_and_decodes_with_its_processors(backend):
    vae = with_processor(FusedQKV(core=Chunked(4)), backend=backend)
    (x, z), theirs = compared(SMALL), oracle(SMALL)[0]
    assert relative_l2(array(vae.encode(x).latent_dist.mean), encoded(theirs, x)[0]) <= EXACT[vae.dtype]
    assert relative_l2(array(vae.decode(z).sample), decoded(theirs, z)) <= EXACT[vae.dtype]


@each_backend
def test_a_users_own_processor_is_computed(backend):
    """Sharper attention equals attention with larger queries."""
    vae, (_, weights) = with_processor(Sharper(3.0), backend=backend), oracle(SMALL)
    queries = {name: 3.0 * a for name, a in weights.items() if ".to_q." in name}
    assert distance(vae, changed(queries)) <= EXACT[vae.dtype]
    assert distance(vae, oracle(SMALL)[0]) > 1e-3


def test_a_users_own_processor_is_traced_by_jax():
    vae, z = with_processor(Sharper(3.0), backend="jax"), compared(SMALL)[1].astype(np.float32)
    params, _, decode = vae.functional()
    traced = jax.jit(decode)(params, z).sample
    assert relative_l2(array(traced), array(vae.decode(z).sample)) <= EXACT["float32"]


def test_a_compiled_model_is_compiled_again_for_another_processor():
    vae, z = model(SMALL, "jax"), compared(SMALL)[1]
    before = array(vae.decode(z).sample)
    pictures = [before]
    for factor in (2.0, 3.0):
        vae.set_attn_processor(Sharper(factor))
        pictures.append(array(vae.decode(z).sample))
    assert min(relative_l2(one, other) for one, other in pairwise(pictures)) > 1e-3
    vae.set_attn_processor("sdpa")
    np.testing.assert_array_equal(array(vae.decode(z).sample), before)


@pytest.mark.parametrize("direction", [encoder, decoder])
@pytest.mark.parametrize("processor", [*PROCESSORS.values(), LoRA()], ids=[*PROCESSORS, "lora"])
def test_no_processor_reaches_further_than_the_convolutions(processor, direction):
    layers = direction(CONFIGS["kl-f16"])
    reached = [
        part(Interval(0, 0), dict(part.parameters()), ReachOps()) for part in (layers, processed(layers, processor))
    ]
    assert reached[0] == reached[1]


def counted(processor: Processor, name: str = "kl-f16") -> CostOps:
    """The cost of decoding with a processor."""
    layers, ops = processed(decoder(CONFIGS[name]), processor), CostOps(4)
    layers(ops.array(1, CONFIGS[name].latent_channels, 2, 3), dict(layers.parameters()), ops)
    return ops


@each_processor
def test_every_processor_costs_the_same_arithmetic(processor):
    ops, expected = counted(processor), counted(Sdpa())
    assert (ops.conv_flops, ops.attention_flops, ops.other_flops) == (
        expected.conv_flops,
        expected.attention_flops,
        expected.other_flops,
    )


def test_a_lora_costs_two_thin_products_for_each_projection():
    """2 · N · (C · r + r · C) flops for each of four, and on each result a scaling and an addition."""
    config = CONFIGS[SMALL]
    (layer,) = attention_layers(decoder(config))
    more, plain = counted(LoRA(rank=3), SMALL), counted(Sdpa(), SMALL)
    assert more.attention_flops - plain.attention_flops == 4 * 2 * 6 * (2 * 3 * layer.channels)
    assert more.other_flops - plain.other_flops == 4 * 2 * 6 * layer.channels

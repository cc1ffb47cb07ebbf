"""Attention processors: every one computes the same attention, and none is lost, mixed up or half set."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import array_api_strict
import diffusers
import jax
import numpy as np
import pytest
import torch
from configs import CONFIGS, EPS, assert_within, drawn_weights, images, relative_l2, uniform
from diffusers.models import attention_processor
from hypothesis import example, given
from hypothesis import strategies as st
from models import BACKENDS, EXACT, array, each_backend, model
from oracle import decoded, diffusers_model, encoded, oracle

from vaespec import AutoencoderKL, InputError, ReferenceOps, decoder, encoder
from vaespec.analysis.cost import CostOps
from vaespec.analysis.reach import Interval, ReachOps
from vaespec.architecture import parameters
from vaespec.attention import (
    MEANINGLESS,
    NAMES,
    QKV,
    Chunked,
    Eager,
    Fused,
    LoRA,
    Processor,
    Sdpa,
    as_processor,
    attention_layers,
    with_processors,
)
from vaespec.backend import get_backend, make_ops
from vaespec.layers import Sequential

SMALL = "one-level"
"""What most tests run on: its latents are as large as its images."""
SIZES = {SMALL: (2, 3), "sd": (16, 24)}
"""(height, width) of images; either way attention sees 6 tokens."""


def compared(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(images, latents) to compare a named config on."""
    config = CONFIGS[name]
    x = images(config, *SIZES.get(name, (16, 32)), batch=2)
    f = config.downsampling_factor
    return x, uniform("z", (2, config.latent_channels, x.shape[2] // f, x.shape[3] // f), -2, 2)


def distance(vae: AutoencoderKL, theirs: torch.nn.Module, name: str = SMALL) -> float:
    """The greater relative error of encode and decode, against diffusers' model in float64.

    By functional(): JAX then compiles operations, once for all tests, and not every model.
    """
    x, z = compared(name)
    params, encode, decode = vae.functional()
    moments = encode(params, vae._model.ops.from_numpy(x)).latent_dist.parameters
    pictures = decode(params, vae._model.ops.from_numpy(z)).sample
    return max(
        relative_l2(array(moments), np.concatenate(encoded(theirs, x), axis=1)),
        relative_l2(array(pictures), decoded(theirs, z)),
    )


def changed(changes: Mapping[str, np.ndarray], name: str = SMALL) -> torch.nn.Module:
    """The oracle's model with some of its weights replaced."""
    theirs = diffusers_model(CONFIGS[name])
    theirs.load_state_dict({key: torch.tensor(a) for key, a in (oracle(name)[1] | changes).items()}, strict=True)
    return theirs


def processed(layers: Sequential, processor: Processor) -> Sequential:
    """An encoder or decoder with one processor everywhere."""
    return with_processors(layers, {layer.name: processor for layer in attention_layers(layers)})


def with_processor(processor, name: str = SMALL, backend: str = "numpy", dtype: str | None = None) -> AutoencoderKL:
    vae = model(name, backend, dtype)
    vae.set_attn_processor(processor)
    return vae


def state(vae: AutoencoderKL) -> tuple[dict[str, Processor], dict[str, np.ndarray]]:
    """All that setting a processor may change."""
    return vae.attn_processors, {name: array(p) for name, p in vae.functional().params.items()}


# -- every processor gives the same ------------------------------------------------------------------------------

PROCESSORS = {
    "sdpa": Sdpa(),
    "eager": Eager(),
    "chunks-of-1": Chunked(1),
    "chunks-of-5-and-1": Chunked(5),
    "one-chunk": Chunked(6),
    "a-chunk-too-large": Chunked(7),
    "fused": Fused(),
    "fused-eager": Fused(core=Eager()),
    "fused-chunks": Fused(core=Chunked(4)),
}

each_processor = pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS.keys())


@each_processor
@each_backend
def test_every_processor_gives_what_diffusers_gives(backend, processor):
    vae = with_processor(processor, backend=backend)
    assert set(vae.attn_processors.values()) == {processor}
    assert distance(vae, oracle(SMALL)[0]) <= EXACT[vae.dtype]


@pytest.mark.parametrize("processor", [Eager(), Chunked(11), Fused(core=Chunked(64))])
@pytest.mark.parametrize("name", ["sd", "kl-f16", "attention-everywhere", "attention-in-the-decoder-only"])
def test_attention_at_every_level_is_that_of_diffusers(name, processor):
    assert distance(with_processor(processor, name), oracle(name)[0], name) <= EXACT["float64"]


@each_processor
def test_every_processor_runs_on_array_api_strict(processor):
    (model, weights), x = oracle(SMALL), compared(SMALL)[0]
    layers, ops = processed(encoder(CONFIGS[SMALL]), processor), ReferenceOps(array_api_strict)
    (attention,) = attention_layers(layers)
    table = dict(layers.parameters())
    params = ops.prepare({k: a for k, a in processor.adopt(attention, weights).items() if k in table}, table)
    moments = ops.to_numpy(layers(ops.from_numpy(x), params, ops))
    assert relative_l2(moments, np.concatenate(encoded(model, x), axis=1)) <= EXACT["float64"]


class AskedOps(ReferenceOps):
    """Remembers which kind of attention it was asked for."""

    def __init__(self):
        super().__init__(np)
        self.asked = set()

    def attention(self, q, k, v, *, scale):
        self.asked.add("attention")
        return v

    def eager_attention(self, q, k, v, *, scale):
        self.asked.add("eager")
        return v

    def chunked_attention(self, q, k, v, *, scale, size):
        self.asked.add(f"chunks of {size}")
        return v


ASKED = {
    Sdpa(): "attention",
    Eager(): "eager",
    Chunked(): "chunks of 1024",
    Chunked(5): "chunks of 5",
    Fused(): "attention",
    Fused(core=Eager()): "eager",
    LoRA(): "attention",
    LoRA(core=Chunked(3)): "chunks of 3",
    LoRA(core=Fused(core=Eager())): "eager",
}


@pytest.mark.parametrize(("processor", "asked"), ASKED.items(), ids=map(str, ASKED))
def test_each_processor_asks_for_its_own_kind_of_attention(processor, asked):
    layers, ops = processed(decoder(CONFIGS["kl-f16"]), processor), AskedOps()
    layers(uniform("z", (1, 16, 1, 1)), drawn_weights({k: row.shape for k, row in layers.parameters()}), ops)
    assert ops.asked == {asked}


@each_backend
def test_a_model_encodes_and_decodes_with_its_processors(backend):
    vae = with_processor(Fused(core=Chunked(4)), backend=backend)
    (x, z), theirs = compared(SMALL), oracle(SMALL)[0]
    assert relative_l2(array(vae.encode(x).latent_dist.mean), encoded(theirs, x)[0]) <= EXACT[vae.dtype]
    assert relative_l2(array(vae.decode(z).sample), decoded(theirs, z)) <= EXACT[vae.dtype]


@each_backend
def test_a_users_own_processor_is_computed(backend):
    """Sharper attention is that of queries made larger."""
    vae, (_, weights) = with_processor(Sharper(3.0), backend=backend), oracle(SMALL)
    queries = {name: 3.0 * a for name, a in weights.items() if ".to_q." in name}
    assert distance(vae, changed(queries)) <= EXACT[vae.dtype]
    assert distance(vae, oracle(SMALL)[0]) > 1e-3


@dataclass(frozen=True)
class Sharper(Processor):
    """All that a user has to write."""

    factor: float

    def attend(self, q, k, v, ops, *, scale):
        return ops.attention(q, k, v, scale=self.factor * scale)


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
    """What decoding with this processor costs."""
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


# -- in chunks ---------------------------------------------------------------------------------------------------

SPECIFICATION = ReferenceOps(np)


def queries_keys_values(shape: tuple[int, ...], largest: float = 1.0) -> list[np.ndarray]:
    """(B, N, C) each. Their logits, where the scale is 1 / C, are `largest` at most."""
    return [factor * uniform(key, shape) for key, factor in (("q", largest), ("k", 1), ("v", 1))]


@given(
    extent=st.tuples(st.integers(1, 2), st.integers(1, 40), st.integers(1, 6)),
    size=st.integers(1, 50),
    largest=st.sampled_from([1.0, 30.0, 1e4]),
)
@example(extent=(1, 37, 1), size=1, largest=1e4)
def test_chunks_of_any_size_are_the_whole_without_overflow(extent, size, largest):
    """In units of eps · max |v|, for both together: logits (C + 1) · largest each, which a weight and the sum of the
    weights suffer twice; their distances to two greatest ones, 2 · largest; sums of N terms, 2 N; at most N merges of
    four roundings, of a weighted sum and of a sum, 4 N; and 4 more.
    """
    N, C = extent[1:]
    q, k, v = queries_keys_values(extent, largest)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        whole = SPECIFICATION.eager_attention(q, k, v, scale=1 / C)
        chunks = SPECIFICATION.chunked_attention(q, k, v, scale=1 / C, size=size)
    assert_within(chunks, whole, EPS["float64"] * ((2 * (C + 1) + 2) * largest + 6 * N + 4))


@each_backend
@pytest.mark.parametrize("largest", [-1e4, 1e4])
def test_one_key_far_above_the_others_is_taken_alone_whatever_chunk_it_is_in(backend, largest):
    """One token at a time points along its own axis: the others are 1e4 below it, and have no weight."""
    ops, N = make_ops(get_backend(backend), "cpu", "float32", "default"), 5
    k = np.eye(N)[None]
    v = uniform("v", (1, N, N)).astype(np.float32)
    q, k, v = (ops.from_numpy(a) for a in (largest * k, k, v))
    expected = np.eye(N) @ array(v) if largest > 0 else (np.ones((N, N)) - np.eye(N)) @ array(v) / (N - 1)
    for attend in (ops.attention, ops.eager_attention):
        np.testing.assert_allclose(array(attend(q, k, v, scale=1.0)), expected, rtol=0, atol=4 * EPS["float32"])
    for size in (1, 2):
        chunked = ops.chunked_attention(q, k, v, scale=1.0, size=size)
        np.testing.assert_allclose(array(chunked), expected, rtol=0, atol=4 * EPS["float32"])


@pytest.mark.parametrize("size", [1, 5, 12, 13])
def test_gradients_through_chunks_are_those_of_the_whole(size):
    ops, gradients = make_ops(get_backend("torch"), "cpu", "float64", "default"), []
    for attend, how in ((ops.eager_attention, {}), (ops.chunked_attention, {"size": size})):
        leaves = [ops.from_numpy(a).requires_grad_() for a in queries_keys_values((2, 12, 3), 30.0)]
        attend(*leaves, scale=1 / 3, **how).square().sum().backward()
        gradients.append([array(leaf.grad) for leaf in leaves])
    for actual, expected in zip(*gradients, strict=True):
        assert relative_l2(actual, expected) <= EXACT["float64"]


class Weighed:
    """A namespace that remembers the shapes of what its functions return."""

    def __init__(self, xp):
        self.xp, self.shapes = xp, {}

    def __getattr__(self, name):
        member = getattr(self.xp, name)
        if isinstance(member, type) or not callable(member):  # a dtype
            return member

        def weighed(*args, **kwargs):
            y = member(*args, **kwargs)
            self.shapes.setdefault(name, []).append(y.shape)
            return y

        return weighed


@pytest.mark.parametrize("xp", [np, array_api_strict])
@pytest.mark.parametrize("size", [4, 7, 15, 40])
def test_chunks_never_hold_more_than_size_by_size_weights(xp, size):
    """Of an item of the batch, but for the result itself; the channels here are fewer than the chunk is long."""
    B, N, C = 2, 30, 3
    ops = ReferenceOps(Weighed(xp))
    q, k, v = queries_keys_values((B, N, C))
    chunks = ops.chunked_attention(*(xp.asarray(a) for a in (q, k, v)), scale=0.5, size=size)
    shapes = ops.xp.shapes
    assert shapes.pop("concat") == [(B, N, C)]
    assert {"matmul", "exp", "sum"} <= shapes.keys()
    assert max(n * m for results in shapes.values() for _, n, m in results) <= size * size
    assert_within(np.asarray(chunks), SPECIFICATION.eager_attention(q, k, v, scale=0.5), (6 * N + 20) * EPS["float64"])


def test_weighing_sees_all_weights_of_the_whole():
    ops = ReferenceOps(Weighed(np))
    ops.eager_attention(*queries_keys_values((2, 30, 3)), scale=0.5)
    assert (2, 30, 30) in ops.xp.shapes["matmul"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("backend", ["torch", "jax", "mlx"])
@pytest.mark.parametrize("processor", [Eager(), Chunked(16)])
def test_logits_of_16_bits_are_not_rounded_and_do_not_overflow(backend, dtype, processor):
    """Of 16 bits are only the weights, sums of values and the result: 4 roundings of eps / 2, relative to max |v|.

    The products q · k reach 1e5, beyond float16, and the logits a hundred, where bfloat16 has steps of one half.
    """
    ops = make_ops(get_backend(backend), "cpu", dtype, "default")
    q, k, v = (ops.from_numpy(a) for a in queries_keys_values((2, 64, 512), 16.0))
    q, k = 60 * q, 2 * k
    exact = SPECIFICATION.eager_attention(*(array(t) for t in (q, k, v)), scale=512**-1.0)
    attended = processor.attend(q, k, v, ops, scale=512**-1.0)
    assert_within(array(attended), exact, 2 * EPS[dtype])


@pytest.mark.parametrize("size", [0, -1])
def test_chunks_of_nothing_are_refused(size):
    with pytest.raises(InputError, match=f"chunks of {size} tokens: expected at least 1"):
        Chunked(size)


# -- by name, class or object ------------------------------------------------------------------------------------

TEXT, TRAINED_TEXT = "it adds keys and values made from a text", "it trains the keys and values of a text"

OF_DIFFUSERS_0_23: dict[str, Processor | str] = {
    "AttnProcessor": Eager(),
    "AttnProcessor2_0": Sdpa(),
    "XFormersAttnProcessor": Chunked(),
    "SlicedAttnProcessor": Chunked(),
    "AttnAddedKVProcessor": TEXT,
    "SlicedAttnAddedKVProcessor": TEXT,
    "AttnAddedKVProcessor2_0": TEXT,
    "XFormersAttnAddedKVProcessor": TEXT,
    "CustomDiffusionAttnProcessor": TRAINED_TEXT,
    "CustomDiffusionXFormersAttnProcessor": TRAINED_TEXT,
    "CustomDiffusionAttnProcessor2_0": TRAINED_TEXT,
    "LoRAAttnProcessor": LoRA(core=Eager()),
    "LoRAAttnProcessor2_0": LoRA(),
    "LoRAXFormersAttnProcessor": LoRA(core=Chunked()),
    "LoRAAttnAddedKVProcessor": TEXT,
}
"""What `set_attn_processor` takes there: what each stands for here, or why it is refused."""


def object_of(name: str) -> object:
    """One of diffusers' processors."""
    cls, wanted = getattr(attention_processor, name), {"slice_size": 4, "hidden_size": 8, "cross_attention_dim": 8}
    return cls(**{key: value for key, value in wanted.items() if key in inspect.signature(cls).parameters})


FORMS = {"name": str, "class": lambda name: getattr(attention_processor, name), "object": object_of}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize(("name", "expected"), OF_DIFFUSERS_0_23.items(), ids=OF_DIFFUSERS_0_23.keys())
def test_every_processor_of_diffusers_0_23_is_taken_or_refused_with_the_reason(name, expected, form):
    vae = model(SMALL)
    before = vae.attn_processors
    if isinstance(expected, Processor):
        vae.set_attn_processor(form(name))
        assert vae.attn_processors == dict.fromkeys(before, expected)
    else:
        with pytest.raises(InputError, match=f"^attention processor {name}: {expected}, and this VAE reads none"):
            vae.set_attn_processor(form(name))
        assert vae.attn_processors == before


def test_no_other_processor_is_said_to_be_of_diffusers_but_the_fused_one():
    refused = {name for name, expected in OF_DIFFUSERS_0_23.items() if isinstance(expected, str)}
    assert MEANINGLESS.keys() == refused
    assert {name for name in NAMES if "Attn" in name} == OF_DIFFUSERS_0_23.keys() - refused | {"FusedAttnProcessor2_0"}
    assert as_processor(attention_processor.FusedAttnProcessor2_0()) == Fused()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sdpa", Sdpa()), ("eager", Eager()), ("chunked", Chunked()), ("fused", Fused()), ("lora", LoRA())],
)
def test_ours_have_short_names(name, expected):
    assert as_processor(name) == expected


def test_an_object_of_ours_is_taken_as_it_is():
    processor = Sharper(2.0)
    assert as_processor(processor) is processor


@pytest.mark.parametrize(
    "given", ["flash", "", "SDPA", None, 3, object(), Chunked, attention_processor.AttnProcessorNPU]
)
@pytest.mark.parametrize("name", [SMALL, "cogview"])
def test_what_is_unknown_is_refused_with_the_choices(given, name):
    with pytest.raises(InputError, match="choose sdpa, eager, chunked, fused, lora, AttnProcessor") as refused:
        model(name).set_attn_processor(given)
    assert str(refused.value).endswith("or an object of vaespec.attention.Processor.")


class LoRAAttnProcessor(torch.nn.Linear):
    """As in diffusers 0.23, where it has weights."""


def test_a_processor_that_has_weights_is_refused():
    with pytest.raises(InputError, match=r"^a LoRAAttnProcessor with weights of its own: give vaespec.attention.LoRA"):
        model(SMALL).set_attn_processor(LoRAAttnProcessor(2, 2))


def test_a_class_whose_objects_will_have_weights_is_taken():
    assert as_processor(LoRAAttnProcessor) == LoRA(core=Eager())


@each_backend
def test_the_default_is_sdpa_and_diffusers_default_is_eager(backend):
    vae = model(SMALL, backend)
    assert set(vae.attn_processors.values()) == {Sdpa()}
    vae.set_default_attn_processor()
    assert set(vae.attn_processors.values()) == {Eager()}


# -- one for each layer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd", "kl-f16", "attention-everywhere", "attention-in-the-decoder-only", "cogview"])
def test_the_keys_are_those_of_diffusers(name):
    assert model(name).attn_processors.keys() == oracle(name)[0].attn_processors.keys()


def test_a_model_without_attention_has_no_processors_and_takes_them():
    vae = model("cogview")
    assert vae.attn_processors == {}
    for processor in ({}, "eager", "lora"):
        vae.set_attn_processor(processor)
    vae.fuse_qkv_projections()
    vae.unfuse_qkv_projections()
    vae.fuse_lora()
    assert vae.attn_processors == {}
    with pytest.raises(InputError, match=r"unknown 'mid\.processor'; expected none: this model has no attention"):
        vae.set_attn_processor({"mid.processor": "eager"})


def test_each_layer_gets_the_processor_of_its_key():
    vae = model("kl-f16")
    seven = ("chunked", Chunked(3), "AttnProcessor", "fused", "lora", "sdpa", "eager")
    given = dict(zip(vae.attn_processors, seven, strict=True))
    handed = given.copy()
    vae.set_attn_processor(handed)
    assert handed == given
    assert vae.attn_processors == {key: as_processor(processor) for key, processor in given.items()}
    assert distance(vae, oracle("kl-f16")[0], "kl-f16") <= EXACT["float64"]


def test_diffusers_own_mapping_is_taken():
    vae = model("kl-f16")
    vae.set_attn_processor(oracle("kl-f16")[0].attn_processors)
    assert set(vae.attn_processors.values()) == {Sdpa()}


def test_the_mapping_that_is_read_may_be_changed_and_set():
    vae = model("kl-f16")
    mapping = vae.attn_processors
    key, *others = mapping
    mapping[key] = "eager"
    assert vae.attn_processors[key] == Sdpa()
    vae.set_attn_processor(mapping)
    assert vae.attn_processors == {key: Eager()} | dict.fromkeys(others, Sdpa())


ENCODER, DECODER = (f"{part}.mid_block.attentions.0.processor" for part in ("encoder", "decoder"))
WRONG = {
    "a-missing-key": ({ENCODER: "eager"}, f"missing '{DECODER}'; expected {ENCODER}, {DECODER}"),
    "all-keys-missing": ({}, f"missing '{DECODER}', '{ENCODER}'"),
    "an-unknown-key": ({ENCODER: "eager", DECODER: "fused", "mid": "eager"}, f"unknown 'mid'; expected {ENCODER}"),
    "a-layers-name": ({ENCODER: "eager", DECODER.removesuffix(".processor"): "eager"}, "unknown 'decoder.mid_block"),
    "a-key-that-is-no-name": ({ENCODER: "eager", DECODER: "fused", 3: "eager"}, "unknown '3'"),
    "an-unknown-processor": ({ENCODER: "fused", DECODER: "flash"}, "attention processor 'flash': choose sdpa"),
    "a-refused-processor": ({ENCODER: "lora", DECODER: "AttnAddedKVProcessor"}, "AttnAddedKVProcessor: it adds"),
}


@pytest.mark.parametrize(("mapping", "told"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_mapping_is_refused_by_name_and_changes_nothing(mapping, told):
    vae = with_processor("chunked")
    before, handed = state(vae), dict(mapping)
    with pytest.raises(InputError, match=re.escape(told)):
        vae.set_attn_processor(handed)
    assert handed == mapping
    np.testing.assert_equal(state(vae), before)


class Unwilling(Fused):
    """Refuses the weights of the decoder."""

    def adopt(self, layer, weights):
        if layer.name.startswith("decoder"):
            raise InputError("not these")
        return super().adopt(layer, weights)


def test_a_processor_that_fails_for_one_layer_is_set_in_none():
    vae = model(SMALL)
    before = state(vae)
    with pytest.raises(InputError, match="not these"):
        vae.set_attn_processor(Unwilling())
    np.testing.assert_equal(state(vae), before)


@pytest.mark.parametrize("processor", ["eager", "fused", "lora"])
@each_backend
def test_other_models_and_copies_keep_their_processors(backend, processor):
    vae, other = model(SMALL, backend), model(SMALL, backend)
    copies = [other, vae.with_params(vae.functional().params), vae.with_backend("numpy", dtype="float32")]
    before = [state(copy) for copy in copies]
    vae.set_attn_processor(processor)
    np.testing.assert_equal([state(copy) for copy in copies], before)
    after = state(vae)
    for copy in copies:
        copy.set_attn_processor("chunked")
    np.testing.assert_equal(state(vae), after)


# -- LoRA --------------------------------------------------------------------------------------------------------

UPDATE = LoRA(rank=2, alpha=3.0, scale=0.5)


def drawn_lora(vae: AutoencoderKL) -> dict[str, np.ndarray]:
    """Canonical weights for every LoRA of a model, none of them zero."""
    return {name: uniform(name, row.shape) for name, row in vae._model.table().items() if "_lora." in name}


def with_lora(vae: AutoencoderKL, weights: Mapping[str, np.ndarray]) -> AutoencoderKL:
    """The model after a training that led to these."""
    return vae.with_params(vae.functional().params | vae._model.ops.prepare(weights, vae._model.table()))


def updated(lora: Mapping[str, np.ndarray], factor: float, name: str = SMALL) -> torch.nn.Module:
    """diffusers' model with W + factor · up · down for each W of its attention."""
    weights, changes = oracle(name)[1], {}
    for key, up in lora.items():
        if found := re.fullmatch(r"(.+)\.processor\.(to_q|to_k|to_v|to_out)_lora\.up\.weight", key):
            layer, part = found.groups()
            weight = f"{layer}.{part}{'.0' if part == 'to_out' else ''}.weight"
            changes[weight] = weights[weight] + factor * up @ lora[key.replace(".up.", ".down.")]
    assert len(changes) == len(lora) / 2
    return changed(changes, name)


@each_backend
def test_a_new_lora_changes_nothing(backend):
    vae, z = model(SMALL, backend), compared(SMALL)[1]
    before = array(vae.decode(z).sample)
    vae.set_attn_processor("lora")
    np.testing.assert_array_equal(array(vae.decode(z).sample), before)


@pytest.mark.parametrize("lora", [UPDATE, LoRA(rank=5), LoRA(rank=2, core=Chunked(4)), LoRA(rank=2, core=Fused())])
@each_backend
def test_a_lora_is_diffusers_with_the_update_in_its_weights(backend, lora):
    vae = with_processor(lora, backend=backend)
    weights = drawn_lora(vae)
    vae, factor = with_lora(vae, weights), lora.scale * (lora.alpha or lora.rank) / lora.rank
    assert distance(vae, updated(weights, factor)) <= EXACT[vae.dtype]
    assert distance(vae, oracle(SMALL)[0]) > 1e-2


def test_a_lora_at_every_level_is_diffusers_with_the_update_in_its_weights():
    vae = with_processor(UPDATE, "kl-f16")
    weights = drawn_lora(vae)
    assert len(weights) == 7 * 4 * 2
    assert distance(with_lora(vae, weights), updated(weights, 0.75, "kl-f16"), "kl-f16") <= EXACT["float64"]


def test_its_parameters_are_named_as_in_diffusers_0_23():
    vae = with_processor(LoRA(rank=3), "sd")
    added = vae._model.table().keys() - parameters(vae.config).keys()
    assert added == {
        f"{part}.mid_block.attentions.0.processor.to_{projection}_lora.{way}.weight"
        for part in ("encoder", "decoder")
        for projection in ("q", "k", "v", "out")
        for way in ("down", "up")
    }
    assert {vae._model.table()[name].shape for name in added} == {(3, 24), (24, 3)}
    assert (
        vae.functional().params.keys()
        == vae.with_backend("torch").module().state_dict().keys()
        == vae._model.table().keys()
    )


def test_down_is_normal_with_deviation_one_over_rank_and_up_is_zero():
    """A deviation of n draws is within 5 / √(2 n) of its own size; of the mean, 5 / √n."""
    params = with_processor(LoRA(rank=8), "kl-f16").functional().params
    assert not any(params[name].any() for name in params if "_lora.up." in name)
    down = np.concatenate([a.ravel() for name, a in params.items() if "_lora.down." in name])
    assert abs(8 * down.std() - 1) < 5 / np.sqrt(2 * down.size)
    assert abs(8 * down.mean()) < 5 / np.sqrt(down.size)


def test_each_lora_is_drawn_for_itself_from_the_seed_and_alike_on_every_backend():
    def drawn(backend: str, seed: int) -> dict[str, np.ndarray]:
        vae = with_processor(LoRA(seed=seed), backend=backend, dtype="float32")
        params = vae._model.ops.export(vae._model.params, vae._model.table())
        return {name: params[name] for name in params if "_lora.down." in name}

    first, *others = (drawn(backend, 0) for backend in BACKENDS)
    for other in others:
        np.testing.assert_equal(other, first)
    every = [*first.values(), *drawn("numpy", 1).values()]
    assert len({a.tobytes() for a in every}) == len(every)


def test_training_a_lora_leaves_the_model_below_it_as_it_was():
    vae = with_processor(UPDATE, backend="torch")
    module, x = vae.module(), torch.tensor(compared(SMALL)[0])
    lora = {name: tensor for name, tensor in module.named_parameters() if "_lora." in name}
    module.requires_grad_(False)
    for tensor in lora.values():
        tensor.requires_grad_(True)
    optimiser, losses = torch.optim.Adam(lora.values(), lr=1e-2), []
    for _ in range(12):
        loss = (module(x).sample - x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]
    assert all(tensor.grad.abs().max() > 0 for tensor in lora.values())
    weights = oracle(SMALL)[1]
    for name, tensor in module.named_parameters():
        if name not in lora:
            assert tensor.grad is None, name
            np.testing.assert_array_equal(array(tensor), weights[name])


def test_gradients_reach_every_part_of_a_lora_after_one_step():
    """Before it, up is zero, and the gradient stops there."""
    module, x = with_processor(UPDATE, backend="torch").module(), torch.tensor(compared(SMALL)[0])
    lora = {name: tensor for name, tensor in module.named_parameters() if "_lora." in name}
    optimiser = torch.optim.SGD(lora.values(), lr=1e-2)

    def reached() -> set[str]:
        optimiser.zero_grad()
        module(x).sample.square().mean().backward()
        return {name for name, tensor in lora.items() if tensor.grad.any()}

    assert reached() == {name for name in lora if ".up." in name}
    optimiser.step()
    assert reached() == lora.keys()


@each_backend
def test_fusing_a_lora_puts_it_into_the_weights(backend, tmp_path):
    vae = with_processor(LoRA(rank=2, alpha=3.0, scale=0.5, core=Chunked(4)), backend=backend)
    weights = drawn_lora(vae)
    vae, theirs = with_lora(vae, weights), updated(weights, 0.75)
    vae.fuse_lora()
    assert set(vae.attn_processors.values()) == {Chunked(4)}
    assert distance(vae, theirs) <= EXACT[vae.dtype]
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_allclose(vae.weights()[name], array(tensor), rtol=EPS[vae.dtype], atol=EPS[vae.dtype])
    vae.save_pretrained(tmp_path)
    assert distance(vae, loaded(tmp_path)) <= EXACT[vae.dtype]


def loaded(folder) -> torch.nn.Module:
    """What diffusers makes of a folder, in float64."""
    return diffusers.AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float64).eval()


def test_fusing_without_a_lora_changes_nothing():
    vae = with_processor("chunked")
    before = state(vae)
    vae.fuse_lora()
    np.testing.assert_equal(state(vae), before)


def test_fusing_a_lora_leaves_other_layers_alone():
    vae = model(SMALL)
    vae.set_attn_processor({ENCODER: UPDATE, DECODER: Chunked(3)})
    weights = drawn_lora(vae)
    vae = with_lora(vae, weights)
    vae.fuse_lora()
    assert vae.attn_processors == {ENCODER: Sdpa(), DECODER: Chunked(3)}
    assert distance(vae, updated(weights, 0.75)) <= EXACT["float64"]


def test_weights_with_a_lora_in_them_are_not_handed_out_or_saved(tmp_path):
    vae = with_processor(UPDATE)
    told = (
        r"^encoder.mid_block.attentions.0 has a LoRA, which is no part .*: fuse_lora\(\) to add it .* or set_attn_proc"
    )
    for refused in (
        vae.weights,
        lambda: vae.save_pretrained(tmp_path / "folder"),
        lambda: vae.save_single_file(tmp_path / "file.safetensors"),
    ):
        with pytest.raises(InputError, match=told):
            refused()
    assert list(tmp_path.iterdir()) == []
    vae.set_attn_processor("sdpa")
    np.testing.assert_equal(vae.weights(), oracle(SMALL)[1])


@pytest.mark.parametrize(("again", "factor"), [(LoRA(rank=2, alpha=1.0), 0.5), (LoRA(2, scale=3.0, seed=9), 3.0)])
def test_another_scale_or_alpha_keeps_what_was_trained(again, factor):
    vae = with_processor(UPDATE)
    weights = drawn_lora(vae)
    vae = with_lora(vae, weights)
    vae.set_attn_processor(again)
    assert distance(vae, updated(weights, factor)) <= EXACT["float64"]


def test_another_rank_begins_anew():
    vae = with_processor(UPDATE)
    vae = with_lora(vae, drawn_lora(vae))
    vae.set_attn_processor(LoRA(rank=3))
    assert distance(vae, oracle(SMALL)[0]) <= EXACT["float64"]


@each_backend
def test_a_lora_moves_with_its_model(backend):
    vae = with_processor(UPDATE, backend=backend)
    weights = drawn_lora(vae)
    vae, theirs = with_lora(vae, weights), updated(weights, 0.75)
    vae.to(dtype="float32")
    assert distance(vae, theirs) <= EXACT["float32"]
    for there in BACKENDS:
        moved = vae.with_backend(there)
        assert set(moved.attn_processors.values()) == {UPDATE}
        np.testing.assert_equal(state(moved.with_backend(backend)), state(vae))
    assert distance(vae.with_backend("torch"), theirs) <= EXACT["float32"]


@pytest.mark.parametrize("rank", [0, -4])
def test_a_lora_of_no_rank_is_refused(rank):
    with pytest.raises(InputError, match=f"a LoRA of rank {rank}: expected at least 1"):
        LoRA(rank)


# -- fused projections -------------------------------------------------------------------------------------------


@each_backend
def test_fusing_the_projections_makes_one_of_three(backend):
    vae = model(SMALL, backend)
    before = state(vae)
    vae.fuse_qkv_projections()
    params = vae.functional().params
    (layer, other) = (key.removesuffix(".processor") for key in vae.attn_processors)
    assert params.keys() - before[1].keys() == {f"{n}.to_qkv.{e}" for n in (layer, other) for e in ("weight", "bias")}
    assert not any(f".{part}." in name for name in params for part in QKV)
    fused = vae._model.ops.export(vae._model.params, vae._model.table())[f"{layer}.to_qkv.weight"]
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
def test_fused_projections_are_attended_to_as_before_and_afterwards(processor):
    """As in diffusers, where unfusing brings back the processors that were there."""
    vae = with_processor(processor)
    vae.fuse_qkv_projections()
    assert set(vae.attn_processors.values()) == {Fused(core=processor)}
    vae.unfuse_qkv_projections()
    assert set(vae.attn_processors.values()) == {processor}


def test_a_lora_is_not_lost_by_fusing_the_projections():
    vae = with_processor(UPDATE)
    before = state(vae)
    with pytest.raises(InputError, match="is a LoRA"):
        vae.fuse_qkv_projections()
    np.testing.assert_equal(state(vae), before)


@each_backend
def test_what_a_fused_model_hands_out_and_saves_is_canonical(backend, tmp_path):
    vae = model(SMALL, backend)
    expected = vae.weights()
    vae.fuse_qkv_projections()
    np.testing.assert_equal(vae.weights(), expected)
    vae.save_pretrained(tmp_path)
    assert distance(vae, loaded(tmp_path)) <= EXACT[vae.dtype]


@each_backend
def test_a_fused_model_moves_and_trains_as_one(backend):
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

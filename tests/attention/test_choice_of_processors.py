"""Processors are set by name, class, object or layer, and always in all layers or in none."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
import torch
from diffusers.models import attention_processor
from support.attending import DECODER, ENCODER, SMALL, Sharper, distance, state, with_processor
from support.models import EXACT, each_backend, model
from support.oracle import oracle

from vaespec import InputError, attention
from vaespec.attention import Chunked, Eager, FusedQKV, LoRA, Processor, Sdpa
from vaespec.processors import BY_NAME, as_processor

READS_A_TEXT = "processors that read a text have no meaning in a VAE."

OF_DIFFUSERS_0_23: dict[str, Processor | str] = {
    "AttnProcessor": Eager(),
    "AttnProcessor2_0": Sdpa(),
    "XFormersAttnProcessor": Chunked(),
    "SlicedAttnProcessor": Chunked(),
    "AttnAddedKVProcessor": READS_A_TEXT,
    "SlicedAttnAddedKVProcessor": READS_A_TEXT,
    "AttnAddedKVProcessor2_0": READS_A_TEXT,
    "XFormersAttnAddedKVProcessor": READS_A_TEXT,
    "CustomDiffusionAttnProcessor": READS_A_TEXT,
    "CustomDiffusionXFormersAttnProcessor": READS_A_TEXT,
    "CustomDiffusionAttnProcessor2_0": READS_A_TEXT,
    "LoRAAttnProcessor": LoRA(core=Eager()),
    "LoRAAttnProcessor2_0": LoRA(),
    "LoRAXFormersAttnProcessor": LoRA(core=Chunked()),
    "LoRAAttnAddedKVProcessor": READS_A_TEXT,
}
"""The processors that `set_attn_processor` takes there, and ours for each, or the reason why it is refused."""


def object_of(name: str) -> object:
    """An object of diffusers' class of that name."""
    cls, options = getattr(attention_processor, name), {"slice_size": 4, "hidden_size": 8, "cross_attention_dim": 8}
    return cls(**{key: value for key, value in options.items() if key in inspect.signature(cls).parameters})


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
        with pytest.raises(InputError, match=f"^attention processor '{name}': choose sdpa, .*; {expected}$"):
            vae.set_attn_processor(form(name))
        assert vae.attn_processors == before


def test_the_fused_processor_is_the_only_newer_one_of_diffusers():
    taken = {name for name, expected in OF_DIFFUSERS_0_23.items() if isinstance(expected, Processor)}
    assert {name for name in BY_NAME if "Attn" in name} == taken | {"FusedAttnProcessor2_0"}
    assert as_processor(attention_processor.FusedAttnProcessor2_0()) == FusedQKV()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sdpa", Sdpa()), ("eager", Eager()), ("chunked", Chunked()), ("fused", FusedQKV()), ("lora", LoRA())],
)
def test_our_processors_have_short_names(name, expected):
    assert as_processor(name) == expected


def test_the_old_name_of_the_fused_processor_works_with_a_warning():
    with pytest.warns(DeprecationWarning, match=r"^vaespec\.attention\.Fused is now vaespec\.attention\.FusedQKV; "):
        old = attention.Fused
    assert old is FusedQKV
    with pytest.raises(AttributeError, match=r"module 'vaespec.attention' has no attribute 'Fuse'"):
        attention.Fuse  # noqa: B018


def test_a_processor_object_is_taken_as_it_is():
    processor = Sharper(2.0)
    assert as_processor(processor) is processor


@pytest.mark.parametrize(
    "given", ["flash", "", "SDPA", None, 3, object(), Chunked, attention_processor.AttnProcessorNPU]
)
@pytest.mark.parametrize("name", [SMALL, "cogview"])
def test_an_unknown_processor_is_refused_with_the_choices(given, name):
    with pytest.raises(InputError, match="choose sdpa, eager, chunked, fused, lora, AttnProcessor") as refused:
        model(name).set_attn_processor(given)
    assert "or an object of vaespec.attention.Processor; " in str(refused.value)


class LoRAAttnProcessor(torch.nn.Linear):
    """Has weights, as in diffusers 0.23."""


def test_a_processor_that_has_weights_is_refused():
    with pytest.raises(InputError, match=r"^attention processor LoRAAttnProcessor has weights of its own: give vae"):
        model(SMALL).set_attn_processor(LoRAAttnProcessor(2, 2))


def test_a_class_whose_objects_will_have_weights_is_taken():
    assert as_processor(LoRAAttnProcessor) == LoRA(core=Eager())


@each_backend
def test_the_default_is_sdpa_and_diffusers_default_is_eager(backend):
    vae = model(SMALL, backend)
    assert set(vae.attn_processors.values()) == {Sdpa()}
    vae.set_default_attn_processor()
    assert set(vae.attn_processors.values()) == {Eager()}


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


def test_the_mapping_that_a_model_returns_can_be_changed_and_set():
    vae = model("kl-f16")
    mapping = vae.attn_processors
    key, *others = mapping
    mapping[key] = "eager"
    assert vae.attn_processors[key] == Sdpa()
    vae.set_attn_processor(mapping)
    assert vae.attn_processors == {key: Eager()} | dict.fromkeys(others, Sdpa())


WRONG = {
    "a-missing-key": ({ENCODER: "eager"}, f"missing '{DECODER}'; expected {ENCODER}, {DECODER}"),
    "all-keys-missing": ({}, f"missing '{DECODER}', '{ENCODER}'"),
    "an-unknown-key": ({ENCODER: "eager", DECODER: "fused", "mid": "eager"}, f"unknown 'mid'; expected {ENCODER}"),
    "a-layers-name": ({ENCODER: "eager", DECODER.removesuffix(".processor"): "eager"}, "unknown 'decoder.mid_block"),
    "a-key-that-is-no-name": ({ENCODER: "eager", DECODER: "fused", 3: "eager"}, "unknown '3'"),
    "an-unknown-processor": ({ENCODER: "fused", DECODER: "flash"}, "attention processor 'flash': choose sdpa"),
    "a-refused-processor": ({ENCODER: "lora", DECODER: "AttnAddedKVProcessor"}, "'AttnAddedKVProcessor': choose"),
}


@pytest.mark.parametrize(("mapping", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_mapping_is_refused_by_name_and_changes_nothing(mapping, words):
    vae = with_processor("chunked")
    before, handed = state(vae), dict(mapping)
    with pytest.raises(InputError, match=re.escape(words)):
        vae.set_attn_processor(handed)
    assert handed == mapping
    np.testing.assert_equal(state(vae), before)


class Unwilling(FusedQKV):
    """Refuses the weights of the decoder."""

    def adopt(self, layer, weights):
        if layer.name.startswith("decoder"):
            raise InputError("not these")
        return super().adopt(layer, weights)


def test_a_processor_that_fails_in_one_layer_is_set_in_no_layer():
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

"""Helpers of the tests of attention: narrow models with a processor, and their distance from diffusers' models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import diffusers
import numpy as np
import pytest
import torch
from support.configs import CONFIGS, images, relative_l2, uniform
from support.models import array, model
from support.oracle import decoded, diffusers_model, encoded, oracle

from vaespec import AutoencoderKL
from vaespec.attention import Chunked, Eager, FusedQKV, LoRA, Processor, Sdpa
from vaespec.layers import Sequential
from vaespec.processors import attention_layers, with_processors

SMALL = "one-level"
"""The config of most tests: its latents are as large as its images."""
SIZES = {SMALL: (2, 3), "sd": (16, 24)}
"""(height, width) of images; attention gets 6 tokens from both sizes."""


ENCODER, DECODER = (f"{part}.mid_block.attentions.0.processor" for part in ("encoder", "decoder"))


def compared(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(images, latents) on which a named config is compared."""
    config = CONFIGS[name]
    x = images(config, *SIZES.get(name, (16, 32)), batch=2)
    f = config.downsampling_factor
    return x, uniform("z", (2, config.latent_channels, x.shape[2] // f, x.shape[3] // f), -2, 2)


def distance(vae: AutoencoderKL, theirs: torch.nn.Module, name: str = SMALL) -> float:
    """The greater relative error of encode and decode, against diffusers' model in float64.

    Through functional(): JAX then compiles operations, once for all tests, instead of every model.
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
    """Everything that setting a processor may change."""
    return vae.attn_processors, {name: array(p) for name, p in vae.functional().params.items()}


def loaded(folder) -> torch.nn.Module:
    """The model that diffusers loads from a folder, in float64."""
    return diffusers.AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float64).eval()


PROCESSORS = {
    "sdpa": Sdpa(),
    "eager": Eager(),
    "chunks-of-1": Chunked(1),
    "chunks-of-5-and-1": Chunked(5),
    "one-chunk": Chunked(6),
    "a-chunk-too-large": Chunked(7),
    "fused": FusedQKV(),
    "fused-eager": FusedQKV(core=Eager()),
    "fused-chunks": FusedQKV(core=Chunked(4)),
}

each_processor = pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS.keys())


@dataclass(frozen=True)
class Sharper(Processor):
    """A user's own processor: only this much code."""

    factor: float

    def attend(self, q, k, v, ops, *, scale):
        return ops.attention(q, k, v, scale=self.factor * scale)


UPDATE = LoRA(rank=2, alpha=3.0, scale=0.5)

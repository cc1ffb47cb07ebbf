"""Which processor does each attention layer use? Finds processors by name, and sets those of a model's layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from vaespec.attention import Attention, Chunked, Eager, FusedQKV, LoRA, Processor, Sdpa
from vaespec.errors import InputError
from vaespec.layers import Sequential
from vaespec.ops import Layer

BY_NAME: dict[str, Processor] = {
    "sdpa": Sdpa(),
    "eager": Eager(),
    "chunked": Chunked(),
    "fused": FusedQKV(),
    "lora": LoRA(),
    # The classes of diffusers. Its sliced and xFormers processors save memory, as chunks do.
    "AttnProcessor": Eager(),
    "AttnProcessor2_0": Sdpa(),
    "XFormersAttnProcessor": Chunked(),
    "SlicedAttnProcessor": Chunked(),
    "FusedAttnProcessor2_0": FusedQKV(),
    "LoRAAttnProcessor": LoRA(core=Eager()),
    "LoRAAttnProcessor2_0": LoRA(),
    "LoRAXFormersAttnProcessor": LoRA(core=Chunked()),
}


def as_processor(given: Any) -> Processor:
    """A processor from a Processor, a name of BY_NAME, or one of diffusers' classes or objects; else InputError."""
    if isinstance(given, Processor):
        return given
    name = given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)
    if name not in BY_NAME:
        raise InputError(
            f"attention processor {name!r}: choose {', '.join(BY_NAME)}, or an object of vaespec.attention.Processor; "
            "processors that read a text have no meaning in a VAE."
        )
    if not isinstance(given, type) and getattr(given, "state_dict", dict)():
        raise InputError(
            f"attention processor {name} has weights of its own: give vaespec.attention.LoRA, and load the weights as "
            "its parameters."
        )
    return BY_NAME[name]


def assign(given: Any, layers: Iterable[Attention]) -> dict[str, Processor]:
    """The processor of each layer, by the layer's name, from one processor for all or from a mapping.

    The keys of a mapping are diffusers': `{layer name}.processor`. Raises InputError unless it names every layer and
    nothing else. The mapping is not changed.
    """
    names = [layer.name for layer in layers]
    if not isinstance(given, Mapping):
        return dict.fromkeys(names, as_processor(given))
    keys = {f"{name}.processor": name for name in names}
    for problem, wrong in (("unknown", set(given) - set(keys)), ("missing", set(keys) - set(given))):
        if wrong:
            raise InputError(
                f"attention processors: {problem} {', '.join(map(repr, sorted(map(str, wrong))))}; "
                f"expected {', '.join(keys) or 'none: this model has no attention'}."
            )
    return {keys[key]: as_processor(processor) for key, processor in given.items()}


def attention_layers(model: Sequential) -> list[Attention]:
    """The attention layers of a model, in order."""
    return [layer for layer in model.layers if isinstance(layer, Attention)]


def with_processors(model: Sequential, processors: Mapping[str, Processor]) -> Sequential:
    """A copy of the model with `processors`, by the names of attention layers; the other layers keep theirs."""

    def changed(layer: Layer) -> Layer:
        if isinstance(layer, Attention) and layer.name in processors:
            return replace(layer, processor=processors[layer.name])
        return layer

    return Sequential(tuple(map(changed, model.layers)))

"""The parts of AutoencoderKLModule: modules with a forward, which hooks, FSDP, accelerate and torch.compile wrap."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vaespec.architecture import HALVES, Half
from vaespec.errors import NonFiniteError
from vaespec.layers import Sequential
from vaespec.model import Bands, Model, Stream
from vaespec.tiling.settings import Tiling
from vaespec.upcast import unchecked
from vaespec_torch.live import Leaf, Live, is_unhooked
from vaespec_torch.owners import Compute, ModuleOps, Owner


class Part(nn.Module):
    """A half, or the 1 x 1 convolution between a half and the latents, with its parameters beneath it.

    `m.encoder(x)` are the moments before quant_conv; `m.decoder(z)` takes latents after post_quant_conv. `ops` pad as
    the module says, and know whether to checkpoint.
    """

    def __init__(self, layers: Sequential, ops: ModuleOps) -> None:
        super().__init__()
        self.ops: Any = ops
        self.update(layers, Tiling(), None, type(ops))

    def update(self, layers: Sequential, tiling: Tiling, force_upcast: bool | None, kind: type[ModuleOps]) -> None:
        """Take the settings of the module."""
        rows = [(name, name.partition(".")[2].rpartition("."), row.shape) for name, row in layers.parameters()]
        self._places = [(name, path, leaf, shape) for name, (path, _, leaf), shape in rows]
        self.layers, self.ops, self.kind = layers, tiling.padded(kind.like(self.ops)), kind
        self.force_upcast = force_upcast

    def forward(self, x: Tensor, bands: Callable[[Sequential], Stream] | None = None, *, wide: bool = False) -> Tensor:
        """Run the layers, in bands of rows if a function is given that makes them: (B, C, H, W) -> (B, C, H, W).

        If float16 is upcast and `wide`, the result is float32, for the next part to go on with.
        """
        params = self._params()
        if bands is not None:
            return torch.cat(list(bands(self.layers)(x, params)), dim=2)
        return self.layers(x, params, unchecked(self.ops, self.layers, params, self.force_upcast, wide=wide))

    def _params(self) -> dict[str, Any]:
        """For each name the owner of the parameter, to be called; for the part's own parameters, the tensor.

        They are looked up anew each time: parametrizations, FSDP and offloading put others in their place.
        """
        found: dict[str, Any] = {}
        for name, path, leaf, shape in self._places:
            owner = self.get_submodule(path)
            found[name] = Owner(owner, shape, _enter) if path and leaf in ("weight", "bias") else getattr(owner, leaf)
        return found


class Weights(nn.Module):
    """The parameters of one layer, which compute when they are called: so hooks run around each layer."""

    def forward(self, x: Tensor, compute: Compute) -> Tensor:
        weight: Any = self.weight  # a parameter, a parametrization's result, or what FSDP gathered
        return compute(x, weight, getattr(self, "bias", None))


def through(parts: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Call the parts of a half one after the other; if they are float16, what is between them may be float32."""
    for part in parts[:-1]:
        x = _call(part, x, wide=True) if x.dtype == torch.float16 else part(x)
    return parts[-1](x)


def _call(part: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """Call a part with options of Part.forward, or without them if what wraps it takes its input alone."""
    if not isinstance(part, Part):
        try:
            inspect.signature(part.forward).bind(x, **options)
        except TypeError:
            return part(x)
    return part(x, **options)


def _enter(owner: nn.Module, x: Tensor, compute: Compute) -> Tensor:
    return owner(x, compute)


@dataclass(frozen=True, eq=False, kw_only=True)
class CalledModel(Model):
    """A model whose halves are computed by calls of their parts, whatever wraps or hooks them."""

    parts: Mapping[Half, list[nn.Module]]

    def run(self, half: Half, x: Tensor, compile: Any = None) -> Tensor:
        """See Model.run; an error names no layer."""
        return self._returned(half, through(self.parts[half], x))

    def stream(self, half: Half, x: Any, bands: Bands) -> Iterator[Tensor]:
        """See Model.stream; each part works in bands within its call, and returns the whole.

        A part in what takes one argument alone, as nn.Sequential does, works without bands.
        """
        x = x[...]  # hooks and wrappers expect a tensor
        for part in self.parts[half]:
            x = _call(part, x, bands=bands(self.ops))
        yield self._returned(half, x)

    def _returned(self, half: Half, y: Tensor) -> Tensor:
        if self.ops.all_finite(y):
            return y
        raise NonFiniteError(f"the {half.result} are not finite: run without hooks and wrappers to learn the layer.")


class LiveParts(Live):
    """Runs the halves of a model: `root` has a Part, or what wraps it, for each of the `names` of its parts."""

    def __init__(self, root: nn.Module, model: Model) -> None:
        compiled = getattr(model.ops, "compiles", False)
        super().__init__(root, precision=model.ops.precision, compile=compiled)  # type: ignore[attr-defined]
        self.names = {name: tuple(getattr(model, name).parts()) for name in HALVES}

    def owner(self, path: str) -> nn.Module:
        name, _, rest = path.partition(".")
        return self.part(name).get_submodule(rest)

    def part(self, name: str) -> nn.Module:
        """The part of that name, without what wraps it."""
        module: nn.Module = getattr(self.root, name)
        return next((m for m in module.modules() if isinstance(m, Part)), module)

    def is_plain(self, owner: nn.Module) -> bool:
        return type(owner) in (Part, Weights) and is_unhooked(owner)

    def reads_in_place(self, model: Model, half: Half, leaves: Mapping[str, Leaf], x: Any) -> bool:
        """Also: no part is wrapped, or has other layers, as one of another module may."""
        parts = {name: getattr(self.root, name) for name in model.layers(half).parts()}
        expected = model.layers(half).parts()
        plain = all(self.is_plain(part) and part.layers == expected[name] for name, part in parts.items())
        return plain and super().reads_in_place(model, half, leaves, x)

    def called(self, model: Model) -> Model:
        fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
        return CalledModel(**fields, parts={half: self.parts(half) for half in HALVES.values()})

    def parts(self, half: Half) -> list[nn.Module]:
        """The modules that compute a half one after the other, with what wraps them."""
        return [getattr(self.root, name) for name in self.names[half.name]]

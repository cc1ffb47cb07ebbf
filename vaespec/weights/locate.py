"""Where the VAE is in a file: under which prefix, in which dialect and layout, and which halves of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from vaespec.errors import WeightMapError
from vaespec.layouts import OIHW, Layout
from vaespec.weights.containers import TensorFile
from vaespec.weights.dialects import DIALECTS, DIFFUSIONKIT, IGNORED, MLX, OTHER_MODELS, Dialect, known_dialect
from vaespec.weights.layouts import Shape, detect

MAX_INDEX = 32  # levels and resnets that are looked for
FIRST_LAYER = re.compile(r"(.*\.|)(?:encoder|decoder)\.conv_in\.")
RESNET_KERNEL = re.compile(r"\.conv[12]\.(?:weight|kernel)$")

# Names that tell dialects apart; {} is the half.
PROBES = (
    "{}.conv_in.weight",
    "{}.mid_block.resnets.0.norm1.weight",
    "{}.mid_block.attentions.0.to_q.weight",
    "{}.mid_block.attentions.0.to_out.0.weight",
    "{}.conv_norm_out.weight",
    "quant_conv.weight",
    "post_quant_conv.weight",
)
BLOCKS = {"encoder": "encoder.down_blocks", "decoder": "decoder.up_blocks"}


@dataclass(frozen=True)
class Located:
    """The VAE in a file, by canonical names. `halves` are "encoder" and "decoder", or one of them.

    `levels` is its number of resolutions, `ema` tells that the moving average is read instead of the weights.
    """

    file: TensorFile
    prefix: str
    dialect: Dialect
    layout: Layout
    halves: tuple[str, ...]
    levels: int = 1
    ema: bool = False

    def stored(self, name: str) -> str:
        """The name in the file; names of LDM's moving averages have no dots."""
        stored = self.dialect.stored(name, self.levels)
        return self.prefix + (f"model_ema.{stored.replace('.', '')}" if self.ema else stored)

    def has(self, name: str) -> bool:
        """Whether the file has the tensor of this canonical name."""
        return self.stored(name) in self.file

    def has_module(self, name: str) -> bool:
        """Whether the file has the weight or the bias of this module: what has lost one of them is still there."""
        return self.has(f"{name}.weight") or self.has(f"{name}.bias")

    def kernel(self, name: str) -> Shape:
        """The shape of a kernel with its axes in canonical order: the outputs, then the inputs."""
        if not self.has(name):
            raise WeightMapError(f"{self.file.path} has no {self.stored(name)}, which every AutoencoderKL has.")
        shape = self.file.shape(self.stored(name))
        if len(shape) < 2 or 0 in shape:
            raise WeightMapError(f"{self.file.path}: {self.stored(name)} is {shape}, which is no kernel.")
        return tuple(shape[axis] for axis in self.layout.permutation(len(shape), OIHW))

    def count(self, template: str) -> int:
        """How many indices, from 0, the file has in this canonical module name; WeightMapError if there is a gap."""
        return _count([(self, template.format(i)) for i in range(MAX_INDEX)])

    def ignored(self) -> list[str]:
        """The names below the prefix that say nothing about the model: a loss, a moving average."""
        harmless = tuple(self.prefix + name for name in IGNORED)
        return [key for key in self.file if key.startswith(harmless)]


def locate(
    file: TensorFile, *, prefix: str | None = None, dialect: str | None = None, use_ema: bool = False
) -> Located:
    """Find prefix, dialect, halves and levels by names, and the layout by shapes. Nothing is read.

    Raises WeightMapError where there is no VAE, or more than one, or another kind of autoencoder.
    """
    prefix = _prefix(file, prefix)
    _refuse_other_models(file, prefix)
    halves = tuple(half for half in BLOCKS if any(key.startswith(f"{prefix}{half}.") for key in file))
    own = tuple(f"{prefix}{half}." for half in halves)
    kernels = [(key, file.shape(key)) for key in file if key.startswith(own) and RESNET_KERNEL.search(key)]
    spoken = _dialect(file, prefix, halves, kernels) if dialect is None else known_dialect(dialect)
    here = Located(file, prefix, spoken, detect(kernels, spoken.layout), halves)
    here = replace(here, levels=_levels(here))
    if not use_ema:
        return here
    average = replace(here, ema=True)
    first = f"{halves[0]}.conv_in.weight"
    if not average.has(first):
        raise WeightMapError(f"{file.path} has no EMA copy of the VAE: no {average.stored(first)}.")
    return average


def _prefix(file: TensorFile, asked: str | None) -> str:
    """The text before encoder.conv_in and decoder.conv_in, whatever it is."""
    found = sorted({match[1] for key in file if (match := FIRST_LAYER.match(key))})
    if not found:
        _refuse_other_models(file, "")
        names = ", ".join(sorted(file)[:3])
        raise WeightMapError(
            f"no VAE in {file.path}: none of its {len(file)} names ({names}, ...) has encoder.conv_in or "
            "decoder.conv_in in it."
        )
    if asked is None and len(found) > 1:
        raise WeightMapError(f"{len(found)} VAEs in {file.path}, under the prefixes {found}: give prefix= to choose.")
    if asked is not None and asked not in found:
        raise WeightMapError(f"no VAE under the prefix {asked!r} in {file.path}: choose from {found}.")
    return found[0] if asked is None else asked


def _dialect(file: TensorFile, prefix: str, halves: tuple[str, ...], kernels: list[tuple[str, Shape]]) -> Dialect:
    """The dialect with most of the probed names in the file; among equals one of this layout, then the first."""
    probes = {probe.format(half) for probe in PROBES for half in halves}

    def fit(dialect: Dialect) -> tuple[int, bool]:
        return (
            sum(prefix + dialect.stored(probe, levels=1) in file for probe in probes),
            detect(kernels, dialect.layout) == dialect.layout,
        )

    best = max(DIALECTS.values(), key=fit)
    return _flipped(file, prefix) if best == MLX else best


def _flipped(file: TensorFile, prefix: str) -> Dialect:
    """DiffusionKit's names are those of mlx-examples, its levels in the other order: the decoder narrows on its way."""
    names = [f"{prefix}decoder.up_blocks.{i}.resnets.0.conv1.bias" for i in range(MAX_INDEX)]
    widths = [file.shape(name) for name in names if name in file]
    if len(set(widths)) == 1 < len(widths):
        raise WeightMapError(
            f"{file.path} does not show whether its decoder's levels are in the order of mlx or of diffusionkit, all "
            "being of one width: give dialect=."
        )
    return DIFFUSIONKIT if widths and widths[0] < widths[-1] else MLX


def _levels(here: Located) -> int:
    """Of the first half that is there. Level i of 2 i + 1 is i from either end: dialects differ in where they begin."""
    block = BLOCKS[here.halves[0]]
    return max(1, _count([(replace(here, levels=2 * i + 1), f"{block}.{i}.resnets.0.norm1") for i in range(MAX_INDEX)]))


def _count(modules: list[tuple[Located, str]]) -> int:
    """How many of these are there, one after the other."""
    there = [here.has_module(name) for here, name in modules]
    if not all(there[: sum(there)]):
        names = [here.stored(f"{name}.weight") for here, name in modules]
        missing, last = names[there.index(False)], names[len(there) - 1 - there[::-1].index(True)]
        raise WeightMapError(f"{modules[0][0].file.path} has no {missing}, but {last}: it is incomplete.")
    return sum(there)


def _refuse_other_models(file: TensorFile, prefix: str) -> None:
    parts = tuple(prefix + part for part in ("encoder.", "decoder.", "quantize."))
    for key in (key for key in file if key.startswith(parts)):
        for marker, model in OTHER_MODELS.items():
            if marker in key:
                raise WeightMapError(f"{file.path} is not an AutoencoderKL but {model}.")
        if len(file.shape(key)) == 5:
            raise WeightMapError(f"{file.path} is not an AutoencoderKL but a video VAE: {key} is {file.shape(key)}.")

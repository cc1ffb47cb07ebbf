"""Finding the VAE in a file: its prefix, its dialect, the layout of its kernels, and which halves it has."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, Unpack

from vaespec.config_checks import MAX_LAYERS, MAX_LEVELS
from vaespec.errors import WeightMapError
from vaespec.layouts import Layout
from vaespec.weights.bare_halves import with_named_halves
from vaespec.weights.beside import is_beside, without_copies
from vaespec.weights.containers import TensorFile, open_tensors
from vaespec.weights.dialects import (
    DIALECTS,
    DIFFUSIONKIT,
    EMA,
    MLX,
    OTHER_FILES,
    OTHER_MODELS,
    OWN,
    Dialect,
    known_dialect,
)
from vaespec.weights.forms import refuse_adapter_alone, refuse_other_forms
from vaespec.weights.layouts import Shape, detect, oihw_shape
from vaespec.weights.listing import shortened
from vaespec.weights.wrappers import FIRST_LAYER, bare, unwrapped

MAX_INDEX = max(MAX_LEVELS, MAX_LAYERS + 1)  # a decoder has one resnet more in a level
RESNET_KERNEL = re.compile(r"\.conv[12]\.(?:weight|kernel)$")

# Names in which dialects differ; {} is the half.
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


class Reading(TypedDict, total=False):
    """Options for a file that can be read in several ways.

    `prefix` chooses one of several VAEs; `dialect` is needed if the names do not show it; `use_ema` reads the moving
    average instead of the weights; `strict=False` leaves out tensors that are not the model's, with a warning;
    `allow_nonfinite` accepts NaN and infinity.
    """

    prefix: str | None
    dialect: str | None
    use_ema: bool
    strict: bool
    allow_nonfinite: bool


@dataclass(frozen=True)
class VaeInFile:
    """The VAE in a file, addressed by canonical names. `halves` are "encoder" and "decoder", or one of them.

    `levels` is its number of resolutions; with `ema` the moving average is read instead of the weights. `inner` are the
    prefixes of other VAEs in the file that begin with `prefix`. `bare` is True if the file's own names are without the
    name of the half.
    """

    file: TensorFile
    prefix: str
    dialect: Dialect
    layout: Layout
    halves: tuple[str, ...]
    levels: int = 1
    ema: bool = False
    inner: tuple[str, ...] = ()
    bare: bool = False

    def stored(self, name: str) -> str:
        """The name in the file if it has one, or else what it would be, by the other tensors of the same layer.

        LDM's moving averages have names without dots.
        """
        written = self._in_file(self.dialect.stored(name, self.levels))
        if written in self.file:
            return written
        others = list(map(self._in_file, self.dialect.others(name, self.levels)))
        layers = (other for other in others if f"{other.rpartition('.')[0]}.weight" in self.file)
        return next((other for other in others if other in self.file), next(layers, written))

    def _in_file(self, stored: str) -> str:
        return self.prefix + (f"{EMA}.{stored.replace('.', '')}" if self.ema else stored)

    def has(self, name: str) -> bool:
        """Whether the file has the tensor of this canonical name."""
        return self.stored(name) in self.file

    def has_module(self, name: str) -> bool:
        """Whether the file has the weight or the bias of this module; a module that lost one of them still counts."""
        return self.has(f"{name}.weight") or self.has(f"{name}.bias")

    def kernel(self, name: str) -> Shape:
        """The shape of a kernel in OIHW or OI. Raises WeightMapError if there is none."""
        if not self.has(name):
            raise WeightMapError(f"{self.file.path} has no {self.stored(name)}, which every AutoencoderKL has.")
        shape = self.file.shape(self.stored(name))
        if len(shape) < 2 or 0 in shape:
            raise WeightMapError(f"{self.file.path}: {self.stored(name)} has the shape {shape}, which is no kernel's.")
        return oihw_shape(shape, self.layout)

    def count(self, template: str) -> int:
        """How many modules of this name the file has, for indices from 0. Raises WeightMapError if there is a gap."""
        return _count([(self, template.format(i)) for i in range(MAX_INDEX)])

    def names(self) -> list[str]:
        """The names under the prefix, without those of another VAE's prefix."""
        return [key for key in self.file if key.startswith(self.prefix) and not key.startswith(self.inner)]

    def ignored(self) -> list[str]:
        """The names under the prefix that training left: a loss, a moving average."""
        return [key for key in self.names() if is_beside(bare(key[len(self.prefix) :]))]

    def is_own(self, key: str) -> bool:
        """Whether a name in the file is that of an encoder, a decoder, or a layer that a model may have beside them."""
        return key.startswith(self.prefix) and key[len(self.prefix) :].split(".")[0] in OWN

    def unread(self, read: Collection[str]) -> tuple[list[str], list[str]]:
        """The file's names that are not in `read`: those under the prefix, and the rest of a full checkpoint."""
        own = [key for key in self.names() if key not in read]
        known = {*read, *own}
        return own, [key for key in self.file if key not in known]


def open_vae(path: Path, **options: Unpack[Reading]) -> VaeInFile:
    """Open a file and locate the VAE in it. Raises WeightFileError if the file cannot be read, and as `locate`."""
    return locate_as(open_tensors(path), options)


def locate_as(file: TensorFile, options: Reading) -> VaeInFile:
    """Locate the VAE in an opened file, as the options say."""
    return locate(file, options.get("prefix"), options.get("dialect"), options.get("use_ema", False))


def locate(file: TensorFile, prefix: str | None = None, dialect: str | None = None, use_ema: bool = False) -> VaeInFile:
    """Find prefix, dialect, halves and levels by names, and the layout by shapes. Reads no tensor.

    Raises WeightMapError if there is no VAE, more than one, or another kind of autoencoder.
    """
    named = with_named_halves(file)
    is_bare, file = named is not file, unwrapped(named, prefix)
    prefixes = _prefixes(file)
    prefix = _chosen(file, prefixes, prefix)
    parts = tuple(f"{prefix}{part}." for part in OWN)
    refuse_other_forms(file, [key for key in file if key.startswith(parts)])
    _refuse_other_models(file, prefix)
    halves = tuple(half for half in BLOCKS if any(key.startswith(f"{prefix}{half}.") for key in file))
    own = tuple(f"{prefix}{half}." for half in halves)
    kernels = [(key, file.shape(key)) for key in file if key.startswith(own) and RESNET_KERNEL.search(key)]
    names = _dialect(file, prefix, halves, kernels) if dialect is None else known_dialect(dialect)
    inner = tuple(other for other in without_copies(prefixes) if other != prefix and other.startswith(prefix))
    layout = detect(kernels, names.layout, file.path)
    vae = VaeInFile(file, prefix, names, layout, halves, inner=inner, bare=is_bare)
    vae = replace(vae, levels=_levels(vae))
    if not use_ema:
        return vae
    average = replace(vae, ema=True)
    first = f"{halves[0]}.conv_in.weight"
    if not average.has(first):
        raise WeightMapError(f"{file.path} has no EMA copy of the VAE (no {average.stored(first)}): leave use_ema out.")
    return average


def _prefixes(file: TensorFile) -> list[str]:
    """The texts before encoder.conv_in and decoder.conv_in, whatever they are."""
    if prefixes := sorted({match[1] for key in file if (match := FIRST_LAYER.match(key))}):
        return prefixes
    refuse_adapter_alone(file)
    _refuse_other_models(file, "")
    if not file:
        raise WeightMapError(f"no VAE in {file.path}: it has no tensors; give the file of the model's weights.")
    other = next((what for pattern, what in OTHER_FILES if any(map(pattern.match, file))), None)
    names = ", ".join(sorted(file)[:3]) + ", ..." * (len(file) > 3)
    raise WeightMapError(
        f"no VAE in {file.path}: no name of a tensor ({names}) contains encoder.conv_in or decoder.conv_in"
        f"{f', but some are those of {other}' if other else ''}; give the file of the VAE."
    )


def _chosen(file: TensorFile, prefixes: list[str], request: str | None) -> str:
    """The requested prefix, or the only one that is not of a copy, such as an average."""
    main = without_copies(prefixes)
    shown = f"[{', '.join(shortened(list(map(repr, prefixes))))}]"
    if request is None and len(main) > 1:
        raise WeightMapError(f"{len(main)} VAEs in {file.path}, under the prefixes {shown}: give prefix= to choose.")
    if request is not None and request not in prefixes:
        raise WeightMapError(f"no VAE under the prefix {request!r} in {file.path}: choose from {shown}.")
    return main[0] if request is None else request


def _dialect(file: TensorFile, prefix: str, halves: tuple[str, ...], kernels: list[tuple[str, Shape]]) -> Dialect:
    """The dialect with the most probed names in the file; among equals one of the file's layout, then the first."""
    probes = {probe.format(half) for probe in PROBES for half in halves}

    def fit(dialect: Dialect) -> tuple[int, bool]:
        return (
            sum(prefix + dialect.stored(probe, levels=1) in file for probe in probes),
            detect(kernels, dialect.layout, file.path) == dialect.layout,
        )

    best = max(DIALECTS.values(), key=fit)
    return _flipped(file, prefix) if best == MLX else best


def _flipped(file: TensorFile, prefix: str) -> Dialect:
    """DiffusionKit or mlx: both use the same names, but count levels in opposite orders. A decoder gets narrower."""
    names = [f"{prefix}decoder.up_blocks.{i}.resnets.0.conv1.bias" for i in range(MAX_INDEX)]
    widths = [file.shape(name) for name in names if name in file]
    if len(set(widths)) == 1 < len(widths):
        raise WeightMapError(
            f"{file.path} does not show whether its decoder's levels are in the order of mlx or of diffusionkit, since "
            "all have one width: give dialect=."
        )
    return DIFFUSIONKIT if widths and widths[0] < widths[-1] else MLX


def _levels(vae: VaeInFile) -> int:
    """The number of resolutions, counted in one half.

    Dialects count levels from different ends; level i of 2 i + 1 is i from either end.
    """
    block = BLOCKS[vae.halves[0]]
    return max(1, _count([(replace(vae, levels=2 * i + 1), f"{block}.{i}.resnets.0.norm1") for i in range(MAX_INDEX)]))


def _count(modules: list[tuple[VaeInFile, str]]) -> int:
    """How many of these modules the file has. Raises WeightMapError unless they are the first ones."""
    present = [vae.has_module(name) for vae, name in modules]
    if not all(present[: sum(present)]):
        names = [vae.stored(f"{name}.weight") for vae, name in modules]
        missing, last = names[present.index(False)], names[len(present) - 1 - present[::-1].index(True)]
        raise WeightMapError(f"{modules[0][0].file.path} has no {missing}, but {last}: it is incomplete.")
    return sum(present)


def _refuse_other_models(file: TensorFile, prefix: str) -> None:
    parts = tuple(prefix + part for part in ("encoder.", "decoder.", "quantize."))
    for key in (key for key in file if key.startswith(parts)):
        for marker, model in OTHER_MODELS.items():
            if marker in key:
                raise WeightMapError(f"{file.path} is not an AutoencoderKL but {model}.")
        if len(file.shape(key)) == 5:
            raise WeightMapError(
                f"{file.path} is not an AutoencoderKL but a video VAE: {key} has the shape {file.shape(key)}."
            )

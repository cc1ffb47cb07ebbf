"""An encoder or a decoder that was saved alone, with names that do not say which, and a view of a file that says it.

Such names are those of the whole model without `encoder.` or `decoder.`: conv_in, down_blocks or up_blocks, conv_out.
FLUX.2's small decoder is published so.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Set

from vaespec.errors import WeightMapError
from vaespec.weights.beside import is_beside
from vaespec.weights.containers import TensorFile
from vaespec.weights.dialects import EMA, OWN
from vaespec.weights.wrappers import FIRST_LAYER, Renamed, bare

# The first layers and groups of layers inside a half, in any dialect. Its levels show which half it is.
LAYER = re.compile(
    r"(?P<prefix>(?:[^./]+\.)*?)"
    r"(?:(?P<first>conv_in)|conv_out|conv_norm_out|norm_out|(?P<levels>down|up|mid)(?:_blocks?)?(?:_\d+)?)\."
)
LEVELS = {"down": "encoder", "up": "decoder"}

# A module that a network for removing noise has beside such layers.
OF_NOISE = re.compile(
    r"(?P<prefix>(?:[^./]+\.)*?)(?:time_embedding|time_embed|time_proj|temb|add_embedding|class_embedding)\."
)
DEEPEST = 32  # parts of a name behind its prefix, with wrappers' names


def with_named_halves(file: TensorFile) -> TensorFile:
    """The file itself, or a view in which the names of a half that was saved alone begin as in the whole model.

    The names of quant convolutions, and of what training left beside the half, stay. Raises WeightMapError if the names
    are those of no half, or of both.
    """
    if any(map(FIRST_LAYER.match, file)):
        return file
    halves = _halves(file)
    return Renamed(file, {_in_half(name, halves, file): name for name in file}) if halves else file


def _halves(file: TensorFile) -> dict[str, str]:
    """Maps each text before the layers of a half, with wrappers' names in it, to the name of that half."""
    texts: defaultdict[str, set[str]] = defaultdict(set)
    levels: defaultdict[str, set[str]] = defaultdict(set)
    begun = set()
    for match in filter(None, map(LAYER.match, file)):
        prefix = bare(match["prefix"])
        texts[prefix].add(match["prefix"])
        levels[prefix] |= LEVELS.keys() & {match["levels"]}
        if match["first"]:
            begun.add(prefix)
    noise = {bare(match["prefix"]): match.string for match in filter(None, map(OF_NOISE.match, file))}
    noise = {prefix: name for prefix, name in noise.items() if prefix in begun}
    halves = {p: LEVELS[min(levels[p])] for p in begun - noise.keys() if len(levels[p]) == 1}
    if begun and not halves:
        raise _no_half(file, noise, levels[min(begun)])
    return {text: half for prefix, half in halves.items() for text in texts[prefix]}


def _no_half(file: TensorFile, noise: Mapping[str, str], levels: Set[str]) -> WeightMapError:
    if noise:
        name = min(noise.values(), key=len)
        return WeightMapError(
            f"{file.path} is not an AutoencoderKL but a network that removes noise, such as a UNet or a ControlNet (it "
            f"has {name}): give the file of the VAE."
        )
    why = "levels both down and up, so it is no half of one" if levels else "neither levels down nor up"
    return WeightMapError(
        f"no VAE in {file.path}: beside conv_in it has {why}; an encoder saved alone has down or down_blocks, a "
        "decoder up or up_blocks, and a whole VAE has encoder. and decoder. before them."
    )


def _in_half(name: str, halves: Mapping[str, str], file: TensorFile) -> str:
    """The name with the name of its half after the prefix; the name itself if it is of no half."""
    prefix = _prefix(name, halves)
    if prefix not in halves:
        return name
    rest = name[len(prefix) :]
    inside = f"{prefix}{halves[prefix]}.{rest}"
    stays = bare(rest).split(".")[0] in (*OWN, EMA) or is_beside(bare(rest))
    return name if stays or inside in file else inside


def _prefix(name: str, halves: Mapping[str, str]) -> str:
    """The longest of the texts before a half with which the name begins; "" if there is none."""
    end = len(name)
    for _ in range(DEEPEST):
        end = name.rfind(".", 0, max(end, 0))
        if name[: end + 1] in halves:
            return name[: end + 1]
    return ""

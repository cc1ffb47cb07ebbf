"""Files as other programs write them: real names and shapes, with numbers that are all different.

The meaning of every name is described a second time, by anchored regular expressions from the file's name to the
canonical one and by axis letters: written from the formats' grammar, not from vaespec's tables.
"""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from vaespec import AutoencoderConfig
from vaespec.weights import load_file
from vaespec.weights.containers.quantized import dequantized
from vaespec.weights.containers.tensor_file import TensorFile

PACKED = Path(__file__).parents[1] / "keys" / "listings.json.xz"

Arrays = dict[str, np.ndarray]


@cache
def listings() -> dict[str, dict[str, Any]]:
    """What tests/keys/pack.py packed: {tensor: shape} of files, and configs."""
    return json.loads(lzma.decompress(PACKED.read_bytes()))


def listing(name: str) -> dict[str, Any]:
    return listings()[name]


# -- numbers -----------------------------------------------------------------------------------------------------

STEPS = (7, 13, 101, 211)  # from one output, input, row, column to the next: no two axes look alike
TAGS = 2**15  # room for the largest kernel between two tensors; 2^9 of them fit a float32


def tagged(shapes: Mapping[str, Any]) -> Arrays:
    """Tensor k is k · TAGS plus a ramp along each axis; its numbers share a little memory."""
    return {name: _ramp(k * TAGS, tuple(shape)) for k, (name, shape) in enumerate(shapes.items(), start=1)}


def _ramp(start: int, shape: tuple[int, ...]) -> np.ndarray:
    if not shape:
        return np.array(start, np.int64)
    size = 1 + sum((n - 1) * step for n, step in zip(shape, STEPS, strict=False))
    assert size <= TAGS
    line = np.arange(start, start + size, dtype=np.float32)
    return np.lib.stride_tricks.as_strided(line, shape, [step * line.itemsize for step in STEPS[: len(shape)]])


def assert_same(actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert set(actual) == set(expected)
    for name, a in expected.items():
        b = actual[name]
        assert (b.dtype, b.shape) == (a.dtype, a.shape), name
        assert np.array_equal(b, a), name


# -- formats -----------------------------------------------------------------------------------------------------

Renames = tuple[tuple[str, str], ...]

DEPRECATED: Renames = (
    (r"(\.attentions\.\d+)\.query\.", r"\1.to_q."),
    (r"(\.attentions\.\d+)\.key\.", r"\1.to_k."),
    (r"(\.attentions\.\d+)\.value\.", r"\1.to_v."),
    (r"(\.attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
)
LDM: Renames = (
    (r"^encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2."),
    (r"^encoder\.down\.(\d+)\.attn\.(\d+)\.", r"encoder.down_blocks.\1.attentions.\2."),
    (r"^encoder\.down\.(\d+)\.downsample\.conv\.", r"encoder.down_blocks.\1.downsamplers.0.conv."),
    (r"^decoder\.up\.(\d+)\.block\.(\d+)\.", r"decoder.up_blocks.<\1>.resnets.\2."),
    (r"^decoder\.up\.(\d+)\.attn\.(\d+)\.", r"decoder.up_blocks.<\1>.attentions.\2."),
    (r"^decoder\.up\.(\d+)\.upsample\.conv\.", r"decoder.up_blocks.<\1>.upsamplers.0.conv."),
    (r"^(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
    (r"^(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
    (r"^(encoder|decoder)\.mid\.attn_1\.", r"\1.mid_block.attentions.0."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"(\.resnets\.\d+)\.nin_shortcut\.", r"\1.conv_shortcut."),
    (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(\.attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(\.attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)
BFL: Renames = (
    *LDM,
    (r"^encoder\.quant_conv\.", "quant_conv."),
    (r"^decoder\.post_quant_conv\.", "post_quant_conv."),
)
FLAX: Renames = (
    (r"(down_blocks|up_blocks|resnets|attentions|downsamplers|upsamplers)_(\d+)\.", r"\1.\2."),
    (r"\.(norm1|norm2|group_norm|conv_norm_out)\.scale$", r".\1.weight"),
    (r"(?<!norm1)(?<!norm2)(?<!group_norm)(?<!conv_norm_out)\.kernel$", ".weight"),
    *DEPRECATED,
)
MLX: Renames = (
    (r"^(encoder|decoder)\.mid_blocks\.0\.", r"\1.mid_block.resnets.0."),
    (r"^(encoder|decoder)\.mid_blocks\.1\.", r"\1.mid_block.attentions.0."),
    (r"^(encoder|decoder)\.mid_blocks\.2\.", r"\1.mid_block.resnets.1."),
    (r"^encoder\.down_blocks\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0.conv."),
    (r"^decoder\.up_blocks\.(\d+|<\d+>)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0.conv."),
    (r"\.(attentions\.\d+)\.query_proj\.", r".\1.to_q."),
    (r"\.(attentions\.\d+)\.key_proj\.", r".\1.to_k."),
    (r"\.(attentions\.\d+)\.value_proj\.", r".\1.to_v."),
    (r"\.(attentions\.\d+)\.out_proj\.", r".\1.to_out.0."),
    (r"^quant_proj\.", "quant_conv."),
    (r"^post_quant_proj\.", "post_quant_conv."),
)


@dataclass(frozen=True)
class Format:
    """Regular expressions from a file's names to canonical ones; <l> is level l, counted from full resolution.

    `conv` and `dense` are the order of axes, `linear` and `pointwise` how many of them those kernels have.
    """

    renames: Renames = ()
    conv: str = "OIHW"
    dense: str = "OI"
    linear: int = 2
    pointwise: int = 4

    def canonical(self, name: str, levels: int) -> str:
        for pattern, new in self.renames:
            name = re.sub(pattern, new, name)
        return re.sub(r"<(\d+)>", lambda match: str(levels - 1 - int(match[1])), name)

    def stored(self, a: np.ndarray, rank: int) -> np.ndarray:
        """A canonical kernel as a file has it, with so many axes."""
        if a.ndim < 2:
            return a
        kernel = a.reshape(*a.shape[:2], *a.shape[2:] or (1, 1))
        if rank == 4:
            return np.einsum(f"OIHW->{self.conv}", kernel)
        assert kernel.shape[2:] == (1, 1)
        dense = np.einsum(f"OI->{self.dense}", kernel[:, :, 0, 0])
        return dense.reshape(*dense.shape, *[1] * (rank - 2))

    def rank(self, a: np.ndarray) -> int:
        """How many axes the format gives a canonical kernel."""
        return self.linear if a.ndim == 2 else self.pointwise if a.shape[2:] == (1, 1) else a.ndim


FORMATS = {
    "diffusers": Format(),
    "diffusers-deprecated": Format(DEPRECATED),
    "ldm": Format(LDM, linear=4),
    "bfl": Format(BFL, linear=4),
    "flax": Format(FLAX, conv="HWIO", dense="IO"),
    "mlx": Format(MLX, conv="OHWI", pointwise=2),
    "mlx-flux": Format(LDM, conv="OHWI", pointwise=2),
    "diffusionkit": Format(
        ((r"^decoder\.up_blocks\.(\d+)\.", r"decoder.up_blocks.<\1>."), *MLX), conv="OHWI", pointwise=2
    ),
    "mflux": Format(
        (
            (r"^(encoder|decoder)\.(conv_in|conv_out)\.conv2d\.", r"\1.\2."),
            (r"^(encoder|decoder)\.conv_norm_out\.norm\.", r"\1.conv_norm_out."),
        ),
        conv="OHWI",
    ),
    "mflux-flux2": Format(((r"(\.attentions\.\d+)\.to_out\.(weight|bias)$", r"\1.to_out.0.\2"),), conv="OHWI"),
}


# -- files -------------------------------------------------------------------------------------------------------


class Wild(TensorFile):
    """Arrays that act as an opened file."""

    path, kind, metadata = Path("wild.safetensors"), "memory", {}

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = dict(arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.arrays[name].shape

    def dtype(self, name: str) -> str:
        return self.arrays[name].dtype.name

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


def read(arrays: Mapping[str, np.ndarray], config: AutoencoderConfig | None = None, **options: Any) -> tuple:
    """The result of `load_file` for a file with these arrays."""
    file = dequantized(Wild(arrays))
    with mock.patch("vaespec.weights.locate.open_tensors", return_value=file):
        return load_file(file.path, config, **options)


def levels_in(shapes: Mapping[str, Any]) -> int:
    """How many resolutions a file has, in any format's names."""
    matches = [re.search(r"encoder[./]down(?:_blocks)?[._](\d+)", name) for name in shapes]
    return 1 + max(int(match[1]) for match in matches if match)


def in_the_file(shapes: Mapping[str, Any], form: Format, canonical: Arrays, prefix: str = "") -> Arrays:
    """The tensors of a real file, filled with those canonical numbers; names of a tree are joined with dots."""
    levels = levels_in(shapes)
    filled = {}
    for name, shape in shapes.items():
        dotted = name.removeprefix(prefix).replace("/", ".")
        filled[prefix + dotted] = form.stored(canonical[form.canonical(dotted, levels)], len(shape))
        assert filled[prefix + dotted].shape == tuple(shape), name
    assert len(filled) == len(shapes)
    return filled

"""Where a map is wrong, in words: from which row, column, pixel or item on, or in which block; and what stands there.

Rows, columns, items and channels are counted from 0. An error counts as wrong if it is not small beside the typical
one, so that the words are about the fault, not about what it changes elsewhere by a little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

LARGE = 1024
"""Pixels of a map above which its wrong part is described; a smaller one shows in the picture at a glance."""
WRONG, TRACE = 0.25, 0.03
"""Parts of the typical error: a pixel that has the first is wrong; the second shows where a sharp edge is."""
FILLED = 0.5
"""The part of the pixels of a block that are wrong, at least: fewer are scattered."""
SHARP = 3
"""Pixels between the edge of what is wrong and that of what has a trace, at most: beyond, the edge is vague."""
SLACK = 0.04
"""The part of a side that a vague edge may be away from the edge of the map."""
ZEROS = 0.999
"""The part of the wrong numbers that are 0, at least, if zeros stand there: a sum may be 0 by chance."""
BITS = range(15, 33)
"""An index of so many bits, signed or not, counts to 2^15 or more before it wraps."""

Kind = Literal["everywhere", "scattered", "rows", "columns", "block", "channels", "items", "index"]
Content = Literal["zeros", "NaN or infinity", "other numbers"]


@dataclass(frozen=True)
class WrongRegion:
    """The wrong part of a map: its shape, the words for its place, what it holds, and at which number an index wraps.

    `wraps` is a power of 2, or 0 if the region does not begin at one, counted through the map or one of its planes.
    """

    kind: Kind
    words: str
    holds: Content
    wraps: int = 0

    def __str__(self) -> str:
        """ "zeros from row 70 on", or "everywhere"."""
        return (
            self.words if (self.kind, self.holds) == ("everywhere", "other numbers") else f"{self.holds} {self.words}"
        )


class Block(NamedTuple):
    """Rows top … bottom and columns left … right, all included, of a plane (H, W)."""

    top: int
    bottom: int
    left: int
    right: int

    @classmethod
    def around(cls, plane: np.ndarray) -> Block:
        """The smallest block that holds every wrong pixel of a boolean plane."""
        rows, columns = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
        return cls(int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1]))

    def of(self, plane: np.ndarray) -> np.ndarray:
        """The part of a plane that is in the block."""
        return plane[self.top : self.bottom + 1, self.left : self.right + 1]

    def stretched(self, shape: tuple[int, ...]) -> Block:
        """The block with each edge moved to that of the map if it is nearly there."""
        (H, W), (top, bottom, left, right) = shape, self
        high, wide = SLACK * H, SLACK * W
        return Block(
            0 if top <= high else top,
            H - 1 if H - 1 - bottom <= high else bottom,
            0 if left <= wide else left,
            W - 1 if W - 1 - right <= wide else right,
        )


def wrong_region(actual: np.ndarray, difference: np.ndarray, factor: int = 1) -> WrongRegion:
    """Describes the wrong part of a map (B, C, H, W): its region, then its items and channels unless it is in all.

    `difference` is not zero everywhere. `factor` is the pixels of the map along a side of one latent, if the words
    should give the latents' rows as well.
    """
    error = abs(difference)
    error = error / error.max()
    typical = float(np.sqrt((error**4).sum() / (error**2).sum()))
    wrong, traced = np.asarray(error >= WRONG * typical), np.asarray(error >= TRACE * typical)
    items, channels = np.asarray(wrong.any((1, 2, 3))), np.asarray(wrong.any((0, 2, 3)))
    plane = np.asarray(wrong[items].any((0, 1)))
    kind, region, wraps = _region(plane, np.asarray(traced[items].any((0, 1))), factor)
    holds = _content(actual[wrong])
    if not wraps and (behind := _behind_a_number(wrong, traced)):
        return WrongRegion("index", behind[0], holds, behind[1])
    words = [region]
    for name, flags in (("item", items), ("channel", channels)):
        if not flags.all():
            words.append(f"in {_numbered(name, flags)}")
            kind = ("items" if name == "item" else "channels") if kind == "everywhere" else kind
    return WrongRegion(kind, ", ".join(words), holds, wraps)


def _content(numbers: np.ndarray) -> Content:
    if not np.isfinite(numbers.astype(np.float32)).all():
        return "NaN or infinity"
    return "zeros" if np.count_nonzero(numbers) <= (1 - ZEROS) * numbers.size else "other numbers"


def _region(plane: np.ndarray, traced: np.ndarray, factor: int) -> tuple[Kind, str, int]:
    """Describes the wrong pixels of a plane. `traced` has the pixels with a smaller error too, around a vague edge."""
    block, outer = Block.around(plane), Block.around(traced)
    vague = any(abs(edge - other) > SHARP for edge, other in zip(block, outer, strict=True))
    block = block.stretched(plane.shape) if vague else outer
    filled = float(block.of(plane).mean())
    kind, span = _span(block, plane.shape, factor)
    if filled < FILLED:
        return "scattered", f"in scattered places: {filled:.0%} of the pixels, {span}", 0
    first = _first_pixel(block, plane, traced)
    if first is not None:
        row, column = divmod(first, plane.shape[1])
        power = f" = 2^{first.bit_length() - 1}" if first & (first - 1) == 0 else ""
        words = f"from row {row}, column {column} on: from pixel {first}{power} of a plane on{_latent(row, factor)}"
        wraps = _wrap_at(first)
        return "index" if wraps else "rows", words, wraps
    return kind, span if kind == "everywhere" or not vague else f"mostly {span}", 0


def _first_pixel(block: Block, plane: np.ndarray, traced: np.ndarray) -> int | None:
    """The first wrong pixel, counted row by row, if all behind it are wrong and it is not the first of its row."""
    H, W = plane.shape
    if (block.bottom, block.left, block.right) != (H - 1, 0, W - 1) or traced[: block.top].any():
        return None
    first = int(np.flatnonzero(traced[block.top])[0])
    rest = plane.reshape(-1)[block.top * W + first :]
    return block.top * W + first if first and block.top < H - 1 and rest.mean() >= FILLED else None


def _behind_a_number(wrong: np.ndarray, traced: np.ndarray) -> tuple[str, int] | None:
    """The words and 2^k if the numbers of the map are wrong from 2^k on, counted in the order of channels or pixels.

    Not if whole channels or rows are, or if the next channel or row is right up to the same column: that is a region.
    """
    _, C, H, W = wrong.shape
    for order, axes, line in (("", (0, 1, 2, 3), H * W), (" with the channels last", (0, 2, 3, 1), W * C)):
        flat, first = wrong.transpose(axes).reshape(-1), int(traced.transpose(axes).argmax())
        wraps, column = _wrap_at(first), first % line
        following = flat[first - column + line :][:column]
        full = flat[first:].mean() >= FILLED and (not following.size or following.mean() >= FILLED)
        if wraps and column and full:
            return f"from number {wraps:,} of the map{order} on", wraps
    return None


def _wrap_at(first: int) -> int:
    """The power of 2 at which an index wraps if number `first` is the first wrong one, else 0.

    Behind it some may be right by chance.
    """
    return next((1 << k for k in BITS if 0 <= first - (1 << k) < max(2, (1 << k) // 4096)), 0)


def _span(block: Block, shape: tuple[int, ...], factor: int) -> tuple[Kind, str]:
    """ "everywhere", "from row 128 on", "at row 3, column 5", or "in one block: rows 64 to 127, columns 0 to 63"."""
    (H, W), (top, bottom, left, right) = shape, block
    all_rows, all_columns = (top, bottom) == (0, H - 1), (left, right) == (0, W - 1)
    if all_rows and all_columns:
        return "everywhere", "everywhere"
    rows = _latent(top, factor, None if bottom == H - 1 else bottom)
    columns = _latent(left, factor, None if right == W - 1 else right, "column")
    if all_columns:
        return "rows", f"{_line('row', top, bottom, H)}{rows}"
    if all_rows:
        return "columns", f"{_line('column', left, right, W)}{columns}"
    if (top, left) == (bottom, right):
        return "block", f"at row {top}{_latent(top, factor)}, column {left}{_latent(left, factor, None, 'column')}"
    rows, columns = _latent(top, factor, bottom), _latent(left, factor, right, "column")
    return "block", f"in one block: rows {top} to {bottom}{rows}, columns {left} to {right}{columns}"


def _line(name: str, first: int, last: int, count: int) -> str:
    """ "from row 128 on", "in row 3 of 9" or "in rows 3 to 5 of 9"."""
    if last == count - 1 and first < last:
        return f"from {name} {first} on"
    if first == last:
        return f"in {name} {first} of {count}"
    return f"in {name}s {first} to {last} of {count}"


def _latent(first: int, factor: int, last: int | None = None, name: str = "row") -> str:
    """The rows or columns of the latents; empty if these are the map's own."""
    if factor == 1:
        return ""
    first, last = first // factor, None if last is None else last // factor
    several = last is not None and last > first
    return f" (latents: {name}{f's {first} to {last}' if several else f' {first}'})"


def _numbered(name: str, wrong: np.ndarray) -> str:
    """ "item 2 of 4", "items 2 to 3 of 4" or "items 0, 2 of 4"."""
    numbers = [int(n) for n in np.flatnonzero(wrong)]
    if len(numbers) == 1:
        return f"{name} {numbers[0]} of {len(wrong)}"
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{name}s {numbers[0]} to {numbers[-1]} of {len(wrong)}"
    shown = ", ".join(map(str, numbers[:8])) + (" …" if len(numbers) > 8 else "")
    return f"{name}s {shown} of {len(wrong)}"

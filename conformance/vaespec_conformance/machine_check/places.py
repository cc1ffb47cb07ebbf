"""Where a map is wrong, and what stands there: rows, columns, channels, a block, or all numbers behind one of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EVERYWHERE = "everywhere"
NAN = "NaN or infinity"
BITS = range(15, 33)
"""An index of so many bits, signed or not, counts to 2^15 or more before it wraps."""


@dataclass(frozen=True)
class Place:
    """The wrong part of a map. `kind`: "everywhere", "rows", "last rows", "columns", "channels", "block", "index".

    `words` say where it is and what stands there; `wraps` is the power of 2 at which an index wraps, else 0.
    """

    kind: str
    words: str
    wraps: int = 0

    @property
    def spread(self) -> bool:
        """Whether the numbers are wrong everywhere."""
        return self.kind == EVERYWHERE

    @property
    def finite(self) -> bool:
        """Whether the numbers there are finite."""
        return NAN not in self.words


def place(actual: np.ndarray, expected: np.ndarray, bound: float) -> Place | None:
    """The place where two maps (B, C, H, W), or tokens (B, N, C), differ by more than `bound`; None if nowhere."""
    if actual.ndim == 3:
        actual, expected = (t.transpose(0, 2, 1)[..., None] for t in (actual, expected))
    with np.errstate(invalid="ignore", over="ignore"):
        wrong = ~(abs(actual.astype(np.float32) - expected.astype(np.float32)) <= bound)
    if not wrong.any():
        return None
    what = _content(actual, wrong)
    return _behind_an_index(wrong, what) or _box(wrong, what)


def _content(actual: np.ndarray, wrong: np.ndarray) -> str:
    numbers = actual[wrong].astype(np.float32)
    if not np.isfinite(numbers).all():
        return NAN
    return "zeros" if np.count_nonzero(numbers) <= 0.001 * numbers.size else "other numbers"


def _behind_an_index(wrong: np.ndarray, what: str) -> Place | None:
    """All numbers from 2^k on are wrong, counted in the order of channels, or of pixels, or in each channel."""
    orders = {
        "": wrong.ravel(),
        " with the channels last": wrong.transpose(0, 2, 3, 1).ravel(),
        " of a channel": wrong.any((0, 1)).ravel(),
    }
    for order, flat in orders.items():
        first = int(flat.argmax())
        wraps = next((2**k for k in BITS if 0 <= first - 2**k < max(2, 2**k // 4096)), 0)
        if wraps and np.count_nonzero(flat[first:]) > 0.5 * (flat.size - first):
            return Place("index", f"{what} from number {wraps:,} of the map{order} on", wraps)
    return None


def _box(wrong: np.ndarray, what: str) -> Place:
    """The smallest block that holds the wrong numbers, in the words of a reader of pictures."""
    _, C, H, W = wrong.shape
    (top, bottom), (left, right) = _span(np.asarray(wrong.any((0, 1, 3)))), _span(np.asarray(wrong.any((0, 1, 2))))
    channels = _span(np.asarray(wrong.any((0, 2, 3))))
    tall, wide = bottom - top > 0.9 * H, right - left > 0.9 * W
    if tall and wide:
        if channels[1] - channels[0] > 0.9 * C or C < 4:
            return Place(EVERYWHERE, EVERYWHERE if what == "other numbers" else f"{what} {EVERYWHERE}")
        return Place("channels", f"{what} in channels {channels[0]} to {channels[1] - 1} of {C}")
    if wide:
        last = bottom == H and H - top <= max(8, H // 8)
        return Place("last rows" if last else "rows", f"{what} {_range('row', top, bottom, H)}")
    if tall:
        return Place("columns", f"{what} {_range('column', left, right, W)}")
    if bottom - top == right - left == 1:
        return Place("block", f"{what} at row {top}, column {left}")
    return Place("block", f"a block of {what}: {_range('row', top, bottom)}, {_range('column', left, right)}")


def _span(wrong: np.ndarray) -> tuple[int, int]:
    """The first wrong position, and the one behind the last."""
    return int(wrong.argmax()), len(wrong) - int(wrong[::-1].argmax())


def _range(word: str, start: int, stop: int, length: int = 0) -> str:
    if length and stop == length:
        return f"in the last {word}" if stop - start == 1 else f"from {word} {start} of {length} on"
    lead = "in " if length else ""
    return f"{lead}{word} {start}" if stop - start == 1 else f"{lead}{word}s {start} to {stop - 1}"

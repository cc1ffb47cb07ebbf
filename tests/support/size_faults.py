"""Faults that begin at a size that is chosen, and the words that a report should have for the place of each.

`benchmarks/size_faults.py` plants forty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vaespec_conformance.mutants.mutant import Wrap, changing_ops, with_methods, with_vae_methods

FACTOR = 2
"""Pixels along a side of a latent, in the models of most sizes."""
From = Callable[[int, int], bool]
"""(height, width) of the latents -> whether the fault shows."""

BEGINS: dict[str, Callable[[int], From]] = {
    "both sides": lambda n: lambda h, w: min(h, w) >= n,
    "one side": lambda n: lambda h, w: max(h, w) >= n,
    "area": lambda n: lambda h, w: h * w >= n * n,
}
"""What is large from n latents on: both sides, one side, or as many latents as n x n."""


@dataclass
class Planted:
    """A fault in a subject. `places` are the words for where it showed, one for each call, "" where it did not."""

    wrap: Wrap
    places: list[str] = field(default_factory=list)

    def told(self, where: str | None) -> bool:
        """Whether a report names the place of the last call."""
        return bool(where) and self.places[-1] != "" and self.places[-1] in str(where)


Change = Callable[[np.ndarray, Any], str]
"""(a result, the call's memory) -> the words for the place; the result is changed in place."""


def in_results(half: str, begins: From, change: Change) -> Planted:
    """A fault in the results of encode (the mean) or decode. `change` gets a dictionary that lives as long as it."""
    planted = Planted(lambda subject: subject)
    memory: dict[str, Any] = {}

    def method(vae: Any, call: Any, x: np.ndarray) -> Any:
        factor = 1 if half == "decode" else FACTOR
        result = call(x)
        y = np.array(result[0] if half == "encode" else result)
        large = begins(x.shape[2] // factor, x.shape[3] // factor)
        planted.places.append(change(y, memory) if large else "")
        return (y, result[1]) if half == "encode" else y

    planted.wrap = with_vae_methods(**{half: method})
    return planted


def zeros(y: np.ndarray, memory: Any) -> str:
    """Everything is zero."""
    y[:] = 0
    return "wrong everywhere"


def zeros_from_row(fraction: float) -> Change:
    """All rows from a part of the height on are zero."""

    def change(y: np.ndarray, memory: Any) -> str:
        row = int(fraction * y.shape[2])
        y[:, :, row:] = 0
        return f"from row {row} on"

    return change


def stale_rows(count: int) -> Change:
    """The last rows are those of the result before, or of the row above them in the first one."""

    def change(y: np.ndarray, memory: Any) -> str:
        right = y.copy()
        kept = memory.get("kept")
        y[:, :, -count:] = kept[:, :, -count:] if _alike(kept, y) else y[:, :, -count - 1 : -count]
        memory["kept"] = right
        return _last_rows(y, count)

    return change


def repeated_rows(count: int) -> Change:
    """The last rows are the row above them."""

    def change(y: np.ndarray, memory: Any) -> str:
        y[:, :, -count:] = y[:, :, -count - 1 : -count]
        return _last_rows(y, count)

    return change


def _alike(kept: Any, y: np.ndarray) -> bool:
    return kept is not None and kept.shape == y.shape


def _last_rows(y: np.ndarray, count: int) -> str:
    row = y.shape[2] - count
    return f"in row {row} of" if count == 1 else f"from row {row} on"


def wrapped_index(modulus: int) -> Change:
    """Pixels of a plane are read at their index modulo a number; nothing is wrong in a smaller plane."""

    def change(y: np.ndarray, memory: Any) -> str:
        flat = y.reshape(*y.shape[:2], -1)
        flat[:] = flat[:, :, np.arange(flat.shape[2]) % modulus]
        row, column = divmod(modulus, y.shape[3])
        if modulus >= flat.shape[2]:
            return ""
        return f"from row {row}, column {column} on" if column else f"from row {row} on"

    return change


def missing_tile(top: float, left: float, side: int) -> Change:
    """One square of `side` px is zero; its place is given in parts of the height and of the width."""

    def change(y: np.ndarray, memory: Any) -> str:
        i, j = int(top * (y.shape[2] - side)), int(left * (y.shape[3] - side))
        y[:, :, i : i + side, j : j + side] = 0
        return f"in one block: rows {i} to {i + side - 1}"

    return change


def wrong_item(item: int) -> Change:
    """One item of a batch is the first one; nothing is wrong in a smaller batch."""

    def change(y: np.ndarray, memory: Any) -> str:
        if item >= len(y):
            return ""
        y[item] = y[0]
        return f"in item {item} of {len(y)}"

    return change


def dropped_keys(tokens: Callable[[int], int]) -> Planted:
    """Attention drops the keys beyond a number, which may depend on the count of tokens."""
    planted = Planted(lambda subject: subject)

    def change(ops: Any) -> Any:
        attend = type(ops).attention

        def attention(self: Any, q: Any, k: Any, v: Any, *, scale: float) -> Any:
            kept = tokens(k.shape[1])
            planted.places.append("wrong everywhere" if kept < k.shape[1] else "")
            return attend(self, q, k[:, :kept], v[:, :kept], scale=scale)

        return with_methods(ops, attention=attention)

    planted.wrap = changing_ops(change)
    return planted

"""Numbers and lists in the form that users read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MAX_NAMES = 4  # names of ignored tensors in a row; --json has them all


def shape(numbers: Iterable[int]) -> str:
    """Formats a shape: "16 x 32 x 32"."""
    return " x ".join(map(str, numbers))


def pixels(height: int, width: int) -> str:
    """Formats the size of a picture, width first, as is usual for pictures: "1024 x 768"."""
    return f"{width} x {height}"


def decibels(psnr: float | None) -> str:
    """Formats a PSNR; None stands for the infinite PSNR of equal pictures."""
    return "equal" if psnr is None else f"{psnr:.2f} dB"


def size(count: int) -> str:
    """Formats a number of bytes."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.2f} MiB"


def arithmetic(flops: int) -> str:
    """Formats a number of floating-point operations."""
    return f"{flops / 1e12:.2f} TFLOP" if flops >= 1e12 else f"{flops / 1e9:.2f} GFLOP"


def shortened(lines: Sequence[str], most: int) -> list[str]:
    """Cuts a list to `most` lines, and adds how many are left out."""
    return list(lines) if len(lines) <= most else [*lines[:most], f"and {len(lines) - most} more"]


def ignored(names: Sequence[str], others: int) -> str:
    """Formats the tensors of a file that are not part of the model; empty if there are none.

    `names` have the prefix of the VAE; `others` counts tensors of the rest of a full checkpoint.
    """
    parts = [f"{len(names)} beside it: {', '.join(shortened(names, MAX_NAMES))}"] if names else []
    return "; ".join([*parts, f"{others} outside the VAE"] if others else parts)

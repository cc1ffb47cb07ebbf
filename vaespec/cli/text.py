"""Numbers as they are read."""

from __future__ import annotations

from collections.abc import Iterable


def shape(numbers: Iterable[int]) -> str:
    """ "16 x 32 x 32"."""
    return " x ".join(map(str, numbers))


def pixels(height: int, width: int) -> str:
    """ "1024 x 768": width first, as pictures are spoken of."""
    return f"{width} x {height}"


def decibels(psnr: float | None) -> str:
    """PSNR; None stands for the infinite one of equal pictures."""
    return "equal" if psnr is None else f"{psnr:.2f} dB"


def size(count: int) -> str:
    """A number of bytes."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.2f} MiB"


def arithmetic(flops: int) -> str:
    """A number of floating-point operations."""
    return f"{flops / 1e12:.2f} TFLOP" if flops >= 1e12 else f"{flops / 1e9:.2f} GFLOP"

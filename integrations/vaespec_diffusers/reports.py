"""Call, Report: what ran when an installed VAE was called, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Call(NamedTuple):
    """One encode or decode.

    `computed_by`: "engine" (vaespec's, on a CPU), "torch" (vaespec's layers on PyTorch's operations), "autograd" (the
    same, recorded for a gradient) or "diffusers" (diffusers' own code). `parts`: what was in work at one time, in
    words; empty for diffusers. `shape`: the input's; empty for a picture. `seconds` on the clock; on CUDA until the
    work was queued. `memory`: bytes that the run needed besides the weights, as estimated; None if unknown. `reason`:
    why it was "autograd" or "diffusers".
    """

    verb: str
    computed_by: str
    parts: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    seconds: float
    memory: int | None = None
    reason: str = ""

    def __str__(self) -> str:
        what = f"{self.verb} {' x '.join(map(str, self.shape)) or 'a picture'}, {self.dtype} on {self.device}"
        how = f"{self.computed_by}, {self.parts}" if self.parts else self.computed_by
        needed = "" if self.memory is None else f", about {self.memory / 2**20:.1f} MiB"
        return f"{what}: {how}, {self.seconds:.3f} s{needed}" + (f" ({self.reason})" if self.reason else "")


@dataclass(frozen=True, repr=False)
class Report:
    """The last calls of an installed VAE, the oldest first. As text, and where Python shows it: one line for each."""

    calls: tuple[Call, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.calls)) or "nothing has been encoded or decoded yet"

    __repr__ = __str__

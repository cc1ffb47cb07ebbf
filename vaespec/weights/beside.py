"""What training leaves beside the model in a file: losses, discriminators, averages, the state of optimizers."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vaespec.weights.dialects import EMA

# First parts of names: of LDM's checkpoints, of a GAN's discriminator, and the mark of ComfyUI's float8 files.
FIRST = ("loss", EMA, "colorize", "scale_factor", "netD", "log_var", "scaled_fp8")

# Words: a module or a group of tensors is beside the model if one of them is in the first part of its name.
MODULES = frozenset(
    (
        *("loss", "losses", "criterion", "lpips", "vgg", "perceptual"),
        *("discriminator", "discriminators", "disc", "critic", "gan", "adversarial"),
        *("ema", "shadow", "collected"),
        *("optimizer", "optimizers", "scheduler", "schedulers", "callbacks", "loops", "rng"),
        *("metric", "metrics", "fid", "psnr", "ssim"),
    )
)

# Words: a name without a dot, which is no layer's, is beside the model if one of them is in it.
NUMBERS = frozenset(
    (
        *("logvar", "decay", "updates", "averaged", "initted", "step", "steps", "epoch", "epochs"),
        *("iteration", "iterations", "iter", "seed", "lr", "best"),
    )
)

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def is_beside(name: str) -> bool:
    """Whether a tensor of this name, which follows the prefix of a VAE, is known to be training's and not the model's.

    A layer that is not known, such as `adapter.weight`, is not.
    """
    first, dot, _ = name.partition(".")
    words = {word.lower() for word in WORD.findall(first)}
    return first in FIRST or not words.isdisjoint(MODULES if dot else MODULES | NUMBERS)


def without_copies(prefixes: Iterable[str]) -> list[str]:
    """The prefixes of VAEs, sorted, without those that training left beside one of them, such as "ema." beside ""."""
    kept: list[str] = []
    for prefix in sorted(prefixes):  # each follows those that it begins with
        if not kept or not prefix.startswith(kept[-1]) or not is_beside(prefix[len(kept[-1]) :]):
            kept.append(prefix)
    return kept

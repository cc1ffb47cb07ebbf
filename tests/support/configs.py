"""The architectures the suite runs on, at narrow widths, and numbers to fill them with.

Numbers come from Philox's raw bits, which NumPy promises never to change, keyed by a name: the same in every process,
on every version, in any order. No weight is zero and no norm the identity, so that a wrong one shows.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from vaespec import AutoencoderConfig


def narrow(widths: Sequence[int], attention_levels: Sequence[int] = (), **fields) -> AutoencoderConfig:
    attends = ["Attn" if level in attention_levels else "" for level in range(len(widths))]
    blocks = {
        "block_out_channels": tuple(widths),
        "down_block_types": tuple(f"{attn}DownEncoderBlock2D" for attn in attends),
        "up_block_types": tuple(f"{attn}UpDecoderBlock2D" for attn in reversed(attends)),
        "norm_num_groups": 4,
    }
    return AutoencoderConfig(**{**blocks, **fields})


FLUX2 = {"latent_channels": 8, "scaling_factor": None, "patch_size": (2, 2), "batch_norm_eps": 1e-4}
FLUX2 |= {"batch_norm_momentum": 0.1, "layers_per_block": 2, "sample_size": 1024}
UNQUANTIZED = {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16}

CONFIGS = {
    "sd": narrow((8, 16, 24, 24), layers_per_block=2, sample_size=512),
    "sdxl": narrow((8, 16, 32, 32), layers_per_block=2, norm_num_groups=8, scaling_factor=0.13025),
    "playground": narrow((8, 8), scaling_factor=0.5, latents_mean=(-1.6, 1.9, -1.4, 2.5), latents_std=(8.5, 6, 6.5, 5)),
    "sd3": narrow((8, 16, 24, 24), layers_per_block=2, scaling_factor=1.5305, shift_factor=0.0609, **UNQUANTIZED),
    "flux1": narrow((16, 16, 32, 32), norm_num_groups=16, scaling_factor=0.3611, shift_factor=0.1159, **UNQUANTIZED),
    "flux2": narrow((8, 16, 24, 24), **FLUX2),
    "flux2-small-decoder": narrow((8, 16, 24, 24), decoder_block_out_channels=(4, 12, 16, 16), **FLUX2),
    "cogview": narrow((8, 32, 48, 48), layers_per_block=3, mid_block_add_attention=False, **UNQUANTIZED),
    "kl-f4": narrow((8, 16, 24), layers_per_block=2, latent_channels=3),
    "kl-f16": narrow((8, 8, 16, 16, 24), (4,), layers_per_block=2, latent_channels=16),
    "kl-f32": narrow((8, 8, 16, 16, 24, 24), (4, 5), latent_channels=12),
    "attention-in-the-decoder-only": narrow(
        (8, 12), up_block_types=("UpDecoderBlock2D", "AttnUpDecoderBlock2D"), layers_per_block=2
    ),
    "attention-everywhere": narrow((8, 12), (0, 1)),
    "one-level": narrow((12,)),
    "one-group": narrow((8, 12), norm_num_groups=1),
    "a-group-per-channel": narrow((8, 8), norm_num_groups=8),
    "swish": narrow((8, 16), act_fn="swish"),
    "mish": narrow((8, 16), act_fn="mish"),
    "gelu": narrow((8, 16), act_fn="gelu"),
    "relu": narrow((8, 16), act_fn="relu"),
    "six-channel-images": narrow((8, 16), in_channels=6, out_channels=6),
    "grey-in-colour-out": narrow((8, 16), in_channels=1, out_channels=3),
    "quant-conv-only": narrow((8, 16), use_post_quant_conv=False),
    "post-quant-conv-only": narrow((8, 16), use_quant_conv=False),
    "three-layers": narrow((8, 16), layers_per_block=3),
}

TINY = narrow((8, 16), layers_per_block=1)
"""For tests of everything but the architecture."""


def uniform(key: str, shape: Sequence[int], low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """float64 numbers in [low, high) that depend on nothing but `key`."""
    bits = np.random.Philox(key=zlib.crc32(key.encode())).random_raw(math.prod(shape))
    return (low + (high - low) * ((bits >> np.uint64(11)) * 2.0**-53)).reshape(tuple(shape))


def drawn_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Canonical float64 weights for tensors of these names (diffusers') and shapes."""
    return {name: _drawn(name, tuple(shape)) for name, shape in shapes.items()}


def _drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    *_, module, leaf = name.split(".")
    if leaf == "num_batches_tracked":
        return np.array(7, np.int64)
    if leaf == "running_var":
        return uniform(name, shape, 0.5, 2.0)
    if "norm" in module:
        return uniform(name, shape, 0.4, 1.6) if leaf == "weight" else uniform(name, shape, -0.5, 0.5)
    if leaf == "weight":  # variance 1.2 / fan-in: maps neither die out nor grow
        return uniform(name, shape) * math.sqrt(3.6 / math.prod(shape[1:]))
    return uniform(name, shape, -0.3, 0.3)


def images(config: AutoencoderConfig, height: int, width: int, batch: int = 1) -> np.ndarray:
    return uniform(f"images {height} {width}", (batch, config.in_channels, height, width))


def sizes(config: AutoencoderConfig) -> dict[str, tuple[int, int]]:
    """Image sizes that matter: the odd one is divisible by nothing."""
    m = max(4, config.downsampling_factor)
    return {"square": (2 * m, 2 * m), "tall": (3 * m, m), "odd": (2 * m + 1, 3 * m - 1)}


def relative_l2(actual: np.ndarray, expected: np.ndarray) -> float:
    """‖actual - expected‖ / ‖expected‖, in float64; shapes must agree."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def assert_within(actual: np.ndarray, expected: np.ndarray, bound: np.ndarray | float) -> None:
    assert actual.shape == expected.shape
    excess = np.abs(actual - expected) / np.broadcast_to(bound, expected.shape)
    worst = np.unravel_index(excess.argmax(), excess.shape)
    assert excess[worst] <= 1, f"{excess[worst]:.3g} times the bound, at {worst}"

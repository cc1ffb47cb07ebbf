"""The configs, weights and inputs that models are examined with: narrow, and chosen to show the known mistakes.

There are few configs and sizes, since some backends compile for each, and many regimes of weights, which cost nothing.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np

from vaespec import AutoencoderConfig, parameters, strict_json
from vaespec.analysis.rounding import rounded
from vaespec.architecture import ENCODER, Half, count_parameters
from vaespec.latents import patchify
from vaespec_conformance.cases.cases import Case

Weights = dict[str, np.ndarray]


def narrow(widths: tuple[int, ...], **fields: object) -> AutoencoderConfig:
    """A config with one level for each width, and attention in the mid block only, unless block types are given.

    Float16 is never upcast: the checks look at float16 itself.
    """
    blocks = {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
    }
    fixed = {"norm_num_groups": 4, "sample_size": 16, "force_upcast": False}
    return AutoencoderConfig(**{**blocks, **fixed, **fields})  # type: ignore[arg-type]


def two_levels(**fields: object) -> AutoencoderConfig:
    """SD 1 with two levels of one resnet, which is quick to compile, and what one odd thing changes in it."""
    return narrow((8, 16), **{"layers_per_block": 1, **fields})


def four_levels(widths: tuple[int, ...], **fields: object) -> AutoencoderConfig:
    """A published family at its least widths: four levels of two resnets, and 32 groups in every norm."""
    fixed = {"norm_num_groups": 32, "layers_per_block": 2, "sample_size": 64}
    return narrow(widths, **{**fixed, **fields})


SLIM = (32, 32, 64, 64)
UNQUANTIZED = {"use_quant_conv": False, "use_post_quant_conv": False}
PATCHES = {"patch_size": (2, 2), "batch_norm_eps": 1e-4, "batch_norm_momentum": 0.1, "scaling_factor": None}
OUTER_ATTENTION = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
}
CONFIGS = {
    "plain": two_levels(),
    "sd1": four_levels((32, 64, 128, 128)),
    "flux1": four_levels(SLIM, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, **UNQUANTIZED),
    "flux2": four_levels(SLIM, latent_channels=32, **PATCHES),
    "attentive": two_levels(**OUTER_ATTENTION),
    "mish": two_levels(act_fn="mish"),
    "no_middle_attention": two_levels(mid_block_add_attention=False),
    "quant_only": two_levels(use_post_quant_conv=False),
    "post_quant_only": two_levels(use_quant_conv=False),
    "odd": narrow(
        (4, 8, 8), norm_num_groups=2, latent_channels=6, layers_per_block=1, sample_size=32, shift_factor=0.3
    ),
}
"""The published families, narrow, and configs that each have one odd thing."""

LABELS = {
    "plain": "SD 1 with two levels and 4 groups",
    "sd1": "SD 1",
    "flux1": "FLUX.1",
    "flux2": "FLUX.2",
    "attentive": "attention outside the middle",
    "mish": "Mish",
    "no_middle_attention": "a middle without attention",
    "quant_only": "quant_conv without post_quant_conv",
    "post_quant_only": "post_quant_conv without quant_conv",
    "odd": "three levels, 2 groups and 6 latent channels",
}
"""What a report calls each config."""

FAMILIES = ("sd1", "flux1", "flux2")
"""The configs that are a published family's."""


def config_of(case: Case) -> AutoencoderConfig:
    """The config of a case: case["config"] is a name in CONFIGS, or the JSON of a config that a subject brings."""
    return _config(case["config"])


@cache
def _config(name: str) -> AutoencoderConfig:
    return CONFIGS[name] if name in CONFIGS else AutoencoderConfig.from_dict(strict_json.parse(name))


REGIMES = ("plain", "faint", "offset", "loud", "sharp", "far")
"""Distributions of weights, each of which shows some mistakes.

plain: as large as new weights; no norm is the identity. faint: every map that is normalized has a deviation of 10⁻³, so
that eps matters. offset: maps have a mean of twenty deviations, which norms subtract. loud: maps have a deviation of
100, whose squares overflow float16. sharp: queries and keys give logits with a deviation of 10 around 100, so that the
scale matters and exponentials overflow. far: the inputs of some norms have a mean of a thousand deviations, so that a
variance that is computed in one pass shows.
"""

AMPLITUDES = {"faint": 1e-3, "loud": 1e2}
"""The deviation of every map that is normalized."""
OFFSET, FAR = 20.0, 1000.0
"""The mean of maps, in deviations of about 1."""
FAR_IN = ("float32", "float64")
"""Dtypes in which "far" is FAR: 16 bits hold no deviation of 1 beside 1000, and have OFFSET."""
BEFORE_ATTENTION = ("down_blocks.", "mid_block.resnets.0.conv1")
"""The layers whose means are FAR. After an attention, PyTorch's CPU kernel for maps with their channels last computes
the variance in one pass, in diffusers too: that is not a mistake of a port."""
INTO_NORMS = ("conv_in", "conv1", "conv2", "to_out.0")
"""The layers whose results are added up and normalized."""


KEPT = 1 << 20
"""Parameters of the widest model whose weights are kept beside those of others."""


WIDE = 16 << 20
"""Parameters from which a config is a real one, whose cases take seconds each."""


def is_wide(config: AutoencoderConfig) -> bool:
    """Whether a case in this config takes seconds: then few are asked."""
    return count_parameters(config) >= WIDE


def weights(case: Case, dtype: str) -> Weights:
    """Canonical float64 weights for the case's config, regime and seed, rounded to the dtype."""
    draw = _last_weights if count_parameters(config_of(case)) > KEPT else _weights
    return dict(draw(case["config"], case["regime"], case["seed"], dtype))


def _draw_all(config: str, regime: str, seed: int, dtype: str) -> Weights:
    rng = Case.of(seed=seed).rng("weights")
    drawn = {name: _drawn(name, row.shape, regime, rng) for name, row in parameters(_config(config)).items()}
    if regime == "far":
        mean = FAR if dtype in FAR_IN else OFFSET
        drawn |= {name: w + mean for name, w in drawn.items() if _is_far(name)}
    return {name: rounded(w, dtype) for name, w in drawn.items()}


_weights, _last_weights = lru_cache(64)(_draw_all), lru_cache(1)(_draw_all)


def _drawn(name: str, shape: tuple[int, ...], regime: str, rng: np.random.Generator) -> np.ndarray:
    module, leaf = name.rsplit(".", 1)
    if module == "bn":
        return _statistic(leaf, shape, rng)
    if "norm" in module.rsplit(".", 1)[-1]:
        return rng.uniform(0.5, 1.5, shape) if leaf == "weight" else rng.uniform(-0.5, 0.5, shape)
    w = (
        rng.uniform(-0.3, 0.3, shape)
        if leaf == "bias"
        else rng.standard_normal(shape) * (1.2 / np.prod(shape[1:])) ** 0.5
    )
    if regime in AMPLITUDES and is_normalized_next(name):
        return AMPLITUDES[regime] * w
    if regime == "offset" and module.endswith(INTO_NORMS) and leaf == "bias":
        return w + OFFSET
    if regime == "sharp" and is_of_logits(name):
        return 2 * w + (5.0 if leaf == "bias" else 0.0)
    return w


def is_normalized_next(name: str) -> bool:
    """Whether a parameter sets the deviation of a map that is normalized: kernels of resampling layers do not."""
    module, leaf = name.rsplit(".", 1)
    return module.endswith(INTO_NORMS) or (leaf == "bias" and module.endswith((".conv", ".conv_shortcut")))


def is_of_logits(name: str) -> bool:
    """Whether a parameter is of the queries or the keys of an attention."""
    return name.rsplit(".", 1)[0].endswith((".to_q", ".to_k"))


def last_bias(config: AutoencoderConfig) -> str:
    """The name of the last bias of the encoder: half of it is added to the mean, half to the log-variance."""
    return "quant_conv.bias" if config.use_quant_conv else "encoder.conv_out.bias"


def _is_far(name: str) -> bool:
    """Whether a parameter sets the mean of a map that is normalized next, before any attention."""
    return name.endswith("conv1.bias") and any(part in name for part in BEFORE_ATTENTION)


def _statistic(leaf: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """FLUX.2's statistics of latents: means and variances, and the number of batches that they are of."""
    if leaf == "num_batches_tracked":
        return np.array(7.0)
    return rng.uniform(0.5, 2.0, shape) if leaf == "running_var" else rng.uniform(-0.5, 0.5, shape)


def images(case: Case, dtype: str) -> np.ndarray:
    """Images (2, C, f h + more, f w + more) in [-1, 1], for latents of (h, w) = case["size"]."""
    config = config_of(case)
    height, width = (config.downsampling_factor * n + case["more"] for n in case["size"])
    return rounded(case.rng("images").uniform(-1, 1, (2, config.in_channels, height, width)), dtype)


def latents(case: Case, dtype: str) -> np.ndarray:
    """Latents (2, C, h, w), drawn from N(0, 1)."""
    config = config_of(case)
    return rounded(case.rng("latents").standard_normal((2, config.latent_channels, *case["size"])), dtype)


def given(half: Half, case: Case, dtype: str) -> np.ndarray:
    """The input of a half: images or latents."""
    return images(case, dtype) if half is ENCODER else latents(case, dtype)


def diffusion_latents(case: Case, dtype: str) -> np.ndarray:
    """Latents as a diffusion model makes them: (2, C, h, w), or FLUX.2's patches (2, C · p₁ · p₂, h / p₁, w / p₂)."""
    config, z = config_of(case), latents(case, dtype)
    return z if config.patch_size is None else patchify(z, config.patch_size)

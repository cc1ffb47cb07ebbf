"""Mistakes of a whole VAE: in its inputs and outputs, its posterior, its latents, its config and weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from vaespec.analysis.rounding import rounded
from vaespec_conformance.mutants.mutant import builder, method, named

Pair = tuple[np.ndarray, np.ndarray]


# -- inputs and outputs ------------------------------------------------------------------------------------------------


@method("encode", "model.encode")
def encode_swaps_mean_and_logvar(vae: Any, call: Any, x: np.ndarray) -> Pair:
    """The mean and the log-variance are swapped."""
    mean, logvar = call(x)
    return logvar, mean


@method("encode", "model.encode")
def encode_returns_the_log_of_the_deviation(vae: Any, call: Any, x: np.ndarray) -> Pair:
    """encode returns the logarithm of the standard deviation, which is half of the log-variance."""
    mean, logvar = call(x)
    return mean, 0.5 * logvar


@method("encode", "model.encode")
def encode_returns_the_deviation(vae: Any, call: Any, x: np.ndarray) -> Pair:
    """encode returns the standard deviation in the place of the log-variance."""
    mean, logvar = call(x)
    return mean, np.exp(0.5 * logvar.astype(np.float64))


@method("encode", "model.encode")
def encode_expects_images_from_0_to_1(vae: Any, call: Any, x: np.ndarray) -> Pair:
    """encode expects images in [0, 1], not in [-1, 1]."""
    return call(2 * x - 1)


@method("encode", "model.encode")
def encode_expects_images_from_0_to_1_halved(vae: Any, call: Any, x: np.ndarray) -> Pair:
    """encode maps its images from [-1, 1] to [0, 1] first; its layers take [-1, 1]."""
    return call(x / 2 + 0.5)


@method("encode", "goldens.encode")
def encode_reverses_channels(vae: Any, call: Any, x: np.ndarray) -> Pair:
    """encode reads the colour channels in reverse order: BGR for RGB."""
    return call(x[:, ::-1])


@method("encode", "model.encode")
def encode_swaps_height_and_width(vae: Any, call: Any, x: np.ndarray) -> Pair:
    """encode swaps height and width before its layers, and swaps them back after."""
    mean, logvar = call(x.transpose(0, 1, 3, 2))
    return mean.transpose(0, 1, 3, 2), logvar.transpose(0, 1, 3, 2)


@method("encode", "model.encode")
def encode_pads_odd_sizes(vae: Any, call: Any, x: np.ndarray) -> Pair:
    """An odd row or column is padded by repeating it; it must be left out."""
    H, W = (n + n % 2 for n in x.shape[2:])
    return call(np.pad(x, ((0, 0), (0, 0), (0, H - x.shape[2]), (0, W - x.shape[3])), mode="edge"))


@method("encode", "model.encode")
def encode_returns_nhwc(vae: Any, call: Any, x: np.ndarray) -> Pair:
    """encode returns (B, H, W, C), not (B, C, H, W)."""
    mean, logvar = call(x)
    return mean.transpose(0, 2, 3, 1), logvar.transpose(0, 2, 3, 1)


@method("decode", "model.decode")
def decode_clips(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """decode clips images to [-1, 1]."""
    return call(z).clip(-1, 1)


@method("decode", "model.decode")
def decode_returns_images_from_0_to_1(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """decode returns images in [0, 1], not in [-1, 1]."""
    return call(z) / 2 + 0.5


@method("decode", "goldens.decode")
def decode_reverses_channels(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """decode returns the colour channels in reverse order: BGR for RGB."""
    return call(z)[:, ::-1]


@method("decode", "model.decode")
def decode_returns_nhwc(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """decode returns (B, H, W, C), not (B, C, H, W)."""
    return call(z).transpose(0, 2, 3, 1)


@method("decode", "model.decode")
def decode_reads_latents_as_nhwc(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """Latents (B, C, H, W) are read as (B, H, W, C) if the last axis has as many numbers as there are channels."""
    return call(z.transpose(0, 3, 1, 2) if z.shape[3] == z.shape[1] else z)


@method("decode", "model.decode")
def decode_repeats_the_first_item(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """decode returns the first item of a batch for every item."""
    return call(np.broadcast_to(z[:1], z.shape))


# -- the posterior -----------------------------------------------------------------------------------------------------


def _unclamped(vae: Any, x: np.ndarray) -> Pair:
    parameters = vae._posterior(x).parameters
    mean, logvar = np.split(np.asarray(vae.ops.to_numpy(parameters)).astype(np.float64), 2, axis=1)
    return mean, logvar


@method("encode", "model.logvar")
def encode_does_not_clamp_logvar(vae: Any, call: Any, x: np.ndarray) -> Pair:
    """The log-variance is not clamped to [-30, 20]."""
    return _unclamped(vae, x)


@method("encode", "model.logvar")
def encode_clamps_logvar_from_minus_20_to_30(vae: Any, call: Any, x: np.ndarray) -> Pair:
    """The log-variance is clamped to [-20, 30], not to [-30, 20]."""
    mean, logvar = _unclamped(vae, x)
    return mean, logvar.clip(-20, 30)


@method("sample", "model.sample")
def sample_takes_the_variance_for_the_deviation(vae: Any, call: Any, x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The noise is multiplied by the variance, e^logvar, not by its square root."""
    mean, logvar = (part.astype(np.float64) for part in vae.encode(x))
    return mean + np.exp(logvar) * noise


@method("sample", "model.sample")
def sample_draws_its_own_noise(vae: Any, call: Any, x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """sample draws its own noise and ignores its argument."""
    return call(x, np.random.default_rng().standard_normal(noise.shape))


@method("sample", "model.sample")
def sample_returns_the_mean(vae: Any, call: Any, x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """sample returns the mean: no noise is added."""
    return vae.encode(x)[0]


# -- latents of a diffusion model --------------------------------------------------------------------------------------


def _mean(vae: Any, x: np.ndarray) -> np.ndarray:
    return vae.encode(x)[0].astype(np.float64)


@method("encode_latents", "model.encode_latents")
def encode_latents_divides_by_the_scale(vae: Any, call: Any, x: np.ndarray) -> np.ndarray:
    """encode_latents divides by the scaling factor; it must multiply."""
    return (_mean(vae, x) - (vae.config.shift_factor or 0)) / vae.config.scaling_factor


@method("encode_latents", "model.encode_latents")
def encode_latents_shifts_after_scaling(vae: Any, call: Any, x: np.ndarray) -> np.ndarray:
    """encode_latents computes z · scale - shift, not (z - shift) · scale."""
    return _mean(vae, x) * vae.config.scaling_factor - (vae.config.shift_factor or 0)


@method("decode_latents", "model.decode_latents")
def decode_latents_ignores_the_shift(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """decode_latents does not add the shift factor."""
    return vae.decode(z / vae.config.scaling_factor)


@method("decode_latents", "model.decode_latents")
def decode_latents_shifts_before_scaling(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """decode_latents computes (z - shift) / scale, not z / scale + shift."""
    return vae.decode((z - (vae.config.shift_factor or 0)) / vae.config.scaling_factor)


# -- config and weights ------------------------------------------------------------------------------------------------

QUANT_CONVS = {
    "quant_conv_ignored": ("quant_conv", "model.encode"),
    "post_quant_conv_ignored": ("post_quant_conv", "model.decode"),
}


def _without(conv: str) -> Any:
    """Builds with the identity in the place of a 1 × 1 convolution."""

    def build(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
        if f"{conv}.weight" in weights:
            eye = np.eye(len(weights[f"{conv}.bias"]))[:, :, None, None]
            weights = {**weights, f"{conv}.weight": eye, f"{conv}.bias": np.zeros(len(eye))}
        return factory(config, weights, dtype)

    return build


for _name, (_conv, _owner) in QUANT_CONVS.items():
    builder(_owner)(named(_name, f"{_conv} is not applied.", _without(_conv)))


@builder("model.decode", equivalent_in=dict.fromkeys(("bfloat16", "float16", "float64"), "it is tried in float32"))
def post_quant_conv_by_the_other_flag(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """post_quant_conv is applied only if use_quant_conv is set: the two flags are confused."""
    build = factory if config.use_quant_conv else partial(_without("post_quant_conv"), factory)
    return build(config, weights, dtype)


@builder("model.decode")
def act_fn_ignored(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """The activation is SiLU, whatever act_fn says."""
    return factory(config.replace(act_fn="silu"), weights, dtype)


@builder("model.decode")
def norm_num_groups_ignored(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """Norms have one group for all channels, whatever norm_num_groups says."""
    return factory(config.replace(norm_num_groups=1), weights, dtype)


@builder("model.decode")
def queries_and_values_swapped(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """The weights of to_q and to_v are swapped."""
    swapped = {name: name.replace("to_q", "?").replace("to_v", "to_q").replace("?", "to_v") for name in weights}
    return factory(config, {swapped[name]: w for name, w in weights.items()}, dtype)


@builder("model.decode", equivalent_in={"bfloat16": "bfloat16 is the right dtype"})
def weights_rounded_to_bfloat16(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """Weights are rounded to bfloat16."""
    return factory(config, {name: rounded(w, "bfloat16") for name, w in weights.items()}, dtype)

"""Mistakes of a whole VAE: what goes in, what comes out, what is made of the posterior, and what it is built from."""

from __future__ import annotations

from typing import Any

import numpy as np

from vaespec.analysis.rounding import rounded
from vaespec_conformance.mutants.mutant import building, method

Pair = tuple[np.ndarray, np.ndarray]
ENCODE: dict[str, Any] = {"owner": "model.encode"}
DECODE: dict[str, Any] = {"owner": "model.decode"}


# -- in and out ------------------------------------------------------------------------------------------------------


@method("encode", name="mean and log-variance swapped", cause="mean and log-variance are swapped", **ENCODE)
def _(vae: Any, call: Any, x: np.ndarray) -> Pair:
    mean, logvar = call(x)
    return logvar, mean


@method("encode", name="the deviation for its logarithm", cause="log-variance is half of what it should be", **ENCODE)
def _(vae: Any, call: Any, x: np.ndarray) -> Pair:
    mean, logvar = call(x)
    return mean, 0.5 * logvar


@method("encode", name="images from 0 to 1", cause="images are taken to be in [0, 1]", **ENCODE)
def _(vae: Any, call: Any, x: np.ndarray) -> Pair:
    return call(2 * x - 1)


@method("encode", name="colours reversed", owner="goldens.encode", cause="colours are in reverse order")
def _(vae: Any, call: Any, x: np.ndarray) -> Pair:
    return call(x[:, ::-1])


@method("encode", name="height and width", cause="height and width are swapped", **ENCODE)
def _(vae: Any, call: Any, x: np.ndarray) -> Pair:
    mean, logvar = call(x.transpose(0, 1, 3, 2))
    return mean.transpose(0, 1, 3, 2), logvar.transpose(0, 1, 3, 2)


@method("encode", name="odd sizes resized", cause="odd sizes are padded by repeating, not left out", **ENCODE)
def _(vae: Any, call: Any, x: np.ndarray) -> Pair:
    H, W = (n + n % 2 for n in x.shape[2:])
    return call(np.pad(x, ((0, 0), (0, 0), (0, H - x.shape[2]), (0, W - x.shape[3])), mode="edge"))


@method("decode", name="clipped", cause="images are clipped to [-1, 1]", **DECODE)
def _(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    return call(z).clip(-1, 1)


@method("decode", name="images from 0 to 1", cause="images are given in [0, 1]", **DECODE)
def _(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    return call(z) / 2 + 0.5


@method("decode", name="colours reversed", owner="goldens.decode", cause="colours are in reverse order")
def _(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    return call(z)[:, ::-1]


@method("decode", name="channels last", cause="the result is (B, H, W, C)", **DECODE)
def _(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    return call(z).transpose(0, 2, 3, 1)


@method("decode", name="the first item for all", cause="every item of the batch is the first", **DECODE)
def _(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    return call(np.broadcast_to(z[:1], z.shape))


# -- the posterior ---------------------------------------------------------------------------------------------------


def _unclamped(vae: Any, x: np.ndarray) -> Pair:
    parameters = vae._posterior(x).parameters
    mean, logvar = np.split(np.asarray(vae.ops.to_numpy(parameters)).astype(np.float64), 2, axis=1)
    return mean, logvar


@method("encode", name="log-variance not cut", owner="model.logvar", cause="log-variances are not cut to [-30, 20]")
def _(vae: Any, call: Any, x: np.ndarray) -> Pair:
    return _unclamped(vae, x)


@method(
    "encode", name="log-variance cut to [-20, 30]", owner="model.logvar", cause="log-variances are cut to [-20, 30]"
)
def _(vae: Any, call: Any, x: np.ndarray) -> Pair:
    mean, logvar = _unclamped(vae, x)
    return mean, logvar.clip(-20, 30)


@method(
    "sample", name="e^logvar for the deviation", owner="model.sample", cause="the deviation is e^logvar, not its root"
)
def _(vae: Any, call: Any, x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    mean, logvar = (part.astype(np.float64) for part in vae.encode(x))
    return mean + np.exp(logvar) * noise


@method("sample", name="noise of its own", owner="model.sample", cause="the noise that is given is not used")
def _(vae: Any, call: Any, x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return call(x, np.random.default_rng().standard_normal(noise.shape))


@method("sample", name="the mode", owner="model.sample", cause="the sample is the mean")
def _(vae: Any, call: Any, x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return vae.encode(x)[0]


# -- latents of a diffusion model --------------------------------------------------------------------------------------


def _mean(vae: Any, x: np.ndarray) -> np.ndarray:
    return vae.encode(x)[0].astype(np.float64)


@method(
    "encode_latents",
    name="divided by the scale",
    owner="model.encode_latents",
    cause="latents are divided by the scale",
)
def _(vae: Any, call: Any, x: np.ndarray) -> np.ndarray:
    return (_mean(vae, x) - (vae.config.shift_factor or 0)) / vae.config.scaling_factor


@method(
    "encode_latents",
    name="shifted after scaling",
    owner="model.encode_latents",
    cause="the shift is taken after scaling",
)
def _(vae: Any, call: Any, x: np.ndarray) -> np.ndarray:
    return _mean(vae, x) * vae.config.scaling_factor - (vae.config.shift_factor or 0)


@method("decode_latents", name="shift ignored", owner="model.decode_latents", cause="the shift is ignored")
def _(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    return vae.decode(z / vae.config.scaling_factor)


@method(
    "decode_latents",
    name="shifted before scaling",
    owner="model.decode_latents",
    cause="latents are (z - shift) / scale",
)
def _(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    return vae.decode((z - (vae.config.shift_factor or 0)) / vae.config.scaling_factor)


# -- what it is built from ---------------------------------------------------------------------------------------------


@building("quant_conv ignored", cause="quant_conv is left out", **ENCODE)
def _(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    return factory(config, _identity(weights, "quant_conv"), dtype)


@building("post_quant_conv ignored", cause="post_quant_conv is left out", **DECODE)
def _(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    return factory(config, _identity(weights, "post_quant_conv"), dtype)


def _identity(weights: dict[str, np.ndarray], conv: str) -> dict[str, np.ndarray]:
    if f"{conv}.weight" not in weights:
        return weights
    eye = np.eye(len(weights[f"{conv}.bias"]))[:, :, None, None]
    return {**weights, f"{conv}.weight": eye, f"{conv}.bias": np.zeros(len(eye))}


@building("act_fn ignored", cause="the activation is SiLU, whatever act_fn says", **DECODE)
def _(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    return factory(config.replace(act_fn="silu"), weights, dtype)


@building("norm_num_groups ignored", cause="norm_num_groups is ignored", **DECODE)
def _(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    return factory(config.replace(norm_num_groups=1), weights, dtype)


@building("queries and values swapped", cause="to_q and to_v are swapped", **DECODE)
def _(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    swapped = {name: _other(name) for name in weights}
    return factory(config, {swapped[name]: w for name, w in weights.items()}, dtype)


def _other(name: str) -> str:
    return name.replace("to_q", "to_?").replace("to_v", "to_q").replace("to_?", "to_v")


@building(
    "weights in bfloat16",
    cause="weights are rounded to bfloat16",
    equivalent_in={"bfloat16": "that is its dtype"},
    **DECODE,
)
def _(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    return factory(config, {name: rounded(w, "bfloat16") for name, w in weights.items()}, dtype)

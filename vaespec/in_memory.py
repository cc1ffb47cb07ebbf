"""Models in memory: a pipeline, diffusers' model, a module of ours -> config, and weights by canonical name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vaespec.architecture import parameters
from vaespec.arrays import to_host
from vaespec.config import AutoencoderConfig
from vaespec.dtypes import STORAGE_DTYPES
from vaespec.errors import ConfigError, InputError
from vaespec.trained import flattened
from vaespec.weights import require_complete
from vaespec.weights.canonical import CanonicalWeights

ZEROS = ("zeros", "zeros")
QKV = ("to_q", "to_k", "to_v")


def config_and_weights(model: Any, strict: bool = True) -> tuple[AutoencoderConfig, Mapping[str, Any]]:
    """The config of a model in memory, and its weights as they are there.

    `model` is recognized by what it has: `vae` (a pipeline), or `config` and `state_dict()` (diffusers' model, a module
    of ours) or `weights()` (vaespec.AutoencoderKL). Without `strict`, tensors that are not the model's are left out.
    Raises InputError for any other object, ConfigError for another model.
    """
    vae = getattr(model, "vae", None)
    vae = model if vae is None else vae
    read = getattr(vae, "weights", getattr(vae, "state_dict", None))
    if not hasattr(vae, "config") or not callable(read):
        raise InputError(
            f"the source is a {type(model).__name__}: give a path, owner/name on the hub, or a model in memory, which "
            "has a vae, or a config and a state_dict(); weights alone go to AutoencoderKL(config, weights)."
        )
    try:
        config = AutoencoderConfig.from_dict(vae.config)
    except ConfigError as error:
        raise ConfigError(f"the config of this {type(vae).__name__}: {error}") from None
    _require_loaded(vae)
    weights = read()
    if strict:
        return config, weights
    table = parameters(config)
    return config, {name: x for name, x in _plain(weights).items() if name in table}


def padding_of(model: Any) -> Any:
    """How a model in memory pads: as it was set, or by the padding_mode of its convolutions. Weights do not show it.

    Raises InputError if its convolutions differ.
    """
    vae = getattr(model, "vae", model)
    own = getattr(vae, "padding", ZEROS)
    modules = vae.modules() if hasattr(vae, "modules") else ()
    padding = [m for m in modules if hasattr(m, "padding_mode") and tuple(m.padding) != (0, 0)]
    modes = sorted({m.padding_mode for m in padding})
    if len(modes) > 1:
        raise InputError(f"the convolutions of the model pad with {' and '.join(modes)}: expected one padding_mode.")
    return modes[0] if modes and own == ZEROS else own


def canonical(weights: Mapping[str, Any], config: AutoencoderConfig) -> Mapping[str, np.ndarray]:
    """Weights of any framework as NumPy, by canonical name.

    Raises WeightMapError if they do not fit the config, InputError if they are no arrays of floats with values.
    """
    if isinstance(weights, CanonicalWeights):
        return weights  # compared when the file was opened
    plain = _plain(weights)
    for name, x in plain.items():
        _require_values(name, x)
    require_complete(plain, config)
    return {name: _host(name, x) for name, x in plain.items()}  # here: MLX's arrays belong to the thread


def _require_loaded(vae: Any) -> None:
    """Raises InputError if diffusers' group offloading has put the weights into files: tensors are arbitrary then."""
    for module in vae.modules() if hasattr(vae, "modules") else ():
        registry = getattr(module, "_diffusers_hook", None)
        group: Any = getattr(registry and registry.get_hook("group_offloading"), "group", None)
        if getattr(group, "offload_to_disk_path", None) is not None:
            raise InputError(
                f"the weights of the model are in files in {group.offload_to_disk_path}, as diffusers' group "
                "offloading leaves them: load the model from its own files."
            )


def _host(name: str, x: Any) -> np.ndarray:
    """One weight as NumPy, a view if its framework permits."""
    if isinstance(x, np.ndarray):
        return x
    try:
        a = to_host(x)
    except InputError as error:
        raise InputError(f"the weight {name}: {error}") from None
    if a.dtype.name not in STORAGE_DTYPES and a.ndim:  # a counter has no axes
        raise InputError(f"the weight {name} of dtype {a.dtype}: expected floats, so dequantize the model first.")
    return a


def _plain(weights: Any) -> dict[str, Any]:
    """Weights without the names of wrappers, and with projections that are fused split again."""
    plain = flattened(weights)
    for name in [name for name in plain if ".to_qkv." in name]:
        fused, parts = plain.pop(name), [name.replace("to_qkv", part) for part in QKV]
        if parts[0] not in plain:  # diffusers keeps them beside the fused one
            _require_values(name, fused)
            plain |= zip(parts, np.split(_host(name, fused), 3), strict=True)
    return plain


def _require_values(name: str, x: Any) -> None:
    """Raises InputError for a part of a LoRA, for what is no array, and for an array without values."""
    words = name.split(".")
    if "base_layer" in words or any(word.startswith("lora_") or word.endswith("_lora") for word in words):
        raise InputError(
            f"{name}: the model has a LoRA, which is no part of the VAE's weights: add it to them first, with "
            "fuse_lora() and unload_lora_weights(), or PEFT's merge_and_unload()."
        )
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise InputError(f"the weight {name} is a {type(x).__name__}: expected an array.")
    if str(getattr(x, "device", "")) == "meta":
        raise InputError(
            f"the weight {name} has no values, as accelerate's offloading leaves it (device meta): remove its hooks "
            "(pipe.remove_all_hooks()), or load the model from its files."
        )

"""Loads one file of any container and dialect as a VAE of diffusers: `AutoencoderKL.from_single_file`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import torch

from vaespec import families, weights
from vaespec.architecture import HALVES, halves_among
from vaespec.callers import warn_user
from vaespec.config import AutoencoderConfig
from vaespec.config_checks import brief
from vaespec.dtypes import STORAGE_DTYPES, dtype_name
from vaespec.errors import InputError
from vaespec_torch.views import as_tensor

AnyPath = str | os.PathLike[str]


class SingleFile(TypedDict, total=False):
    """What `from_single_file` may be given: `config`, `family` and so on as in `vaespec.AutoencoderKL`.

    `config` may also be the path of a config.json, or of its folder. A pipeline needs the scaling factor, which few
    files show: give `family` or `config`.

    `dtype` (a torch.dtype, its name, or "auto", the file's) and `device`: of the parameters, by default float32 on the
    CPU. `torch_dtype` is the older name of `dtype`, as in diffusers.
    """

    config: AutoencoderConfig | Mapping[str, Any] | AnyPath | None
    family: str | None
    dtype: torch.dtype | str | None
    torch_dtype: torch.dtype | str | None
    device: torch.device | str | None
    prefix: str | None
    dialect: str | None
    use_ema: bool
    strict: bool
    allow_nonfinite: bool


def load(cls: Any, path: AnyPath, **options: Unpack[SingleFile]) -> Any:
    """Return a VAE of this class, in evaluation mode, with the file's weights, read one tensor at a time.

    Warns if the scaling factor is not known. Raises InputError for an unknown option or dtype, two dtypes, half a
    model, or a file for the other class; WeightFileError and WeightMapError as in vaespec.AutoencoderKL.
    """
    if unknown := sorted(options.keys() - SingleFile.__annotations__.keys()):
        raise InputError(f"from_single_file has no {unknown[0]}=: it takes {', '.join(SingleFile.__annotations__)}.")
    given: dict[str, Any] = dict(options)
    config, family = given.pop("config", None), given.pop("family", None)
    dtype, older, device = given.pop("dtype", None), given.pop("torch_dtype", None), given.pop("device", None)
    if None not in (dtype, older):
        raise InputError(f"dtype={dtype} and torch_dtype={older}: give one of them; torch_dtype is the older name.")
    dtype = _dtype(older if dtype is None else dtype)
    config, read = weights.load_file(weights.single_file(path), _config(config), family, **given)
    if config.class_name != cls.__name__:
        raise InputError(f"{path} is {config.class_name}'s: load it with vaespec_diffusers.{config.class_name}.")
    if missing := [half for half in HALVES if half not in halves_among(read, config)]:
        raise InputError(f"{path} has no {missing[0]}, which diffusers' class needs: load it with vaespec.load.")
    if config.scaling_factor is None and config.patch_size is None:
        warn_user(
            f"the scaling factor of {path} is not known ({families.scaling_candidates(config)}), and a pipeline needs "
            "it: give family= or config=.",
            UserWarning,
        )
    with torch.device("meta"):
        vae: Any = cls.from_config(config.to_dict())
    tensors = {name: _placed(as_tensor(read[name]), dtype, device) for name in read}
    vae.load_state_dict(tensors, strict=True, assign=True)
    return vae.eval()


def _config(given: Any) -> AutoencoderConfig | None:
    """The config that is given: as such, as a mapping, or as the path of its file or folder."""
    if given is None or isinstance(given, AutoencoderConfig):
        return given
    if isinstance(given, Mapping):
        return AutoencoderConfig.from_dict(given)
    path = Path(given)
    return AutoencoderConfig.from_json(path / "config.json" if path.is_dir() else path)


def _dtype(given: Any) -> torch.dtype | Literal["auto"]:
    """The dtype of the parameters. Raises InputError for what is none of them."""
    name = "float32" if given is None else dtype_name(given)
    if name == "auto":
        return "auto"
    if name not in STORAGE_DTYPES:
        raise InputError(f"torch_dtype={brief(given)}: choose {', '.join(STORAGE_DTYPES)} or auto.")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _placed(tensor: torch.Tensor, dtype: torch.dtype | Literal["auto"], device: Any) -> torch.Tensor:
    """A tensor in a dtype, if it holds floats, on a device."""
    wanted = tensor.dtype if dtype == "auto" or not tensor.is_floating_point() else dtype
    return tensor.to(device=device or tensor.device, dtype=wanted)

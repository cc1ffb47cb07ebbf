"""Weight files whose tensors cannot be taken for each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file as write_safetensors
from support.configs import narrow

from vaespec import AutoencoderConfig, parameters
from vaespec.weights import save_file
from vaespec.weights.containers import open_tensors
from vaespec.weights.dialects import DIALECTS

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"

PLAIN = narrow((32, 64), norm_num_groups=32, latent_channels=4)
"""The narrowest config that can be inferred: 32 groups, as every published one."""


def tagged(config: AutoencoderConfig, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Tensor k is k plus a ramp of its own, so that no two tensors, rows or axes can be taken for each other."""
    return {
        name: np.array(k, np.int64)
        if parameter.shape == ()
        else (k + np.arange(np.prod(parameter.shape)).reshape(parameter.shape) / 2.0**13).astype(dtype)
        for k, (name, parameter) in enumerate(parameters(config).items(), start=1)
    }


def assert_same_bits(actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, a in expected.items():
        b = actual[name]
        assert (b.dtype, b.shape) == (a.dtype, a.shape), name
        assert b.tobytes() == a.tobytes(), name


def stored(config: AutoencoderConfig, tmp_path: Path, dialect: str = "diffusers", prefix: str = "") -> dict:
    """The tensors of a file in this dialect, to be changed and written again."""
    path = tmp_path / f"whole{DIALECTS[dialect].suffix}"
    save_file(path, config, tagged(config), dialect=dialect, prefix=prefix)
    return dict(open_tensors(path))


def written(tmp_path: Path, tensors: dict[str, np.ndarray], name: str = "model.safetensors") -> Path:
    write_safetensors({key: np.ascontiguousarray(a) for key, a in tensors.items()}, tmp_path / name)
    return tmp_path / name

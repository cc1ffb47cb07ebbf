"""Frozen results of diffusers (goldens/, by make_goldens.py) keep the specification right without diffusers."""

from __future__ import annotations

from pathlib import Path

import array_api_compat.numpy as xp
import numpy as np
import pytest
from support.configs import CONFIGS, drawn_weights, images, relative_l2, uniform

from vaespec import DiagonalGaussian, ReferenceOps, decoder, encoder, parameters

GOLDENS = np.load(Path(__file__).parents[1] / "goldens" / "diffusers.npz")
NAMES = sorted({key.split("/")[0] for key in GOLDENS.files if "/" in key})


def test_the_goldens_say_which_diffusers_made_them():
    assert str(GOLDENS["version"]) == "0.42.1"
    assert len(NAMES) == 9


@pytest.mark.parametrize("name", NAMES)
def test_the_specification_gives_the_frozen_results(name):
    config, ops = CONFIGS[name], ReferenceOps(xp)
    table = parameters(config)
    params = ops.load_params(drawn_weights({key: parameter.shape for key, parameter in table.items()}), table)
    posterior = DiagonalGaussian(encoder(config)(images(config, *GOLDENS[f"{name}/size"]), params, ops))
    assert relative_l2(posterior.mean, GOLDENS[f"{name}/mean"]) <= 1e-13
    assert relative_l2(posterior.logvar, GOLDENS[f"{name}/logvar"]) <= 1e-13
    z = uniform("golden", GOLDENS[f"{name}/mean"].shape, -2, 2)
    assert relative_l2(decoder(config)(z, params, ops), GOLDENS[f"{name}/decoded"]) <= 1e-13

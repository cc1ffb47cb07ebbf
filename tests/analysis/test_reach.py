"""ReachOps: checked against impulses sent through the real model with its global parts switched off."""

import numpy as np
import pytest

from vaespec import families
from vaespec.analysis.reach import decoder_reach, encoder_reach
from vaespec.architecture import decoder, encoder, parameters
from vaespec.config import AutoencoderConfig
from vaespec.reference import ReferenceOps

NARROW = {
    levels: AutoencoderConfig(
        block_out_channels=(2,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=1,
        latent_channels=1,
        in_channels=1,
        out_channels=1,
    )
    for levels in (1, 2, 3)
}


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux1", "flux2"])
def test_the_f8_families_reach_138_px_in_the_decoder_and_101_and_108_px_in_the_encoder(family):
    assert decoder_reach(families.config(family)) == (138, 138)
    assert encoder_reach(families.config(family)) == (101, 108)


class LocalOps(ReferenceOps):
    """The specification without the ops that reach everywhere: positive and linear, so that no influence cancels."""

    def group_norm(self, x, scale, shift, *, groups, eps):
        return x

    def silu(self, x):
        return x

    def attention(self, q, k, v, *, scale):
        return q


def positive_params(config, model):
    return {
        name: np.zeros(p.shape) if p.role == "bias" else np.full(p.shape, 0.1) for name, p in parameters(config).items()
    }


def touched(y):
    rows = np.flatnonzero(np.abs(y[0, 0]).max(axis=1))
    return rows[0], rows[-1]


@pytest.mark.parametrize("levels", NARROW)
def test_an_impulse_in_the_latents_touches_exactly_the_predicted_pixels(levels):
    config, f = NARROW[levels], 2 ** (levels - 1)
    size, centre = 64, 32
    z = np.zeros((1, 1, size, 1))
    z[0, 0, centre] = 1.0
    first, last = touched(decoder(config)(z, positive_params(config, decoder(config)), LocalOps(np)))
    assert (centre * f - first, last - (centre * f + f - 1)) == decoder_reach(config)


@pytest.mark.parametrize("levels", NARROW)
def test_a_latent_sees_exactly_the_predicted_pixels(levels):
    config, f = NARROW[levels], 2 ** (levels - 1)
    centre = 24
    params, model = positive_params(config, encoder(config)), encoder(config)
    impulses = np.eye(48 * f)[:, None, :, None] * np.ones((1, 1, 1, f))  # one image per row of pixels
    seen = np.flatnonzero(np.abs(model(impulses, params, LocalOps(np))[:, 0, centre, 0]))
    assert (centre * f - seen[0], seen[-1] - (centre * f + f - 1)) == encoder_reach(config)

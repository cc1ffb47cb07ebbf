"""Outputs are read by attribute, key, index or as a tuple; a field that is None is absent."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vaespec import AutoencoderKLOutput, DecoderOutput, DiagonalGaussian

POSTERIOR = DiagonalGaussian(np.zeros((1, 4, 2, 2)))
SAMPLE = np.zeros((1, 3, 8, 8))


def test_the_posterior_is_read_in_every_way():
    output = AutoencoderKLOutput(POSTERIOR)
    assert output.latent_dist is output["latent_dist"] is output[0] is output.to_tuple()[0] is POSTERIOR
    assert (len(output), list(output), output.keys()) == (1, ["latent_dist"], ("latent_dist",))


def test_an_absent_posterior_does_not_count():
    output = DecoderOutput(SAMPLE)
    assert output.sample is output["sample"] is output[0] is SAMPLE
    assert output.posterior is None
    assert output.keys() == ("sample",)
    assert len(output.to_tuple()) == len(output) == 1
    with pytest.raises(KeyError, match="posterior"):
        output["posterior"]
    with pytest.raises(IndexError):
        output[1]


def test_a_present_posterior_comes_second():
    output = DecoderOutput(SAMPLE, POSTERIOR)
    assert output.keys() == ("sample", "posterior")
    assert output[1] is output["posterior"] is output[-1] is POSTERIOR
    assert output[:2] == output.to_tuple()
    assert {**output}.keys() == {"sample", "posterior"}


@pytest.mark.parametrize("key", ["latent", "keys", "to_tuple", "__class__"])
def test_only_fields_are_keys(key):
    with pytest.raises(KeyError, match=key):
        DecoderOutput(SAMPLE)[key]


def test_replace_gives_a_changed_copy():
    output = DecoderOutput(SAMPLE)
    changed = output.replace(posterior=POSTERIOR)
    assert changed.sample is SAMPLE
    assert changed.posterior is POSTERIOR
    assert output.posterior is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        output.sample = None

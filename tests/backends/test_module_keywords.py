"""The keywords of both module classes are those of diffusers and `seed`, and each does what it says or is refused."""

from __future__ import annotations

import inspect

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL as Theirs
from support.configs import TINY, images, uniform
from support.models import array, tiny

from vaespec import InputError
from vaespec.outputs import AutoencoderKLOutput, DecoderOutput

ARRAY = {"torch": torch.tensor, "mlx": mx.array}
each_module = pytest.mark.parametrize("backend", ARRAY)


def pictures(backend: str):
    return ARRAY[backend](images(TINY, 16, 16, 2).astype(np.float32))


def latents(backend: str):
    return ARRAY[backend](uniform("z", (1, 4, 2, 2)).astype(np.float32))


@each_module
@pytest.mark.parametrize("wrong", ["smaple_posterior", "noise", "first_item", "tiled", "return_posterior"])
def test_unknown_keywords_are_refused(backend, wrong):
    module = tiny(backend).module()
    for call, given in (
        (module, pictures(backend)),
        (module.encode, pictures(backend)),
        (module.decode, latents(backend)),
        (module.encoder, pictures(backend)),
    ):
        with pytest.raises(TypeError, match=wrong):
            call(given, **{wrong: True})


@each_module
def test_the_signatures_are_those_of_diffusers(backend):
    """Positions, names and defaults; `seed` is ours, and a keyword alone."""

    def parameters(function) -> list[tuple]:
        listed = list(inspect.signature(function).parameters.values())[1:]
        return [(p.name, p.default) for p in listed if p.kind is p.POSITIONAL_OR_KEYWORD]

    ours = type(tiny(backend).module())
    call = ours.forward if backend == "torch" else ours.__call__
    assert parameters(call) == parameters(Theirs.forward)
    assert parameters(ours.encode) == parameters(inspect.unwrap(Theirs.encode))
    assert parameters(ours.decode) == parameters(inspect.unwrap(Theirs.decode))


@each_module
def test_a_seed_draws_the_same_sample_as_the_models(backend):
    vae, x = tiny(backend), pictures(backend)
    module = vae.module()
    output = module(x, True, seed=3)
    z = output.posterior.sample(seed=3)
    np.testing.assert_array_equal(array(output.sample), array(module.decode(z).sample))
    np.testing.assert_allclose(array(output.sample), array(vae(x, True, seed=3).sample), atol=1e-4)
    assert not np.array_equal(array(module(x, True, seed=4).sample), array(output.sample))
    assert not np.array_equal(array(module(x).sample), array(output.sample))


@each_module
def test_a_seed_without_a_sample_is_refused(backend):
    module, x = tiny(backend).module(), pictures(backend)
    for seed in (3, 0):
        with pytest.raises(InputError, match=f"^seed={seed} is for a sample of the posterior"):
            module(x, seed=seed)


@each_module
def test_a_generator_draws_the_sample(backend):
    module, x = tiny(backend).module(), pictures(backend)
    make = {"torch": lambda: torch.Generator().manual_seed(5), "mlx": lambda: mx.random.key(5)}[backend]
    first, again = module(x, True, True, make()), module(x, sample_posterior=True, generator=make())
    np.testing.assert_array_equal(array(first.sample), array(again.sample))
    z = first.posterior.sample(make())
    np.testing.assert_array_equal(array(first.sample), array(module.decode(z).sample))
    with pytest.raises(InputError, match="give one of generator, seed and noise"):
        module(x, sample_posterior=True, generator=make(), seed=5)
    np.testing.assert_array_equal(array(module(x, generator=make()).sample), array(module(x).sample))  # as in diffusers


@each_module
def test_without_return_dict_results_are_tuples_of_one(backend):
    module, x, z = tiny(backend).module(), pictures(backend), latents(backend)
    assert isinstance(module(x), DecoderOutput)
    assert isinstance(module.encode(x), AutoencoderKLOutput)
    for options in ({}, {"sample_posterior": True, "seed": 3}):
        (sample,) = module(x, return_dict=False, **options)
        np.testing.assert_array_equal(array(sample), array(module(x, **options).sample))
    (posterior,) = module.encode(x, return_dict=False)
    np.testing.assert_array_equal(array(posterior.mean), array(module.encode(x).latent_dist.mean))
    for options in ({}, {"generator": None}, {"generator": torch.Generator()}):  # pipelines give a generator
        (sample,) = module.decode(z, return_dict=False, **options)
        np.testing.assert_array_equal(array(sample), array(module.decode(z).sample))


@each_module
def test_the_padding_of_the_model_goes_along(backend):
    vae, z = tiny(backend), latents(backend)
    zeros = array(vae.module().decode(z).sample)
    vae.set_padding(("zeros", "circular"))
    sample = array(vae.module().decode(z).sample)
    assert not np.array_equal(sample, zeros)
    np.testing.assert_allclose(sample, array(vae.decode(z).sample), atol=1e-4)

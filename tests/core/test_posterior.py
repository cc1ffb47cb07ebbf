"""The posterior is a diagonal Gaussian in every dtype, even if diffusers' overflows or loses its batch axis."""

from __future__ import annotations

import array_api_strict
import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.configs import uniform

from vaespec import DiagonalGaussian, InputError
from vaespec.noise import standard_normal

EPS = np.finfo(np.float64).eps
ITEMS = (1, 2, 3)

# (B, 2C, h, w): means beyond any latent, log-variances on both sides of the clamp.
shapes = st.tuples(st.integers(1, 3), st.integers(1, 2).map(lambda c: 2 * c), st.integers(1, 3), st.integers(1, 3))


def parameters(shape):
    return hnp.arrays(np.float64, shape, elements=st.floats(-40, 40))


posteriors = shapes.flatmap(parameters).map(DiagonalGaussian)
pairs = shapes.flatmap(lambda shape: st.tuples(parameters(shape), parameters(shape)))


def torch_pair(p: np.ndarray) -> DiagonalGaussianDistribution:
    return DiagonalGaussianDistribution(torch.tensor(p))


@given(posteriors)
def test_kl_is_never_negative(posterior):
    assert (posterior.kl() >= 0).all()


@given(st.floats(-1e-3, 1e-3), st.floats(-1e-3, 1e-3), st.sampled_from([np.float16, np.float32, np.float64]))
def test_kl_near_the_standard_normal_is_not_lost_in_rounding(mean, logvar, dtype):
    """The first terms of its series, (μ² + l² / 2 + l³ / 6) / 2, are right to 1e-6 here."""
    posterior = DiagonalGaussian(np.array([mean, logvar], dtype).reshape(1, 2, 1, 1))
    (m,), (lv,) = posterior.mean.astype(np.float64).ravel(), posterior.logvar.astype(np.float64).ravel()
    expected = 0.5 * (m * m + lv * lv / 2 + lv**3 / 6)
    eps = np.finfo(posterior.logvar.dtype).eps
    np.testing.assert_allclose(posterior.kl(), expected, rtol=1e-6, atol=eps * abs(lv) + np.finfo(np.float32).tiny)
    assert posterior.kl() >= 0


@given(posteriors)
def test_kl_is_zero_only_at_the_standard_normal(posterior):
    away = (abs(posterior.mean) > 1e-100).any(axis=ITEMS) | (abs(posterior.logvar) > 1e-7).any(axis=ITEMS)
    assert (posterior.kl()[away] > 0).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_kl_is_zero_at_the_standard_normal(dtype):
    np.testing.assert_array_equal(DiagonalGaussian(np.zeros((2, 4, 3, 3), dtype)).kl(), np.zeros(2))


@given(posteriors)
def test_kl_of_a_posterior_to_itself_is_zero(posterior):
    np.testing.assert_array_equal(posterior.kl(posterior), np.zeros(len(posterior.mean)))


@given(posteriors)
def test_kl_to_the_standard_normal_is_kl_without_other(posterior):
    standard = DiagonalGaussian(np.zeros_like(posterior.parameters))
    np.testing.assert_array_equal(posterior.kl(standard), posterior.kl())


@given(posteriors, st.integers(0, 2**32))
def test_nll_is_least_at_the_mean(posterior, seed):
    elsewhere = posterior.mean + standard_normal(posterior.mean.shape, seed)
    assert (posterior.nll(posterior.mean) <= posterior.nll(elsewhere)).all()


@given(posteriors)
def test_nll_at_the_mean_is_the_entropy_less_a_half_per_number(posterior):
    half_log = 0.5 * (np.log(2 * np.pi) + posterior.logvar)
    np.testing.assert_allclose(posterior.nll(posterior.mean), half_log.sum(axis=ITEMS), rtol=1e-13, atol=1e-13)


@given(pairs)
def test_kl_and_nll_agree_with_diffusers(pair):
    """Log-variances differ by up to 50, rounded to 50 · eps; in an exponent that is a relative error."""
    (ours, other), (theirs, their_other) = map(DiagonalGaussian, pair), map(torch_pair, pair)
    # kl(other) has e^d for a ratio of variances; d, up to 50, is rounded to 25 EPS, and e^d with it.
    tolerance = {"rtol": 64 * EPS, "atol": 64 * EPS * ours.parameters[0].size}
    np.testing.assert_allclose(ours.kl(), theirs.kl().numpy(), **tolerance)
    np.testing.assert_allclose(ours.nll(other.mean), theirs.nll(torch.tensor(other.mean)).numpy(), **tolerance)
    expected = theirs.kl(their_other).numpy()
    np.testing.assert_allclose(ours.kl(other), expected, **tolerance)


@given(pairs)
def test_mean_variance_and_sample_agree_with_diffusers(pair):
    ours, theirs = DiagonalGaussian(pair[0]), torch_pair(pair[0])
    noise = DiagonalGaussian(pair[1]).mean
    for name in ("mean", "logvar", "var", "std"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name).numpy(), rtol=4 * EPS)
    expected = theirs.mean + theirs.std * torch.tensor(noise)
    np.testing.assert_allclose(ours.sample(noise=noise), expected.numpy(), rtol=4 * EPS, atol=40 * EPS)
    np.testing.assert_array_equal(ours.mode(), ours.mean)


@pytest.mark.parametrize("dims", [(1, 2, 3), (1,), [2, 3]])
def test_nll_sums_over_the_given_dims(dims):
    p, x = uniform("p", (2, 6, 3, 4), -2, 2), uniform("x", (2, 3, 3, 4), -2, 2)
    expected = torch_pair(p).nll(torch.tensor(x), dims=list(dims)).numpy()
    np.testing.assert_allclose(DiagonalGaussian(p).nll(x, dims), expected, rtol=1e-13)


def test_log_variance_is_clamped_at_both_ends():
    p = np.array([0, 0, 0, 0, 1e3, 20.5, -1e3, -29.5]).reshape(1, 8, 1, 1)
    posterior = DiagonalGaussian(p)
    assert posterior.logvar.ravel().tolist() == [20.0, 20.0, -30.0, -29.5]
    np.testing.assert_array_equal(posterior.var, np.exp(posterior.logvar))


@pytest.mark.parametrize("make", [lambda a: a, torch.tensor], ids=["numpy", "torch"])
def test_kl_and_nll_of_float16_are_finite_even_if_its_variance_overflows(make):
    p = np.concatenate([np.full((2, 4, 8, 8), 3.0), np.full((2, 4, 8, 8), 20.0)], axis=1).astype(np.float16)
    posterior = DiagonalGaussian(make(p))
    by_hand = 0.5 * 4 * 64 * (9.0 + np.exp(20.0) - 1.0 - 20.0)
    np.testing.assert_allclose(np.asarray(posterior.kl()), by_hand, rtol=1e-6)
    assert np.isfinite(np.asarray(posterior.nll(posterior.mean))).all()
    assert str(posterior.kl().dtype).endswith("float32")


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [("float16", "float32"), ("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
@pytest.mark.parametrize("deterministic", [False, True])
def test_shapes_and_dtypes_do_not_depend_on_deterministic(dtype, wide, deterministic):
    p = uniform("p", (3, 6, 2, 5))
    narrow_numpy = p.astype(getattr(ml_dtypes, dtype, dtype))
    for array in (narrow_numpy, torch.tensor(p).to(getattr(torch, dtype))):
        posterior = DiagonalGaussian(array, deterministic=deterministic)
        name = {"latents": dtype, "statistics": wide}
        for value in (posterior.mean, posterior.mode(), posterior.sample(seed=0)):
            assert (tuple(value.shape), str(value.dtype).split(".")[-1]) == ((3, 3, 2, 5), name["latents"])
        for value in (posterior.logvar, posterior.std, posterior.var):
            assert (tuple(value.shape), str(value.dtype).split(".")[-1]) == ((3, 3, 2, 5), name["statistics"])
        for value in (posterior.kl(), posterior.kl(posterior), posterior.nll(posterior.mean)):
            assert (tuple(value.shape), str(value.dtype).split(".")[-1]) == ((3,), name["statistics"])


def test_a_deterministic_posterior_is_its_mean():
    posterior = DiagonalGaussian(uniform("p", (2, 4, 3, 3)), deterministic=True)
    np.testing.assert_array_equal(posterior.sample(seed=1), posterior.mean)
    for zero in (posterior.std, posterior.var, posterior.kl(), posterior.nll(posterior.mean)):
        np.testing.assert_array_equal(zero, np.zeros_like(zero))


@given(cut=st.integers(0, 4), seed=st.integers(0, 2**64 - 1))
def test_a_seeded_sample_is_equal_for_any_batch_split(cut, seed):
    p = uniform("p", (4, 6, 2, 3))
    whole = DiagonalGaussian(p).sample(seed=seed)
    parts = [DiagonalGaussian(p[:cut]).sample(seed=seed), DiagonalGaussian(p[cut:]).sample(seed=seed, first_item=cut)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_list_of_seeds_samples_each_item_alone():
    p = uniform("p", (3, 6, 2, 3))
    whole = DiagonalGaussian(p).sample(seed=[5, 6, 5])
    for i, seed in enumerate([5, 6, 5]):
        np.testing.assert_array_equal(whole[i : i + 1], DiagonalGaussian(p[i : i + 1]).sample(seed=seed))


def test_a_seeded_sample_is_mean_and_std_times_portable_noise():
    posterior = DiagonalGaussian(uniform("p", (2, 6, 4, 3), -3, 3))
    expected = posterior.mean + posterior.std * standard_normal((2, 3, 4, 3), 11)
    np.testing.assert_array_equal(posterior.sample(seed=11), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_seeded_sample_is_the_same_in_every_framework(dtype):
    """Up to the rounding of exp, which differs between libraries by two units in the last place."""
    p = uniform("p", (2, 6, 4, 3), -3, 3).astype(dtype)
    expected = DiagonalGaussian(p).sample(seed=3)
    for array in (torch.tensor(p), array_api_strict.asarray(p)):
        drawn = np.asarray(DiagonalGaussian(array).sample(seed=3))
        np.testing.assert_allclose(drawn, expected, rtol=8 * np.finfo(dtype).eps)


def test_a_generator_of_numpy_gives_its_own_noise():
    posterior = DiagonalGaussian(uniform("p", (2, 6, 4, 3)))
    drawn = posterior.sample(np.random.default_rng(0))
    noise = np.random.default_rng(0).standard_normal((2, 3, 4, 3), dtype=np.float32)
    np.testing.assert_array_equal(drawn, posterior.sample(noise=noise))
    np.testing.assert_array_equal(drawn, posterior.sample(generator=np.random.default_rng(0)))


def test_without_a_source_samples_differ():
    posterior = DiagonalGaussian(np.zeros((1, 4, 8, 8)))
    assert not np.array_equal(posterior.sample(), posterior.sample())


def test_samples_have_the_mean_and_variance_of_the_posterior():
    """n draws: the mean varies by σ/√n and the variance by σ²√(2/n); 5 σ of each."""
    n = 100_000
    p = np.concatenate([np.full((1, 1, n, 1), 1.5), np.full((1, 1, n, 1), 0.7)], axis=1)
    drawn = DiagonalGaussian(p).sample(seed=0)
    assert abs(drawn.mean() - 1.5) < 5 * np.exp(0.35) / np.sqrt(n)
    assert abs(drawn.var() - np.exp(0.7)) < 5 * np.exp(0.7) * np.sqrt(2 / n)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"seed": 0, "noise": np.zeros((2, 2, 3, 3))}, "give one of generator, seed and noise"),
        ({"generator": np.random.default_rng(0), "seed": 0}, "give one of generator, seed and noise"),
        ({"noise": np.zeros((2, 2, 3, 4))}, r"noise of shape \(2, 2, 3, 4\): the latents are of shape \(2, 2, 3, 3\)"),
        ({"seed": [1]}, "1 seeds for a batch of 2"),
        (
            {"generator": torch.Generator()},
            "generator is a Generator: give one of numpy.random or of the framework, or give seed=",
        ),
    ],
)
def test_a_source_of_noise_that_does_not_fit_is_refused(source, words):
    with pytest.raises(InputError, match=words):
        DiagonalGaussian(np.zeros((2, 4, 3, 3))).sample(**source)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (4, 2, 2), (1, 5, 1, 1)])
def test_parameters_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(InputError, match=r"parameters of shape .*: expected \(B, 2C, h, w\)"):
        DiagonalGaussian(np.zeros(shape))

"""DiagonalGaussian, the posterior that the encoder returns: a normal distribution for each latent number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from vaespec import noise
from vaespec.arrays import asarray_like, normal_like
from vaespec.dtypes import narrow, widen
from vaespec.errors import InputError
from vaespec.ops import Array

ITEM = (-3, -2, -1)  # channels, height, width; a transform such as vmap may add axes before the batch
LOGVAR_RANGE = (-30.0, 20.0)  # diffusers' clamp (vae.py): keeps std between 3e-7 and 2.2e4


@dataclass(frozen=True, eq=False, repr=False)
class DiagonalGaussian:
    """q(z | x) = N(mean, diag(var)). Kingma & Welling 2014, arXiv:1312.6114.

    `parameters` (B, 2C, h, w): mean, then log-variance, which is clamped to [-30, 20]. `mean` keeps the dtype of
    `parameters`; `logvar`, `std`, `var`, `kl()` and `nll()` are float32 or wider, since var overflows float16.
    With `deterministic`, std and var are zero: `sample` is the mean, and `kl` and `nll` are zero.
    """

    parameters: Array
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.parameters.ndim < 4 or self.parameters.shape[-3] % 2:
            raise InputError(f"parameters of shape {tuple(self.parameters.shape)}: expected (B, 2C, h, w).")

    def replace(self, **changes: Any) -> DiagonalGaussian:
        """A copy with other parameters, or with `deterministic` changed."""
        return dataclasses.replace(self, **changes)

    # Computed at each access, so that nothing can contradict `parameters`.

    @property
    def _xp(self) -> Any:
        return array_namespace(self.parameters)

    @property
    def mean(self) -> Array:
        """(B, C, h, w), which is the mode too."""
        return self.parameters[..., : self.parameters.shape[-3] // 2, :, :]

    @property
    def logvar(self) -> Array:
        """(B, C, h, w), natural logarithm of the variance, clamped."""
        logvar = widen(self.parameters[..., self.parameters.shape[-3] // 2 :, :, :], self._xp)
        low, high = (self._xp.full_like(logvar, bound) for bound in LOGVAR_RANGE)
        return self._xp.minimum(self._xp.maximum(logvar, low), high)

    @property
    def var(self) -> Array:
        """exp(logvar); zero if deterministic."""
        return self._xp.zeros_like(self.logvar) if self.deterministic else self._xp.exp(self.logvar)

    @property
    def std(self) -> Array:
        """exp(logvar / 2); zero if deterministic."""
        return self._xp.zeros_like(self.logvar) if self.deterministic else self._xp.exp(0.5 * self.logvar)

    def __repr__(self) -> str:
        kind = ", deterministic" if self.deterministic else ""
        return f"DiagonalGaussian(latents {tuple(self.mean.shape)}, {self.parameters.dtype}{kind})"

    def mode(self) -> Array:
        """The most probable latents (B, C, h, w): the mean."""
        return self.mean

    def sample(
        self,
        generator: Any = None,
        *,
        seed: noise.Seed | None = None,
        noise: Array | None = None,
        first_item: int = 0,
    ) -> Array:
        """mean + std · ε, (B, C, h, w) in the dtype of `parameters`.

        ε is `noise` (an array of that shape), or drawn from `seed` (the same on every backend: see vaespec.noise), or
        from a `generator`: NumPy's, a torch.Generator, a key of jax.random or mlx.core.random, or a list with one for
        each item. Without any of them, ε comes from the framework's global generator, or from fresh entropy if it has
        none.
        """
        if sum(source is not None for source in (generator, seed, noise)) > 1:
            raise InputError("give one of generator, seed and noise, not several.")
        epsilon = self._noise(generator, seed, first_item) if noise is None else self._like_latents(noise, "noise")
        drawn = widen(self.mean, self._xp) + self.std * widen(epsilon, self._xp)
        return narrow(drawn, self.parameters, self._xp)

    def mode_or_sample(self, sample_posterior: bool, generator: Any = None, *, seed: noise.Seed | None = None) -> Array:
        """What `forward` decodes: a sample if `sample_posterior`, else the mode.

        Without sample_posterior a generator is ignored, as in diffusers, and a seed raises InputError.
        """
        if sample_posterior:
            return self.sample(generator, seed=seed)
        if seed is not None:
            raise InputError(f"seed={seed} is for a sample of the posterior: give sample_posterior=True.")
        return self.mode()

    def kl(self, other: DiagonalGaussian | None = None) -> Array:
        """KL(self ‖ other) in nats, summed per item: (B,). `other` defaults to the standard normal.

        ½ Σ (μ - μₒ)² / σₒ² + e^d - 1 - d, with d = log σ² - log σₒ². arXiv:1312.6114, appendix B. Written with
        expm1, so that rounding never makes it negative.
        """
        xp = self._xp
        distance, d, spread = widen(self.mean, xp), self.logvar, 1.0
        if other is not None:
            distance, d, spread = distance - widen(other.mean, xp), d - other.logvar, other.var
        terms = xp.zeros_like(d) if self.deterministic else distance * distance / spread + (xp.expm1(d) - d)
        return 0.5 * self._sum(terms, ITEM)

    def nll(self, sample: Array, dims: Sequence[int] = ITEM) -> Array:
        """-log q(sample) in nats, summed over `dims`: (B,) by default. ½ Σ log 2π + log σ² + (x - μ)² / σ²."""
        distance = widen(self._like_latents(sample, "the sample"), self._xp) - widen(self.mean, self._xp)
        if self.deterministic:
            terms = self._xp.zeros_like(distance)
        else:
            terms = math.log(2.0 * math.pi) + self.logvar + distance * distance / self.var
        return 0.5 * self._sum(terms, dims)

    def _sum(self, terms: Array, dims: Sequence[int]) -> Array:
        """Sums over one axis at a time: MLX's CPU adds numbers one by one, and short sums then lose fewer digits."""
        for axis in sorted((dim % terms.ndim for dim in dims), reverse=True):
            terms = self._xp.sum(terms, axis=axis)
        return terms

    def _like_latents(self, x: Any, name: str) -> Array:
        """Converts x to the framework of the latents; raises InputError if its shape is not theirs."""
        if isinstance(x, np.ndarray | list | tuple | float | int):
            x = asarray_like(self.parameters, x)
        if tuple(x.shape) != tuple(self.mean.shape):
            raise InputError(f"{name} of shape {tuple(x.shape)}: the latents are of shape {tuple(self.mean.shape)}.")
        return x

    def _noise(self, generator: Any, seed: noise.Seed | None, first_item: int) -> Array:
        if seed is not None:
            drawn = noise.standard_normal(tuple(self.mean.shape), seed, first_item=first_item)
            return asarray_like(self.parameters, drawn)
        if isinstance(generator, list | tuple) and len(generator) == 1:  # one for the whole batch, as in diffusers
            (generator,) = generator
        if not isinstance(generator, list | tuple):
            return normal_like(self.mean, generator)
        if len(generator) != self.mean.shape[0]:
            raise InputError(
                f"{len(generator)} generators for a batch of {self.mean.shape[0]}: give one, or one per item."
            )
        items = [normal_like(self.mean[i : i + 1, ...], item) for i, item in enumerate(generator)]
        return self._xp.concat(items, axis=0)

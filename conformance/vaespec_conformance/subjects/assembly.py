"""A whole VAE on given ops, with every method that a check may call: NumPy arrays in, the backend's numbers out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from vaespec import AutoencoderConfig, DiagonalGaussian, latents
from vaespec.architecture import DECODER, ENCODER, Half
from vaespec.model import Model, Run
from vaespec.ops import Array
from vaespec.reference import ReferenceOps
from vaespec.tiling.banded import BandedOps
from vaespec.tiling.blend import blended
from vaespec.tiling.geometry import TileGeometry
from vaespec.weights import require_complete


class Assembled:
    """The specification's model on `ops`, with the methods of a port.

    Images and latents are NumPy arrays (B, C, H, W). `compile` turns the encoder or the decoder into a function of
    (x, params); by default it is the ops' own `compile`.
    """

    def __init__(
        self,
        config: AutoencoderConfig,
        weights: Mapping[str, np.ndarray],
        ops: ReferenceOps,
        compile: Callable[..., Run] | None = None,
    ) -> None:
        require_complete(weights, config)
        self.config, self.ops, self.compile = config, ops, compile
        self.model = Model.place(config, weights, ops)

    def encode(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images -> mean and clamped log-variance."""
        posterior = self._posterior(x)
        return self._out(posterior.mean), self._out(posterior.logvar)

    def decode(self, z: np.ndarray) -> np.ndarray:
        """Latents -> images."""
        return self._out(self._run(DECODER, self.ops.from_numpy(z)))

    def sample(self, x: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Images -> latents: mean + std · noise."""
        return self._out(self._posterior(x).sample(noise=noise))

    def encode_latents(self, x: np.ndarray) -> np.ndarray:
        """Images -> latents that a diffusion model takes: the mode, shifted and scaled."""
        return self._out(latents.normalize(self._posterior(x).mode(), self.config, self.model.params))

    def decode_latents(self, z: np.ndarray) -> np.ndarray:
        """Latents of a diffusion model -> images: the inverse of `encode_latents`."""
        raw = latents.denormalize(self.ops.from_numpy(z), self.config, self.model.params)
        return self._out(self._run(DECODER, raw))

    def tiled_encode(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`encode` in tiles of config.sample_size px that overlap by a quarter and are blended."""
        tiles = TileGeometry.from_config(self.config).encoding
        moments = blended(partial(self._run, ENCODER), self.ops.from_numpy(x), tiles)
        posterior = DiagonalGaussian(moments)
        return self._out(posterior.mean), self._out(posterior.logvar)

    def tiled_decode(self, z: np.ndarray) -> np.ndarray:
        """`decode` in tiles of the same size, blended."""
        tiles = TileGeometry.from_config(self.config).decoding
        return self._out(blended(partial(self._run, DECODER), self.ops.from_numpy(z), tiles))

    def banded_encode(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`encode` in bands of rows: the same result in less memory."""
        return self._in_bands().encode(x)

    def banded_decode(self, z: np.ndarray) -> np.ndarray:
        """`decode` in bands of rows: the same result in less memory."""
        return self._in_bands().decode(z)

    def eager_decode(self, z: np.ndarray) -> np.ndarray:
        """`decode` layer by layer, without compiling."""
        return self._compiled_by(lambda model: lambda x, params: model(x, params, self.ops)).decode(z)

    def sliced_encode(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`encode`, one item of the batch at a time."""
        mean, logvar = zip(*(self.encode(x[i : i + 1]) for i in range(len(x))), strict=True)
        return np.concatenate(mean), np.concatenate(logvar)

    def sliced_decode(self, z: np.ndarray) -> np.ndarray:
        """`decode`, one item of the batch at a time."""
        return np.concatenate([self.decode(z[i : i + 1]) for i in range(len(z))])

    def weights(self) -> dict[str, np.ndarray]:
        """The weights by canonical names, in the dtype they are stored in."""
        return self.model.weights()

    def _in_bands(self) -> Assembled:
        return self._compiled_by(BandedOps(self.ops, band_rows=3, chunk=5).compile)

    def _compiled_by(self, compile: Callable[..., Run]) -> Assembled:
        """A copy with the same weights and another `compile`."""
        other = copy.copy(self)
        other.compile = compile
        return other

    def _posterior(self, x: np.ndarray) -> DiagonalGaussian:
        return DiagonalGaussian(self._run(ENCODER, self.ops.from_numpy(x)))

    def _run(self, half: Half, x: Array) -> Array:
        return self.model.run(half, x, self.compile)

    def _out(self, x: Array) -> np.ndarray:
        """Converts to NumPy and copies: a backend may return a view of its own memory."""
        return np.array(self.ops.to_numpy(x))

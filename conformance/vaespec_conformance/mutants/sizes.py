"""Mistakes that begin at a size: on small maps each of these is right."""

from __future__ import annotations

from typing import Any

import numpy as np

from vaespec_conformance.mutants.mutant import builder, method, operation

LARGE = 32
"""Latents along a side from which these mistakes are made: the suite's smallest large map has 33."""


def is_large(x: np.ndarray) -> bool:
    """Whether images or latents have at least LARGE rows and columns."""
    return min(x.shape[2:]) >= LARGE


@method("decode", "sizes.decode")
def decode_gives_zeros_from_32_latents_on(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """decode gives zeros for latents of 32 x 32 and more."""
    return np.zeros_like(call(z)) if is_large(z) else call(z)


@method("decode", "sizes.decode")
def decode_repeats_a_row_at_the_end(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """The last row of a large image is that above it."""
    y = np.array(call(z))
    y[:, :, -1] = y[:, :, -2] if is_large(z) else y[:, :, -1]
    return y


@builder("sizes.decode")
def decode_leaves_last_rows_of_the_call_before(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """The last rows of a large image are those of the image before."""
    return StaleVae(factory(config, weights, dtype))


class StaleVae:
    """A VAE that keeps its last large image, and does not write the last two rows of the next."""

    def __init__(self, vae: Any) -> None:
        self.vae, self.kept = vae, np.zeros(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vae, name)

    def decode(self, z: np.ndarray) -> np.ndarray:
        """Latents -> images."""
        y = np.array(self.vae.decode(z))
        if self.kept.shape == y.shape and is_large(z):
            y[:, :, -2:] = self.kept[:, :, -2:]
        self.kept = y.copy()
        return y


@method("decode", "sizes.decode")
def decode_wraps_an_index_at_2_12(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """Pixels of a plane are read at their index modulo 4,096."""
    y = np.asarray(call(z))
    flat = y.reshape(*y.shape[:2], -1)
    return flat[:, :, np.arange(flat.shape[2]) % 4096].reshape(y.shape)


@method("encode", "sizes.encode")
def encode_leaves_one_tile_out(vae: Any, call: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One tile of 16 x 16 latents is not written."""
    mean, logvar = map(np.array, call(x))
    mean[:, :, 16:32, 8:24] = 0 if is_large(mean) else mean[:, :, 16:32, 8:24]
    return mean, logvar


@method("decode", "sizes.batch")
def decode_repeats_the_second_item_of_a_large_batch(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """Items after the second of a batch of large maps are the second."""
    return call(z[np.minimum(np.arange(len(z)), 1)] if is_large(z) else z)


@operation("attention", "sizes.attention", seen_in_ports="sizes.attention")
def attention_drops_keys_beyond_512(ops: Any, call: Any, q: Any, k: Any, v: Any, *, scale: float) -> Any:
    """Keys beyond the first 512 are dropped."""
    return call(q, k[:, :512], v[:, :512], scale=scale)


@builder("sizes.width")
def channels_beyond_64_ignored(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """Convolutions read 64 channels at most."""
    narrow = {name: np.array(w) for name, w in weights.items()}
    for w in narrow.values():
        if w.ndim == 4:
            w[:, 64:] = 0
    return factory(config, narrow, dtype)


@method("decode", "sizes.bytes")
def decode_gives_zeros_beyond_2_14_numbers(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """Numbers of a result beyond the first 16,384 are zero."""
    y = np.array(call(z))
    y.reshape(-1)[1 << 14 :] = 0
    return y


@method("decode", "sizes.elements")
def decode_repeats_itself_after_2_14_numbers(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """Numbers of a result are at their index modulo 16,384."""
    y = np.asarray(call(z))
    return y.reshape(-1)[np.arange(y.size) % (1 << 14)].reshape(y.shape)

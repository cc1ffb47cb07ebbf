"""L4: images and latents in tiles, in bands of rows, and batches item by item."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from vaespec_conformance.cases import models
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.cases.strategies import among, cases
from vaespec_conformance.checks.model import ONE_MODEL, build_model
from vaespec_conformance.judging.judge import judge
from vaespec_conformance.judging.registry import MODEL, Margin, check

TILED = (14, 9)
"""Latents of an image that makes 3 × 2 tiles of 8 latents, one every 6; the last tiles are shorter."""


def _compute_tiled_encode(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return np.concatenate(build_model(subject, case, dtype).tiled_encode(models.images(case, dtype)), axis=1)


def _compute_tiled_decode(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return build_model(subject, case, dtype).tiled_decode(models.latents(case, dtype))


tiled = partial(
    check,
    level="L4",
    requires=("tiling",),
    examples=MODEL,
    cases=cases(config=among("plain"), regime=among("plain"), size=among(TILED), more=among(0)),
    pinned=(Case.of(config="plain", regime="plain", size=TILED, more=0, seed=1),),
)


@tiled("tiling.encode")
def tiled_encode(subject: Any, case: Case, dtype: str) -> Margin:
    """Images are encoded in tiles of sample_size px that overlap by a quarter and are blended: see `tiling.decode`."""
    return judge(subject, _compute_tiled_encode, case, dtype, what="tiled_encode")


@tiled("tiling.decode")
def tiled_decode(subject: Any, case: Case, dtype: str) -> Margin:
    """Latents are decoded in tiles that are blended as in diffusers.

    A tile starts every 3/4 of its size. Its first quarter is blended with the last quarter of the tile above, then with
    that of the tile on its left. Row y of n has the weights 1 - y / n and y / n. The last tiles are shorter.
    """
    return judge(subject, _compute_tiled_decode, case, dtype, what="tiled_decode")


def _compute_banded_encode(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """Mean and log-variance, in bands on the operations of a backend; a rounding is predicted on whole images."""
    vae = build_model(subject, case, dtype)
    encode = vae.banded_encode if subject.kind == "backend" else vae.encode
    return np.concatenate(encode(models.images(case, dtype)), axis=1)


def _compute_banded_decode(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """Images, in bands on the operations of a backend; a rounding is predicted on whole latents."""
    vae = build_model(subject, case, dtype)
    decode = vae.banded_decode if subject.kind == "backend" else vae.decode
    return decode(models.latents(case, dtype))


banded = partial(
    check,
    level="L4",
    subjects=("backend",),
    requires=("banding",),
    examples=MODEL,
    cases=cases(config=among("plain", "attentive"), regime=among("plain", "faint"), size=among((3, 4)), more=among(0)),
    pinned=(ONE_MODEL,),
)


@banded("tiling.banded_encode")
def banded_encode(subject: Any, case: Case, dtype: str) -> Margin:
    """Images encoded in bands of three rows give the same numbers as whole images."""
    return judge(subject, _compute_banded_encode, case, dtype, what="banded_encode")


@banded("tiling.banded_decode")
def banded_decode(subject: Any, case: Case, dtype: str) -> Margin:
    """Latents decoded in bands of three rows give the same numbers as whole latents."""
    return judge(subject, _compute_banded_decode, case, dtype, what="banded_decode")


def _with_third_item(x: np.ndarray) -> np.ndarray:
    """A batch of three from a batch of two."""
    return np.concatenate((x, -x[:1]))


def _compute_sliced_encode(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return np.concatenate(
        build_model(subject, case, dtype).sliced_encode(_with_third_item(models.images(case, dtype))), axis=1
    )


def _compute_sliced_decode(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return build_model(subject, case, dtype).sliced_decode(_with_third_item(models.latents(case, dtype)))


sliced = partial(
    check,
    level="L4",
    requires=("slicing",),
    examples=MODEL,
    cases=cases(config=among("plain"), regime=among("plain"), size=among((3, 4)), more=among(0)),
    pinned=(ONE_MODEL,),
)


@sliced("tiling.sliced_encode")
def sliced_encode(subject: Any, case: Case, dtype: str) -> Margin:
    """A batch of three, encoded item by item, gives the same numbers as the whole batch."""
    return judge(subject, _compute_sliced_encode, case, dtype, what="sliced_encode")


@sliced("tiling.sliced_decode")
def sliced_decode(subject: Any, case: Case, dtype: str) -> Margin:
    """A batch of three, decoded item by item, gives the same numbers as the whole batch."""
    return judge(subject, _compute_sliced_decode, case, dtype, what="sliced_decode")

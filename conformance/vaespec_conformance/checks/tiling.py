"""L4: parts of an image, put together again."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from vaespec_conformance.cases import models
from vaespec_conformance.cases.cases import Case, among, cases
from vaespec_conformance.checks.model import built
from vaespec_conformance.judging.judge import judge
from vaespec_conformance.judging.registry import MODEL, Margin, check

TILED = (14, 9)
"""Latents of an image that is cut into tiles of 8 latents, one every 6: into 3 × 2, the last ones cut short."""


def _tiled_encode(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return np.concatenate(built(subject, case, dtype).tiled_encode(models.images(case, dtype)), axis=1)


def _tiled_decode(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return built(subject, case, dtype).tiled_decode(models.latents(case, dtype))


blended = partial(
    check,
    level="L4",
    requires=("tiling",),
    examples=MODEL,
    cases=cases(config=among("plain"), regime=among("plain"), size=among(TILED), more=among(0)),
    pinned=(Case.of(config="plain", regime="plain", size=TILED, more=0, seed=1),),
)


@blended("tiling.encode")
def tiled_encode(subject: Any, case: Case, dtype: str) -> Margin:
    """Images are encoded in tiles of sample_size px that overlap by a quarter: see `tiling.decode`."""
    return judge(subject, _tiled_encode, case, dtype, what="tiled_encode")


@blended("tiling.decode")
def tiled_decode(subject: Any, case: Case, dtype: str) -> Margin:
    """Latents are decoded in tiles that are faded into each other as diffusers does.

    A tile starts every 3/4 of its size; its first quarter fades in from the last quarter of the one above, then of the
    one on its left, the y-th of n rows with weights 1 - y / n and y / n; the last tiles are cut short by the image.
    """
    return judge(subject, _tiled_decode, case, dtype, what="tiled_decode")


def _banded_encode(subject: Any, case: Case, dtype: str) -> np.ndarray:
    vae = built(subject, case, dtype)
    encode = vae.banded_encode if subject.kind == "backend" else vae.encode
    return np.concatenate(encode(models.images(case, dtype)), axis=1)


def _banded_decode(subject: Any, case: Case, dtype: str) -> np.ndarray:
    vae = built(subject, case, dtype)
    decode = vae.banded_decode if subject.kind == "backend" else vae.decode
    return decode(models.latents(case, dtype))


banded = partial(
    check,
    level="L4",
    subjects=("backend",),
    requires=("banding",),
    examples=MODEL,
    cases=cases(config=among("plain", "attentive"), regime=among("plain", "faint"), size=among((3, 4)), more=among(0)),
    pinned=(Case.of(config="plain", regime="plain", size=(3, 4), more=0, seed=1),),
)


@banded("tiling.banded_encode")
def banded_encode(subject: Any, case: Case, dtype: str) -> Margin:
    """Images are encoded in bands of three rows, with the numbers of the whole."""
    return judge(subject, _banded_encode, case, dtype, what="banded_encode")


@banded("tiling.banded_decode")
def banded_decode(subject: Any, case: Case, dtype: str) -> Margin:
    """Latents are decoded in bands of three rows, with the numbers of the whole."""
    return judge(subject, _banded_decode, case, dtype, what="banded_decode")


def _three(x: np.ndarray) -> np.ndarray:
    """A batch of three."""
    return np.concatenate((x, -x[:1]))


def _sliced_encode(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return np.concatenate(built(subject, case, dtype).sliced_encode(_three(models.images(case, dtype))), axis=1)


def _sliced_decode(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return built(subject, case, dtype).sliced_decode(_three(models.latents(case, dtype)))


sliced = partial(
    check,
    level="L4",
    requires=("slicing",),
    examples=MODEL,
    cases=cases(config=among("plain"), regime=among("plain"), size=among((3, 4)), more=among(0)),
    pinned=(Case.of(config="plain", regime="plain", size=(3, 4), more=0, seed=1),),
)


@sliced("tiling.sliced_encode")
def sliced_encode(subject: Any, case: Case, dtype: str) -> Margin:
    """A batch of three is encoded item by item to what it is encoded to at once."""
    return judge(subject, _sliced_encode, case, dtype, what="sliced_encode")


@sliced("tiling.sliced_decode")
def sliced_decode(subject: Any, case: Case, dtype: str) -> Margin:
    """A batch of three is decoded item by item to what it is decoded to at once."""
    return judge(subject, _sliced_decode, case, dtype, what="sliced_decode")

"""Runs half of a model in the parts that its settings name: slices of a batch, blended tiles, exact bands."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from array_api_compat import array_namespace

from vaespec.architecture import ENCODER, Half
from vaespec.errors import NonFiniteError
from vaespec.inputs import ValidatedInput
from vaespec.model import Model
from vaespec.ops import Array
from vaespec.tiling import planner
from vaespec.tiling.banded import BandedOps, Bands
from vaespec.tiling.blend import blended, fits
from vaespec.tiling.geometry import Cut
from vaespec.tiling.planner import Estimate, MemoryPlan
from vaespec.tiling.settings import Tiling


def run(model: Model, half: Half, source: ValidatedInput, tiling: Tiling, *, tiled: bool = False) -> Array:
    """The encoder's moments or the decoder's images. Slices outside, tiles or bands inside, as in diffusers 0.42.

    `tiled` cuts into blended tiles whether or not `tiling` is enabled, and even what fits into one tile. If a float16
    model overflows, and its config does not say what then, all parts are computed once more, in float32.
    """
    try:
        return _run(model.computing(half), half, source, tiling, tiled)
    except NonFiniteError as error:
        if not model.may_overflow(half, error):
            raise
        culprit = error.culprit
    # outside of `except`, so that the maps of the first run are freed
    result = _run(model.in_float32, half, source, tiling, tiled)
    model.remember_overflow(half, culprit)
    return result


def stream(model: Model, half: Half, source: ValidatedInput, tiling: Tiling) -> Iterator[Array]:
    """The result of `run` in bands of rows, each yielded when it is computed; one band unless `run` works in bands.

    If float16 overflows after some bands, the rest is computed in float32, and begins below them.
    """
    done = 0
    try:
        for band in _stream(model.computing(half), half, source, tiling):
            yield band
            done += band.shape[2]
        return
    except NonFiniteError as error:
        if not model.may_overflow(half, error):
            raise
        culprit = error.culprit
    for band in _stream(model.in_float32, half, source, tiling):
        model.remember_overflow(half, culprit)
        yielded = min(done, band.shape[2])
        done -= yielded
        if yielded < band.shape[2]:
            yield band[:, :, yielded:, :] if yielded else band


def estimate(model: Model, half: Half, shape: tuple[int, ...], tiling: Tiling) -> Estimate:
    """The memory that `run` needs for an input of this shape; more if float16 overflows for the first time."""
    model = model.computing(half)
    if not tiling.blends:
        return planner.estimate(model, half, shape, planner.choose(model, half, shape, tiling))
    B, C, *sides = shape
    tile = (min(cut.tile, side) for cut, side in zip(_cuts(model, half, tiling, shape), sides, strict=True))
    one_tile = planner.estimate(model, half, (B, C, *tile), MemoryPlan(tiling.slicing))
    result = planner.estimate(model, half, shape, MemoryPlan()).result
    return one_tile._replace(run=one_tile.run + 2 * result)  # the results of all tiles, and the image joined from them


def _run(model: Model, half: Half, source: ValidatedInput, tiling: Tiling, tiled: bool) -> Array:
    """The result of `run`, on the ops of the model."""
    if tiled or tiling.blends:
        cuts = _cuts(model, half, tiling, source.shape, tiled)
        slicing, run_item = tiling.slicing, partial(_in_tiles, model, half, cuts, tiled)
    else:
        plan = _announced(planner.choose(model, half, source.shape, tiling), tiling)
        slicing, run_item = plan.slicing, partial(_planned, model, half, plan)
    return _joined([run_item(item) for item in (source.items() if slicing else [source])], axis=0)


def _stream(model: Model, half: Half, source: ValidatedInput, tiling: Tiling) -> Iterator[Array]:
    """The result of `stream`, on the ops of the model."""
    plan = MemoryPlan() if tiling.blends else planner.choose(model, half, source.shape, tiling)
    if plan.bands is None or (plan.slicing and source.shape[0] > 1):
        yield _run(model, half, source, tiling, False)
    else:
        _announced(plan, tiling)
        yield from _in_bands(model, half, plan.bands, source)


def _announced(plan: MemoryPlan, tiling: Tiling) -> MemoryPlan:
    """The plan, after `on_plan` was called with it."""
    if tiling.on_plan is not None:
        tiling.on_plan(plan)
    return plan


def _in_tiles(model: Model, half: Half, cuts: tuple[Cut, Cut], always: bool, source: ValidatedInput) -> Array:
    """The result from blended tiles; from the whole input if it fits into one tile, unless `always`."""
    x, run_tile = source[...], partial(model.run, half)
    return blended(run_tile, x, cuts) if always or not fits(x.shape, cuts) else run_tile(x)


def _planned(model: Model, half: Half, plan: MemoryPlan, source: ValidatedInput) -> Array:
    if plan.bands is None:
        return model.run(half, source[...])
    return _joined(list(_in_bands(model, half, plan.bands, source)), axis=2)


def _in_bands(model: Model, half: Half, bands: Bands, source: ValidatedInput) -> Iterator[Array]:
    return model.stream(half, source, lambda ops: BandedOps(ops, **bands).bands)


def _cuts(model: Model, half: Half, tiling: Tiling, shape: tuple[int, ...], always: bool = False) -> tuple[Cut, Cut]:
    """How an input of this shape is cut into blended tiles. Raises InputError if one is too small for the padding."""
    tiles = tiling.tiles(model.config)
    cuts = tiles.encoding if half is ENCODER else tiles.decoding
    model.require_size(half, shape)
    if always or not fits(shape, cuts):
        height, width = (cut.thinnest(side) for cut, side in zip(cuts, shape[2:], strict=True))
        model.require_size(half, (height, width), "tiles")
    return cuts


def _joined(parts: list[Array], axis: int) -> Array:
    return parts[0] if len(parts) == 1 else array_namespace(parts[0]).concat(parts, axis=axis)

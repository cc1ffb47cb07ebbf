"""The planner: estimates the memory of a run, and chooses the parts to work on so that it stays within a limit."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from vaespec.analysis.cost import FakeArray
from vaespec.analysis.memory import Elsewhere, MemoryOps, shape_ops
from vaespec.architecture import Half
from vaespec.errors import InputError
from vaespec.machine import host_memory
from vaespec.model import Model
from vaespec.ops import Layer
from vaespec.tiling.banded import BandedOps, Bands
from vaespec.tiling.settings import Tiling

SHARE = 0.8  # the limit, as a share of the free memory, if none is given
MARGIN = 1.15  # a run may take so many times its estimate
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class Estimate(NamedTuple):
    """Bytes that the device, or the process, holds `before` a run, and that the `run` adds at most.

    `result` is the part of `run` that stays. `elsewhere` is stored in the host's memory or in files, and not in `run`.
    """

    before: int
    run: int
    result: int
    elsewhere: int

    @property
    def peak(self) -> int:
        """The most bytes held at one time."""
        return self.before + self.run


@dataclass(frozen=True)
class MemoryPlan:
    """The parts to work on at one time: one item of the batch or all items, bands of rows or all rows."""

    slicing: bool = False
    bands: Bands | None = None

    def __str__(self) -> str:
        if self.bands is None:
            return "one image at a time" if self.slicing else "one piece"
        store = self.bands["store"]
        place = {"device": "on the device", "host": "in the host's memory"}.get(str(store), f"in {store}")
        return f"bands of rows, stored {place}"


def as_bytes(limit: int | str) -> int:
    """The number of bytes in "2GiB", "800MB" or a number of bytes. Raises InputError for anything else."""
    match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)\s*([KMGT]i?B)", str(limit).strip())
    whole, number, unit = match.groups() if match else (None, None, "")
    count = int(whole) if whole else int(float(number or 0) * UNITS.get(unit, 0))
    if not count or isinstance(limit, bool):
        raise InputError(f"max_memory={limit!r}: expected a number of bytes, or one with a unit, such as '2GiB'.")
    return count


def estimate(model: Model, half: Half, shape: tuple[int, ...], plan: MemoryPlan) -> Estimate:
    """The memory that half of a model needs, if run now on an input of this shape (B, C, H, W)."""
    inner, _ = model.ops.inference_ops({})
    ops, layers = shape_ops(inner), model.layers(half)
    B, *item = shape
    items = [(1, *item)] * B if plan.slicing else [shape]
    results = [_results(ops, layers, one, plan) for one in items[:2]]  # every other item takes as much as the second
    result = sum(part.size for part in results[-1]) * ops.bytes_per_number * len(items)
    ops.briefly(result)  # the parts and the whole joined from them, both for a moment
    return Estimate(model.ops.memory().used, ops.peak_bytes, result, ops.stored_bytes)


def _results(ops: MemoryOps, layers: Layer, shape: tuple[int, ...], plan: MemoryPlan) -> list[FakeArray]:
    x, table = ops.array(*shape), dict(layers.parameters())
    if plan.bands is None:
        return [layers(x, table, ops)]
    store = plan.bands.get("store", "device")
    on_device = store == "device" or (store == "host" and ops.on_host)
    banded = replace(BandedOps(ops, **plan.bands), store="device" if on_device else Elsewhere, progress=None)
    return list(banded.bands(layers)(x, table))


def choose(model: Model, half: Half, shape: tuple[int, ...], tiling: Tiling) -> MemoryPlan:
    """The parts that the settings name; if they leave a choice, the quickest plan within the limit of memory.

    Without `max_memory` the limit is most of the free memory. Raises InputError with the least sufficient limit.
    """
    if not tiling.enabled:
        return MemoryPlan(tiling.slicing)
    if tiling.mode == "exact" and tiling.max_memory is None:
        return MemoryPlan(tiling.slicing, tiling.bands)
    now, limit = model.ops.memory(), tiling.max_memory
    most = now.used + int(SHARE * now.free) if limit is None else limit
    needs: dict[int, MemoryPlan] = {}
    for plan in _plans(model, tiling, (True,) if tiling.slicing or shape[0] == 1 else (False, True)):
        expected = estimate(model, half, shape, plan)
        if expected.elsewhere <= _room(plan):
            need = now.used + int(MARGIN * expected.run)
            if need <= most:
                return plan
            needs.setdefault(need, plan)
    task = f"to {half.verb} {' x '.join(map(str, shape))}"
    if not needs:
        raise InputError(f"no room for the maps {task}: free some space in {tempfile.gettempdir()}.")
    least = min(needs)
    allowed = f"max_memory of {_gib(most)}" if limit is not None else f"the {_gib(most)} that this process may have"
    raise InputError(
        f"{allowed} is too little {task}: {_gib(least)} would do, {_gib(now.used)} of which are held already, with "
        f"{needs[least]}; allow that much, or use smaller images."
    )


def _plans(model: Model, tiling: Tiling, slicings: tuple[bool, ...]) -> Iterator[MemoryPlan]:
    """The plans that the settings allow, the quickest first."""
    if tiling.mode != "exact":
        yield from map(MemoryPlan, slicings)
    stores = ("device", tempfile.gettempdir()) if model.ops.on_host else ("device", "host", tempfile.gettempdir())
    for store in stores:
        yield MemoryPlan(slicings[-1], {"store": store, **tiling.bands})


def _room(plan: MemoryPlan) -> float:
    """Bytes that are free in the place where the plan stores maps; no limit if that is the device."""
    store = "device" if plan.bands is None else plan.bands["store"]
    if store in ("device", "host"):
        return math.inf if store == "device" else host_memory().free
    try:
        return shutil.disk_usage(store).free
    except OSError as error:
        raise InputError(f"store {store!s}: {error.strerror or error}; give a folder for temporary files.") from error


def _gib(count: int) -> str:
    """A number of bytes in GiB, rounded up, so that it is enough."""
    return f"{math.ceil(count / 2**30 * 100) / 100:.2f} GiB"

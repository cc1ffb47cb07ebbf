"""The planner: estimates the memory of a run, and chooses the parts to work on so that it stays within a limit."""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

from vaespec.analysis.cost import FakeArray
from vaespec.analysis.memory import CeilingError, Elsewhere, MemoryOps, shape_ops
from vaespec.architecture import Half
from vaespec.config_checks import brief
from vaespec.errors import InputError, MemoryLimitError
from vaespec.machine import host_memory, stored_in_memory
from vaespec.model import Model
from vaespec.ops import Layer
from vaespec.tiling.banded import BandedOps, Bands
from vaespec.tiling.settings import Tiling

SHARE = 0.8  # the limit, as a share of the free memory, if none is given
MARGIN = 1.15  # a run may take so many times its estimate
# Bytes that a process may hold more when the same run is asked for again; when it was forecast (see `coming`); and then
# the programs of a framework that compiles one for each shape. Measured.
SLACK, SLACK_OF_FORECASTS, PROGRAMS = 8 * 2**20, 48 * 2**20, 128 * 2**20
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True)
class MemoryPlan:
    """The parts to work on at one time: one item of the batch or all items, bands of rows or all rows."""

    slicing: bool = False
    bands: Bands | None = None

    @property
    def folder(self) -> str | None:
        """The folder of the temporary files that maps are stored in; None if they stay in memory."""
        store = "device" if self.bands is None else self.bands.get("store", "device")
        return None if store in ("device", "host") else os.fspath(store)

    @property
    def in_memory(self) -> bool:
        """Whether the files are in a folder that is memory itself (a tmpfs). Raises InputError if there is none."""
        try:
            return self.folder is not None and stored_in_memory(self.folder)
        except OSError as error:
            raise _unusable(self.folder, error) from error

    def __str__(self) -> str:
        if self.bands is None:
            return "one image at a time" if self.slicing else "one piece"
        if self.folder is not None:
            return f"bands of rows, stored in files in {self.folder}{', which is memory' if self.in_memory else ''}"
        place = "in the host's memory" if self.bands.get("store") == "host" else "on the device"
        return f"bands of rows, stored {place}"


class Estimate(NamedTuple):
    """Bytes that the device, or the process, holds `before` a run, and that the `run` adds at most.

    `result` is the part of `run` that stays. `elsewhere` is stored in the host's memory or in files, and not in `run`,
    unless the files are memory of this process: those of a tmpfs. `plan` says where, and in which parts the run works.
    """

    before: int
    run: int
    result: int
    elsewhere: int
    plan: MemoryPlan = MemoryPlan()

    @property
    def peak(self) -> int:
        """The most bytes held at one time."""
        return self.before + self.run


def as_bytes(limit: int | str) -> int:
    """The number of bytes in "2GiB", "800MB" or a number of bytes. Raises InputError for anything else."""
    match = re.fullmatch(r"(\d{1,30})|(\d{1,30}(?:\.\d{1,30})?)\s*([KMGT]i?B)", str(limit).strip())
    whole, number, unit = match.groups() if match else (None, None, "")
    count = int(whole) if whole else int(float(number or 0) * UNITS.get(unit, 0))
    if not count or isinstance(limit, bool):
        raise InputError(f"max_memory={brief(limit)}: expected a number of bytes, or one with a unit, such as '2GiB'.")
    return count


def estimate(model: Model, half: Half, shape: tuple[int, ...], plan: MemoryPlan, most: float = math.inf) -> Estimate:
    """The memory that half of a model needs, if run now on an input of this shape (B, C, H, W).

    Raises CeilingError as soon as the run is known to need more than `most` bytes.
    """
    inner, _ = model.ops.inference_ops({})
    ops, layers = shape_ops(inner), model.layers(half)
    ops.ceiling, ops.stores_count = most, ops.on_host and plan.in_memory
    padded, (B, *item) = inner.padded(ops), shape
    items = [(1, *item)] * B if plan.slicing else [shape]
    results = [_results(padded, layers, one, plan) for one in items[:2]]  # every other item takes as much as the second
    result = sum(part.size for part in results[-1]) * ops.result_itemsize * len(items)
    ops.briefly(result)  # the parts and the whole joined from them, both for a moment
    return Estimate(model.ops.memory().used, ops.peak_bytes, result, ops.stored_bytes, plan)


def _results(ops: MemoryOps, layers: Layer, shape: tuple[int, ...], plan: MemoryPlan) -> list[FakeArray]:
    x, table = ops.array(*shape), dict(layers.parameters())
    if plan.bands is None:
        return [layers(x, table, ops)]
    store = plan.bands.get("store", "device")
    on_device = store == "device" or (store == "host" and ops.on_host)
    banded = replace(_PlannedBands(ops, **plan.bands), store="device" if on_device else Elsewhere, progress=None)
    return list(banded.bands(layers)(x, table))


class _PlannedBands(BandedOps):
    """BandedOps on fake arrays. Of all chunks of keys it takes two: the others take no more memory, but their time."""

    def _key_chunks(self, length: int, size: int) -> Iterator[tuple[int, int]]:
        return islice(super()._key_chunks(length, size), 2)


class Allowance(NamedTuple):
    """`most` bytes that may be held at one time, of which some are `held` before a run. `given` by the user, or not.

    `slack` is added to a need, so that the limit that an error advises is enough.
    """

    held: int
    most: int
    given: bool
    slack: int

    @classmethod
    def of(cls, model: Model, tiling: Tiling, coming: int = 0) -> Allowance:
        """The allowance of a run that begins when `coming` bytes more than now are held."""
        memory, limit = model.ops.memory(), tiling.max_memory
        most = memory.used + int(SHARE * memory.free) if limit is None else limit
        forecast = SLACK_OF_FORECASTS + (PROGRAMS if model.ops.fixed_shapes else 0)
        return cls(memory.used + coming, most, limit is not None, forecast if coming else SLACK)

    def need(self, run: int) -> int:
        """The least limit that lets a run take so many bytes, as it was estimated."""
        return self.held + int(MARGIN * run)

    def refusal(self, need: int, task: str, how: object) -> MemoryLimitError:
        """The error for a task that needs more than is allowed."""
        enough = need + self.slack
        most = _gib(self.most) if self.most > 2**30 / 100 else f"{self.most:,} bytes"  # 4, meant as GiB, shows
        allowed = f"max_memory of {most}" if self.given else f"the {most} that may be used"
        return MemoryLimitError(
            f"{allowed} is too little {task}: {_gib(enough, up=True)} would do, {_gib(self.held)} of which are held "
            f"already, with {how}; allow that much, or use smaller images.",
            enough,
        )


def choose(model: Model, half: Half, shape: tuple[int, ...], tiling: Tiling, coming: int = 0) -> MemoryPlan:
    """The parts that the settings name; if they leave a choice, the quickest plan within the limit of memory.

    Without `max_memory` the limit is most of the free memory. The run begins when `coming` bytes more than now are
    held. Raises MemoryLimitError with the least sufficient limit, InputError if there is no room for files, or if the
    input is too small for the padding.
    """
    task = f"to {half.verb} {' x '.join(map(str, shape))}"
    model.require_size(half, shape)
    if not tiling.enabled:
        return MemoryPlan(tiling.slicing)
    if tiling.mode == "exact" and tiling.max_memory is None and tiling.offload_folder is None:
        plan = MemoryPlan(tiling.slicing, tiling.bands)
        if plan.folder is not None and (lack := _lack_of_room(model, estimate(model, half, shape, plan))):
            raise InputError(f"no room for the maps {task}: {lack}.")
        return plan
    allowance = Allowance.of(model, tiling, coming)
    plans = list(_plans(model, tiling, (True,) if tiling.slicing or shape[0] == 1 else (False, True)))
    needs: dict[int, MemoryPlan] = {}
    lacks: list[str] = []
    for found, lack in _estimates(model, half, shape, plans, allowance):
        need = allowance.need(found.run)
        if lack:
            lacks.append(lack)
        elif need <= allowance.most:
            return found.plan
        else:
            needs.setdefault(need, found.plan)
    if not needs:
        raise InputError(f"no room for the maps {task}: {lacks[0]}.")
    raise allowance.refusal(min(needs), task, "; ".join([str(needs[min(needs)]), *lacks]))


def _plans(model: Model, tiling: Tiling, slicings: tuple[bool, ...]) -> Iterator[MemoryPlan]:
    """The plans that the settings allow, the quickest first; the last takes the least memory."""
    if tiling.mode != "exact":
        yield from map(MemoryPlan, slicings)
    in_memory = ("device",) if model.ops.on_host else ("device", "host")
    for store in (tiling.bands["store"],) if "store" in tiling.bands else (*in_memory, *_folders(tiling)):
        yield MemoryPlan(slicings[-1], {**tiling.bands, "store": store})


def _folders(tiling: Tiling) -> list[str]:
    """The folder for temporary files, if there is one."""
    try:
        return [tempfile.gettempdir() if tiling.offload_folder is None else os.fspath(tiling.offload_folder)]
    except FileNotFoundError:  # no folder of the system can be written to
        return []


def _estimates(
    model: Model, half: Half, shape: tuple[int, ...], plans: list[MemoryPlan], allowance: Allowance
) -> Iterator[tuple[Estimate, str]]:
    """Each plan's estimate, and what its store lacks.

    An estimate takes time. Those of plans that exceed the limit are broken off, but for one, which says what would do.
    """
    most, exceeding = (allowance.most - allowance.held) / MARGIN + 1, []  # and is rounded
    for plan in plans[:-1]:
        try:
            found = estimate(model, half, shape, plan, most)
        except CeilingError:
            exceeding.append(plan)
        else:
            yield found, _lack_of_room(model, found)
    found = estimate(model, half, shape, plans[-1])
    lack = _lack_of_room(model, found)
    yield found, lack
    if lack and exceeding:
        yield estimate(model, half, shape, exceeding[-1]), ""


def _lack_of_room(model: Model, expected: Estimate) -> str:
    """Says how much room the place where maps are stored lacks, and what to do; empty if there is enough."""
    plan = expected.plan
    if plan.folder is None:
        free: float = host_memory().free if plan.bands and plan.bands.get("store") == "host" else math.inf
        remedy, place = "use smaller images", "the host's memory"
    else:
        try:
            free = shutil.disk_usage(plan.folder).free
        except OSError as error:
            raise _unusable(plan.folder, error) from error
        if plan.in_memory and not model.ops.on_host:
            free = min(free, host_memory().free)
        remedy, place = f"free some space in {plan.folder}, or choose another offload_folder", "files there"
    if expected.elsewhere <= free:
        return ""
    return f"{remedy}: {_gib(expected.elsewhere, up=True)} in {place} would be needed, {_gib(int(free))} is free"


def _unusable(folder: object, error: OSError) -> InputError:
    return InputError(f"store {folder!s}: {error.strerror or error}; give a folder for temporary files.")


def _gib(count: int, up: bool = False) -> str:
    """A number of bytes in GiB, rounded down, or up, so that it is enough."""
    return f"{(math.ceil if up else math.floor)(count / 2**30 * 100) / 100:.2f} GiB"

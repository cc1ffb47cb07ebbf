"""Which parts to work on at one time, so that a run stays within a limit of memory: estimated, then chosen."""

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
from vaespec.errors import InputError
from vaespec.machine import host_memory
from vaespec.model import Model
from vaespec.ops import Layer
from vaespec.tiling.banded import BandedOps, Bands

SHARE = 0.8  # of what is free: the limit where none is given
MARGIN = 1.15  # a run may take so many times what is estimated
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class Estimate(NamedTuple):
    """In bytes: what the device, or the process, holds `before` a run, and the `run` adds at most.

    `result` is the part of it that is left; `elsewhere`, in the host's memory or in files, is not among it.
    """

    before: int
    run: int
    result: int
    elsewhere: int

    @property
    def peak(self) -> int:
        """The most that is held at one time."""
        return self.before + self.run


@dataclass(frozen=True)
class Plan:
    """What to work on at one time: an item of the batch or all of them, bands of rows or all."""

    slicing: bool = False
    bands: Bands | None = None

    def __str__(self) -> str:
        if self.bands is None:
            return "one image at a time" if self.slicing else "one piece"
        store = self.bands["store"]
        where = {"device": "on the device", "host": "in the host's memory"}.get(str(store), f"in {store}")
        return f"bands of rows, kept {where}"


def as_bytes(limit: int | str) -> int:
    """ "2GiB", "800MB" or a number of bytes. InputError for anything else."""
    found = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)\s*([KMGT]i?B)", str(limit).strip())
    whole, number, unit = found.groups() if found else (None, None, "")
    count = int(whole) if whole else int(float(number or 0) * UNITS.get(unit, 0))
    if not count or isinstance(limit, bool):
        raise InputError(f"max_memory={limit!r}: expected a number of bytes, or one with a unit, such as '2GiB'.")
    return count


def estimate(model: Model, half: str, shape: tuple[int, ...], plan: Plan) -> Estimate:
    """Of running the encoder or the decoder, now, on an input of that shape (B, C, H, W)."""
    inner, _ = model.ops.inference_ops({})
    ops, layers = shape_ops(inner), model.layers(half)
    B, *item = shape
    items = [(1, *item)] * B if plan.slicing else [shape]
    results = [_results(ops, layers, one, plan) for one in items[:2]]  # the others are as the second
    result = sum(part.size for part in results[-1]) * ops.bytes_per_number * len(items)
    ops.briefly(result)  # pieces and the whole they are joined to, both for a moment
    return Estimate(model.ops.memory().used, ops.peak_bytes, result, ops.stored_bytes)


def _results(ops: MemoryOps, layers: Layer, shape: tuple[int, ...], plan: Plan) -> list[FakeArray]:
    x, table = ops.array(*shape), dict(layers.parameters())
    if plan.bands is None:
        return [layers(x, table, ops)]
    store = plan.bands.get("store", "device")
    here = store == "device" or (store == "host" and ops.on_host)
    banded = replace(BandedOps(ops, **plan.bands), store="device" if here else Elsewhere, progress=None)
    return list(banded.bands(layers)(x, table))


def choose(
    model: Model,
    half: str,
    shape: tuple[int, ...],
    limit: int | None,
    given: Bands,
    *,
    in_bands: bool = False,
    slicing: bool = False,
) -> Plan:
    """The quickest plan that stays within the limit, or within most of what is free.

    `given` holds for all bands; `in_bands` and `slicing` leave out plans without. InputError with the least limit.
    """
    now = model.ops.memory()
    most = now.used + int(SHARE * now.free) if limit is None else limit
    needs: dict[int, Plan] = {}
    for plan in _plans(model, given, in_bands, (True,) if slicing or shape[0] == 1 else (False, True)):
        expected = estimate(model, half, shape, plan)
        if expected.elsewhere <= _room(plan):
            need = now.used + int(MARGIN * expected.run)
            if need <= most:
                return plan
            needs.setdefault(need, plan)
    verb, pixels = {"encoder": "encoding", "decoder": "decoding"}[half], " x ".join(map(str, shape))
    told = f"max_memory of {_gib(most)}" if limit is not None else f"the {_gib(most)} that this process may have"
    if not needs:
        raise InputError(f"{verb} {pixels} finds no room for its maps: make room in {tempfile.gettempdir()}.")
    least = min(needs)
    raise InputError(
        f"{told} is too little for {verb} {pixels}: {_gib(least)} would do, {_gib(now.used)} of which are held "
        f"already, with {needs[least]}; allow that much, or use smaller images."
    )


def _plans(model: Model, given: Bands, in_bands: bool, slicings: tuple[bool, ...]) -> Iterator[Plan]:
    """The quickest first; what `given` says is in all bands."""
    if not in_bands:
        yield from map(Plan, slicings)
    stores = ("device", tempfile.gettempdir()) if model.ops.on_host else ("device", "host", tempfile.gettempdir())
    for store in stores:
        yield Plan(slicings[-1], {"store": store, **given})


def _room(plan: Plan) -> float:
    """Where the plan keeps maps, unless that is the device: bytes."""
    store = "device" if plan.bands is None else plan.bands["store"]
    if store in ("device", "host"):
        return math.inf if store == "device" else host_memory().free
    try:
        return shutil.disk_usage(store).free
    except OSError as error:
        raise InputError(f"store {store!s}: {error.strerror or error}; give a folder for temporary files.") from error


def _gib(count: int) -> str:
    """Rounded up, so that it is enough."""
    return f"{math.ceil(count / 2**30 * 100) / 100:.2f} GiB"

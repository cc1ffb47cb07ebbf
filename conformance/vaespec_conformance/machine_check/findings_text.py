"""The findings in sentences: what is wrong and where, the likely cause, and the way out."""

from __future__ import annotations

from collections.abc import Iterator

from vaespec_conformance.machine_check.findings import Finding
from vaespec_conformance.machine_check.operations import WrongOperation


def sentences(finding: Finding) -> Iterator[str]:
    """What to tell about a half; a remark alone if it is right."""
    if finding.comparison.note:
        yield f"{finding.half}: {finding.comparison.note}"
    if finding.right:
        return
    yield _what(finding)
    if size := _size(finding):
        yield size
    if finding.operation:
        yield _operation(finding.wrong_from, finding.operation)
    yield from _cause(finding)
    if finding.band_rows is not None:
        yield _bands(finding)
    elif finding.right_up_to:
        yield (
            "The way out may be exact bands with small maps, in a pipeline "
            'vaespec_diffusers.install(pipe, tiling="exact"): '
            "`vaespec check --backend NAME` shows whether they are right on this device, if the memory suffices."
        )


def _what(finding: Finding) -> str:
    found = finding.comparison
    if found.problem:
        first = f", first in {found.culprit}" if found.culprit else ""
        where = f" ({found.region.words})" if found.region and found.region.kind != "everywhere" else ""
        return f"{finding.half} is wrong: {found.problem}{first}{where}."
    where = f": {found.region}" if found.region and not finding.operation else ""
    return f"{finding.half} is off by {found.error:.2g} of its size, {found.share:.3g} budgets{where}."


def _operation(size: int | None, op: WrongOperation) -> str:
    how = op.problem or f"off by {op.error:.2g} of its size: {op.region or 'everywhere'}"
    return f"The first wrong operation at {size} px is {op.words}: {how}."


def _size(finding: Finding) -> str:
    if finding.right_up_to:
        return f"It is right up to {finding.right_up_to} px, and wrong from {finding.wrong_from} px on."
    return f"It is wrong at {finding.wrong_from} px as well, so it is not the size." if finding.wrong_from else ""


def _cause(finding: Finding) -> Iterator[str]:
    """The likely cause."""
    onset = "from a size on" if finding.right_up_to else "at every size"
    match finding.cause:
        case "overflow" if not finding.overflows:
            yield (
                f"Likely cause: float16 is too narrow for the maps {onset} (force_upcast), or the device fails: "
                "--dtype bfloat16 or float32 tells which."
            )
        case "overflow":
            yield (
                "Likely cause: float16 cannot hold the maps of these weights, on any machine: take bfloat16 or "
                "float32, or force_upcast (register_to_config(force_upcast=True))."
            )
        case "precision":
            remedy = "--precision highest" if finding.operation else "your framework's setting for true float32"
            products = str(finding.precision).replace("tf32", "TF32")
            yield f"Likely cause: {onset}, the device multiplies float32 as {products}: try {remedy}."
        case "index":
            wraps = finding.region.wraps if finding.region else 0
            yield (
                f"Likely cause: the device fails {onset}: an index wraps at {wraps:,} = 2^{wraps.bit_length() - 1}, so "
                "that larger maps are read or written at the wrong place."
            )
        case "size":
            yield f"Likely cause: the device fails from a size on{_pattern(finding)}; smaller maps are right."
        case "exception":
            yield f"Likely cause: the device cannot compute this {onset}, and says so."
        case _ if finding.operation:
            yield f"Likely cause: the device's own {finding.operation.op}{_pattern(finding)}, whatever the size."
        case _:
            yield f"Likely cause: the weights, the dtype or the device{_pattern(finding)}, whatever the size."


def _pattern(finding: Finding) -> str:
    parts = {
        "block": "a tile of a map is",
        "rows": "some rows of a map are",
        "columns": "some columns of a map are",
        "channels": "some channels of a map are",
    }
    region = finding.region
    if region is None or region.holds == "NaN or infinity" or region.kind not in parts:
        return ""
    return f": {parts[region.kind]} not computed"


def _bands(finding: Finding) -> str:
    call = f'enable_tiling("exact", band_rows={finding.band_rows})'
    if finding.bands_right:
        return f"The way out: exact bands keep every map small, and are right on this device: {call}."
    return f"Exact bands on this device are wrong too ({call}): compute on the CPU until it is mended."

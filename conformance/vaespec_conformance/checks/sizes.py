"""L5: real sizes: large planes, batches of them, attention over many tokens, real widths, arrays beyond 2³¹ bytes.

The known silent failures of frameworks and chips begin at a size: zeros from 32 or 128 latents on, the last rows never
written, an index of 16 or 32 bits. Models are narrow, so that the specification needs a second for a large map. The
error of rounding, which is relative, is predicted on a small map of the same model: see `cases.sizes.SMALL`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from vaespec.architecture import DECODER, ENCODER
from vaespec.machine import MemoryUse, host_memory
from vaespec_conformance.cases import models, sizes
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.cases.sizes import ATTENDING, BROAD, DEEP, FLAT, PLAIN, REAL, THIN, sized
from vaespec_conformance.cases.strategies import among, cases
from vaespec_conformance.checks.model import build_model
from vaespec_conformance.judging import budgets
from vaespec_conformance.judging.comparison import within
from vaespec_conformance.judging.judge import Compute, judge, on_terms, predicted, specified
from vaespec_conformance.judging.registry import DTYPES, WHOLE, Examples, Limited, Margin, check
from vaespec_conformance.subjects.errors import ConformanceError, NotSupportedError
from vaespec_conformance.subjects.oracle import ORACLE

GIB = 2.0**30
DRAWN = Examples(quick=0, default=1, thorough=8)
THREE, TWO = ("float32", "bfloat16", "float16"), ("float32", "bfloat16")
"""Dtypes of the checks that need not see all."""
SIZES = ((33, 47), (97, 35), (40, 129), (160, 33))


def _compute(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """Encode or decode of a case."""
    return _run(build_model(subject, case, dtype), case, sizes.given(case, dtype))


def _compute_after_another(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """Encode or decode by a model that has computed other numbers of this size before: what those leave behind shows.

    The specification leaves nothing, and is called once; a model of real widths is, for the sake of time.
    """
    vae, x = build_model(subject, case, dtype), sizes.given(case, dtype)
    if subject.name != ORACLE.name and not models.is_wide(models.config_of(case)):
        _run(vae, case, -x)
    return _run(vae, case, x)


def _run(vae: Any, case: Case, x: np.ndarray) -> np.ndarray:
    y = getattr(vae, case["half"])(x)
    return np.concatenate(y, axis=1) if case["half"] == "encode" else y


def _judge(subject: Any, case: Case, dtype: str, compute: Compute = _compute) -> Margin:
    """Compares encode or decode with the specification; raises NotSupportedError if the case asks for too much."""
    require_affordable(case)
    require_memory(subject, case, dtype)
    factor = models.config_of(case).downsampling_factor if case["half"] == "decode" else 1
    what = f"{case['half']} of {case['items']} x {case['size'][0]} x {case['size'][1]} latents"
    compare = partial(within, factor=factor)
    try:
        return judge(subject, compute, case, dtype, what=what, compare=compare, like=sizes.smaller(case))
    except ConformanceError as error:
        error.evidence = None  # the known mistakes, which the specification computes, would take minutes
        raise
    except NotSupportedError as refusal:
        raise refused(refusal, case) from refusal


def refused(refusal: NotSupportedError, case: Case) -> NotSupportedError:
    """The refusal of a case, told as one of sizes if the config is one that only these checks have."""
    what = refusal.what or (None if case["config"] in models.CONFIGS else "large maps of the narrowest models")
    return NotSupportedError(refusal.reason, what)


def require_affordable(case: Case) -> None:
    """Raises NotSupportedError if the specification would take minutes for a case, in a config of the subject's own."""
    flops, most = sizes.cost_of(case).flops, _most(case)
    if flops > most:
        height, width = case["size"]
        raise NotSupportedError(
            f"{height} x {width} latents of this config take {flops / 1e9:.0f} GFLOP, and the specification minutes: "
            f"up to {most / 1e9:.0f} are asked",
            "sizes that cost too much in its configs",
        )


def _most(case: Case) -> float:
    """The arithmetic that a case may take."""
    return sizes.WIDE_FLOPS if models.is_wide(models.config_of(case)) else sizes.FLOPS


def require_memory(subject: Any, case: Case, dtype: str) -> None:
    """Raises NotSupportedError if less memory is free than a case may need."""
    needed = sizes.memory_of(case)
    if needed < GIB / 2:
        return
    free = _memory(subject, dtype).free
    if needed > free:
        raise NotSupportedError(
            f"needs {needed / GIB:.1f} GiB, {free / GIB:.1f} GiB are free", "sizes that need more memory than is free"
        )


def _memory(subject: Any, dtype: str) -> MemoryUse:
    """The memory of the subject's device; the host's, if the subject does not say on which device it is."""
    use: MemoryUse = subject.raw_ops(dtype).memory() if subject.kind == "backend" else host_memory()
    return use


level = partial(check, level="L5", examples=DRAWN, subjects=WHOLE)
drawn = partial(cases, regime=among("plain"), size=among(*SIZES), items=among(1))


@level(
    "sizes.decode",
    needs=(DECODER.name,),
    cases=drawn(config=among(PLAIN), half=among("decode"), more=among(0)),
    pinned=(sized("plain", (35, 33), half="decode"),),
    limited=(
        Limited(sized(PLAIN, (153, 157), half="decode"), "quick"),
        Limited(sized(PLAIN, (160, 153), half="decode"), "default", DTYPES[1:]),
        Limited(sized(PLAIN, (41, 160), half="decode"), "default"),
        Limited(sized(DEEP, (97, 81), half="decode"), "default"),
        Limited(sized("plain", (154, 8), half="decode"), "quick"),
        Limited(sized("plain", (63, 65), half="decode"), "default"),
    ),
)
def decode(subject: Any, case: Case, dtype: str) -> Margin:
    """Latents of 33 to 160 a side, not square and odd, become the specification's images of more than 2^16 px.

    A model decodes other latents of the same size first, so that rows which a call does not write are seen. A failure
    says from which row, column or pixel on the image is wrong, or in which block, and which latents these are.
    """
    return _judge(subject, case, dtype, _compute_after_another)


@level(
    "sizes.encode",
    needs=(ENCODER.name,),
    cases=drawn(config=among(PLAIN), half=among("encode"), more=among(0, 1)),
    pinned=(sized("plain", (35, 33), half="encode", more=1),),
    limited=(
        Limited(sized(PLAIN, (151, 155), half="encode", more=1), "quick"),
        Limited(sized(PLAIN, (155, 160), half="encode"), "default", DTYPES[1:]),
        Limited(sized(PLAIN, (160, 37), half="encode"), "default"),
        Limited(sized(DEEP, (81, 98), half="encode"), "default"),
        Limited(sized("plain", (8, 154), half="encode"), "quick"),
        Limited(sized("plain", (63, 65), half="encode"), "default"),
    ),
)
def encode(subject: Any, case: Case, dtype: str) -> Margin:
    """Images of more than 2^16 px become the specification's latents: see `sizes.decode`."""
    return _judge(subject, case, dtype, _compute_after_another)


@level(
    "sizes.batch",
    dtypes=TWO,
    cases=cases(
        config=among(THIN),
        regime=among("plain"),
        half=among("decode", "encode"),
        size=among((33, 47), (97, 35)),
        items=among(3),
        more=among(0),
    ),
    pinned=(sized(THIN, (37, 33), half="decode", items=3),),
    limited=(
        Limited(sized(THIN, (151, 152), half="decode", items=4), "quick"),
        Limited(sized(THIN, (152, 151), half="encode", items=3), "quick"),
        Limited(sized(THIN, (37, 33), half="encode", items=3), "default", TWO),
        Limited(sized(PLAIN, (35, 151), half="decode", items=5), "default"),
        Limited(sized(THIN, (151, 35), half="encode", items=5), "default"),
    ),
)
def batch(subject: Any, case: Case, dtype: str) -> Margin:
    """Every item of a batch of large maps is right, not the first alone. The items differ."""
    return _judge(subject, case, dtype)


@level(
    "sizes.attention",
    dtypes=THREE,
    cases=cases(
        config=among(ATTENDING),
        regime=among("plain"),
        half=among("decode", "encode"),
        size=among((33, 47), (65, 39)),
        items=among(1, 2),
        more=among(0),
    ),
    pinned=(sized(ATTENDING, (37, 33), half="decode"),),
    limited=(
        Limited(sized(ATTENDING, (152, 35), half="decode"), "quick"),
        Limited(sized(ATTENDING, (65, 67), half="encode"), "default", THREE),
        Limited(sized(ATTENDING, (151, 151), half="decode"), "default"),
    ),
)
def attention(subject: Any, case: Case, dtype: str) -> Margin:
    """Attention is over all tokens of a large map: up to 5,320 in quick and 22,801 in default.

    A map of N tokens has N² logits. An implementation that keeps them needs 2 GiB for 22,801 tokens, and as much again
    for their exponentials: the case is not asked where that is not free.
    """
    return _judge(subject, case, dtype)


@level(
    "sizes.width",
    dtypes=TWO,
    examples=Examples(0, 0, 1),
    cases=drawn(config=among(BROAD), half=among("decode", "encode"), more=among(0), size=among((3, 4), (2, 3))),
    pinned=(sized(BROAD, (2, 3), half="decode"),),
    limited=tuple(Limited(sized(REAL, (2, 3), half=half), "default") for half in ("decode", "encode")),
)
def width(subject: Any, case: Case, dtype: str) -> Margin:
    """Stable Diffusion's widths, 128, 256, 512 and 512 channels in 32 groups, on a small map."""
    return _judge(subject, case, dtype)


# -- arrays of more than 2^31 bytes or numbers -------------------------------------------------------------------------

DISTINCT = 3
"""Items of a huge batch that differ; the others repeat them, so that the specification is asked for these alone."""


def _judge_items(subject: Any, case: Case, dtype: str) -> Margin:
    """Compares each item of a huge batch with the specification of the few that it repeats."""
    require_memory(subject, case, dtype)
    few, compute = Case.of(**{**dict(case.items), "items": DISTINCT}), on_terms(_compute, subject.terms)
    expected = specified(compute, few, dtype)
    budget = budgets.model(dtype, predicted(compute, sizes.smaller(case), dtype))
    z = sizes.given(few, dtype).astype(np.float64 if dtype == "float64" else np.float32)
    y = getattr(build_model(subject, case, dtype), case["half"])(z[np.arange(case["items"]) % DISTINCT])
    if y.shape != (case["items"], *expected.shape[1:]):
        raise ConformanceError(f"decode is of shape {y.shape}: expected {(case['items'], *expected.shape[1:])}.")
    margins = [_item(i, y, expected[i % DISTINCT], budget) for i in range(case["items"])]
    return Margin(*(max(shares) for shares in zip(*margins, strict=True)))


def _item(i: int, y: np.ndarray, expected: np.ndarray, budget: float) -> Margin:
    """The used share of the budget of one item; the error says where in the whole array the item begins."""
    try:
        return within(y[i : i + 1], expected[np.newaxis], budget, f"item {i} of {len(y)}")
    except ConformanceError as error:
        begins = f"the items before are right: item {i} begins with number {i * y[0].size} of the result"
        error.where = "; ".join(filter(None, (begins if i else "", error.where))) or None
        raise


huge = partial(
    check,
    level="L5",
    examples=Examples(0, 0, 0),
    cases=cases(
        config=among(FLAT),
        regime=among("plain"),
        half=among("decode"),
        size=among((33, 37)),
        items=among(7, 4),
        more=among(0),
    ),
    pinned=(sized(FLAT, (33, 37), half="decode", items=7),),
)


@huge(
    "sizes.bytes",
    dtypes=("float32",),
    limited=(Limited(sized(FLAT, (1025, 1027), half="decode", items=128), "thorough"),),
)
def more_bytes(subject: Any, case: Case, dtype: str) -> Margin:
    """A map of more than 2^31 bytes is right to its end: in thorough, where the memory is free."""
    return _judge_items(subject, case, dtype)


@huge(
    "sizes.elements",
    dtypes=TWO,
    limited=(Limited(sized(FLAT, (1025, 1027), half="decode", items=512), "thorough", TWO),),
)
def more_elements(subject: Any, case: Case, dtype: str) -> Margin:
    """A map of more than 2^31 numbers is right to its end: in thorough, where the memory is free."""
    return _judge_items(subject, case, dtype)

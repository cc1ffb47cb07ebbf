"""The process in which a subject runs: told by `isolated` what to do on stdin, it answers in lines of JSON.

So a subject may hang with the interpreter's lock held, or crash, and the run goes on.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from vaespec.errors import VaespecError
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.running.agenda import Item, PlanError, Selection, levels_between, plan
from vaespec_conformance.running.facts import about
from vaespec_conformance.running.preliminaries import preliminaries
from vaespec_conformance.running.request import Request
from vaespec_conformance.running.runner import run_item
from vaespec_conformance.running.tally import BEFORE
from vaespec_conformance.subjects.loading import load_backend, load_port
from vaespec_conformance.subjects.subjects import Subject

Send = Callable[..., None]


def main() -> None:
    """Serve one request: the first line of stdin. The second says which of its items."""
    told, send = _told(), _sender()
    try:
        serve(Request.from_json(told.readline()), told, send)
    except (VaespecError, PlanError) as error:
        send(refused=str(error))


def serve(request: Request, told: TextIO, send: Send) -> None:
    """Load the subject, tell what there is to run, and run what is then asked for."""
    subject = _subject(request)
    selection = _selection(request)
    items = plan(subject, selection)
    case, named = _case(request, items), request.named
    asked = selection.to_dict() | ({"case": [case.to_json()]} if case else {})
    facts = about(subject, profile=request.profile, selection=asked, seed=request.seed)
    send(about=facts, places=[item.place for item in items])
    for number in json.loads(told.readline()):
        if number == BEFORE:
            send(known=preliminaries(subject))
            continue
        start = time.perf_counter()
        result = run_item(subject, items[number], profile=request.profile, seed=request.seed, case=case, named=named)
        send(result=result.to_dict(), seconds=time.perf_counter() - start)


def _subject(request: Request) -> Subject:
    if request.port:
        return load_port(request.port)
    assert request.backend
    return load_backend(request.backend, request.device, request.precision)


def _selection(request: Request) -> Selection:
    levels = levels_between(request.levels) if request.levels else ()
    return Selection(request.dtypes, levels, request.checks)


def _case(request: Request, items: tuple[Item, ...]) -> Case | None:
    if request.case is None:
        return None
    if len(items) != 1:
        raise PlanError(f"--case goes with one check in one dtype, not with {len(items)}: add --check ID[DTYPE].")
    try:
        return Case.from_json(request.case)
    except ValueError as error:
        raise PlanError(f"--case {request.case}: {error}") from error


def _told() -> TextIO:
    """Reads where stdin was; the subject finds it empty, and cannot take what is told."""
    pipe = os.fdopen(os.dup(0), encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return pipe


def _sender() -> Send:
    """Writes messages where stdout was; what the subject prints goes to stderr, and cannot be taken for one."""
    sys.stdout.flush()
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(**message: Any) -> None:
        print(json.dumps(message), file=pipe, flush=True)

    return send


if __name__ == "__main__":
    main()

"""The worker process, in which a subject runs: reads a request from stdin and writes messages, one line of JSON each.

So a subject may crash, or hang without releasing the interpreter's lock, and the run goes on in `isolated`.
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
from vaespec_conformance.cases.drawing import require_alike
from vaespec_conformance.running.agenda import AgendaError, Item, Selection, agenda, levels_between
from vaespec_conformance.running.facts import run_facts
from vaespec_conformance.running.preliminaries import preliminaries
from vaespec_conformance.running.programs import keep_programs
from vaespec_conformance.running.request import Request
from vaespec_conformance.running.runner import run_item
from vaespec_conformance.running.tally import PRELIMINARIES
from vaespec_conformance.subjects.loading import load_subject

Send = Callable[..., None]


def main() -> None:
    """Serves one request: the first line of stdin. The second line lists the items to run."""
    orders, send = _private_stdin(), _private_stdout()
    try:
        serve(Request.from_json(orders.readline()), orders, send)
    except VaespecError as error:
        send(refused=str(error))


def serve(request: Request, orders: TextIO, send: Send) -> None:
    """Loads the subject, sends the agenda, and runs the items that are then requested."""
    subject = load_subject(request.backend, request.port, request.device, request.precision)
    keep_programs(subject)
    selection = Selection(request.dtypes, levels_between(request.levels), request.checks)
    items = agenda(subject, selection)
    case, named = _case(request, items), request.named
    selected = selection.to_dict() | ({"case": [case.to_json()]} if case else {})
    facts = run_facts(subject, profile=request.profile, selection=selected, seed=request.seed)
    send(facts=facts, places=[item.place for item in items])
    for number in json.loads(orders.readline()):
        if number == PRELIMINARIES:
            send(preliminaries=preliminaries(subject))
            continue
        start = time.perf_counter()
        result = run_item(subject, items[number], profile=request.profile, seed=request.seed, case=case, named=named)
        send(result=result.to_dict(), seconds=time.perf_counter() - start)


def _case(request: Request, items: tuple[Item, ...]) -> Case | None:
    if request.case is None:
        return None
    if len(items) != 1:
        raise AgendaError(f"--case goes with one check in one dtype, not with {len(items)}: add --check ID[DTYPE].")
    try:
        case = Case.from_json(request.case)
        require_alike(case, items[0].check.cases)
        return case
    except ValueError as error:
        raise AgendaError(f"--case {request.case:.80}: {error}") from error


def _private_stdin() -> TextIO:
    """Moves stdin to a private pipe, so that the subject reads an empty stdin and cannot take the suite's lines."""
    pipe = os.fdopen(os.dup(0), encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return pipe


def _private_stdout() -> Send:
    """Moves stdout to a private pipe, so that the subject prints to stderr and not between the messages."""
    sys.stdout.flush()
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(**message: Any) -> None:
        print(json.dumps(message), file=pipe, flush=True)

    return send


if __name__ == "__main__":
    main()

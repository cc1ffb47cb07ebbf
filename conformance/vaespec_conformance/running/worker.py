"""The worker process, in which a subject runs: reads a request from stdin and writes messages, one line of JSON each.

So a subject may crash, or hang without releasing the interpreter's lock, and the run goes on in `isolated`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from vaespec.errors import VaespecError
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.cases.drawing import require_alike
from vaespec_conformance.running.agenda import AgendaError, Item, Selection, agenda, levels_between
from vaespec_conformance.running.case_selection import allowed
from vaespec_conformance.running.compilation_cache import keep_programs
from vaespec_conformance.running.facts import run_facts
from vaespec_conformance.running.preliminaries import preliminaries
from vaespec_conformance.running.request import Request
from vaespec_conformance.running.runner import run_item
from vaespec_conformance.running.tally import PRELIMINARIES
from vaespec_conformance.subjects.loading import load_program, load_subject
from vaespec_conformance.subjects.subjects import Subject

Send = Callable[..., None]


def main() -> None:
    """Serves one request: the first line of stdin. The second line lists the items to run."""
    orders, send = _private_stdin(), _private_stdout()
    try:
        serve(Request.from_json(orders.readline()), orders, send)
    except VaespecError as error:
        send(refused=str(error), trace=traceback.format_exc())


def serve(request: Request, orders: TextIO, send: Send) -> None:
    """Loads the subject, sends the agenda, and runs the items that are then requested."""
    with _loaded(request) as subject:
        send(imported=subject.name)
        _run(subject, request, orders, send)


def _run(subject: Subject, request: Request, orders: TextIO, send: Send) -> None:
    keep_programs(subject)
    selection = Selection(request.dtypes, levels_between(request.levels), request.checks)
    items = agenda(subject, selection)
    case, named = _case(request, items), request.named
    selected = selection.to_dict() | ({"case": [case.to_json()]} if case else {})
    facts = run_facts(subject, profile=request.profile, selection=selected, seed=request.seed)
    probes = {number: item.lacking for number, item in enumerate(items) if item.lacking}
    order = sorted(range(len(items)), key=lambda number: items[number].turn)
    limit = allowed(subject, request.profile, request.time_limit)
    send(facts=facts, places=[item.place for item in items], probes=probes, order=order, limit=limit)
    for number in json.loads(orders.readline()):
        if number == PRELIMINARIES:
            send(preliminaries=preliminaries(subject))
            continue
        start = time.perf_counter()
        settings: dict[str, Any] = {"profile": request.profile, "seed": request.seed, "case": case, "named": named}
        result = run_item(subject, items[number], **settings, debug=request.debug)
        sys.stdout.flush()  # what the subject has printed
        send(result=result.to_dict(), seconds=time.perf_counter() - start)


@contextmanager
def _loaded(request: Request) -> Iterator[Subject]:
    """The subject that a request names. A program is ended before this process, also if this process is told to end."""
    if request.backend or request.port:
        yield load_subject(request.backend, request.port, request.device, request.precision)
        return
    program = load_program(request.program, request.program_serve, request.limit)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield program
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        program.close()


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
    """Moves stdout to a private pipe, so that the subject prints to stderr, a file, and not between the messages."""
    sys.stdout.flush()
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(**message: Any) -> None:
        print(json.dumps(message), file=pipe, flush=True)

    return send


if __name__ == "__main__":
    main()

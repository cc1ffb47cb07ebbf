"""Asks a program many questions at a time, and keeps its answers until they are fetched."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from vaespec_conformance.subjects.programs.folders import Exchange, Folders
from vaespec_conformance.subjects.programs.processes import Ending, Served, Started
from vaespec_conformance.subjects.programs.question import RESULTS, Answer, Question

PATIENCE = 3
"""After this many requests in a row without any answer in time, the program is not asked again."""

FIRST = 60.0
"""Seconds at most for the questions that are asked before all others."""


class Asks(Protocol):
    """What answers a question: a program, or a recorder in its place."""

    def ask(self, question: Question) -> Answer:
        """The answer to one question."""


class Asker:
    """A program and the answers that it gave. Equal questions are asked, and answered, as often as they are put."""

    def __init__(self, program: Started | Served, seconds: float) -> None:
        self.program, self.seconds = program, seconds
        self.answers: defaultdict[str, deque[Answer]] = defaultdict(deque)
        self.folders: Folders | None = None
        self.hung, self.last = 0, ""
        self.about: dict[str, Answer] = {}

    def first(self, questions: Callable[[], dict[str, Question]]) -> dict[str, Answer]:
        """The answers to the questions that are asked before all others, and once only."""
        if not self.about:
            asked = questions()
            self.ask_all(list(asked.values()), min(self.seconds, FIRST))
            self.about = {name: self.ask(question) for name, question in asked.items()}
        return self.about

    def ask(self, question: Question) -> Answer:
        """The answer to a question; the program is run if it was not asked before."""
        if not self.answers[question.key]:
            self.ask_all([question])
        return self.answers[question.key].popleft()

    def ask_all(self, questions: Sequence[Question], seconds: float | None = None) -> None:
        """Runs the program on many questions, and keeps the answers in place of those of before."""
        self.answers.clear()
        seconds, start = seconds or self.seconds, time.monotonic()
        rest, ending = self._batch(questions, seconds)
        if ending.hung and len(rest) > 1:  # the first of the rest is the likely cause, and the others get a chance
            self._blame(rest[:1], ending)
            rest, ending = self._batch(rest[1:], seconds)
        elif not ending.good and len(rest) > 1:  # starting is cheap, and shows which of them ends the program
            while rest and time.monotonic() < start + seconds:
                question, rest = rest[0], rest[1:]
                self._blame(*self._batch([question], seconds))
        self._blame(rest, ending)

    def _batch(self, questions: Sequence[Question], seconds: float) -> tuple[Sequence[Question], Ending]:
        """Makes one request, and keeps its answers; the questions without one, and how the program ended."""
        if self.hung >= PATIENCE:
            words = f"was not run any more, since {PATIENCE} requests in a row had no answer"
            return questions, Ending(f"{words} (in the last one it {self.last})")
        self.folders = self.folders or Folders()
        exchange = self.folders.write(questions)
        try:
            ending = self.program.run(exchange, seconds)
            rest = self._keep(exchange)
        finally:
            exchange.remove()
        self.hung = self.hung + 1 if ending.hung and len(rest) == len(questions) else 0
        self.last = ending.words
        return rest, ending

    def _keep(self, exchange: Exchange) -> list[Question]:
        rest = []
        for id, question in exchange.questions.items():
            if answer := exchange.read(id):
                self.answers[question.key].append(answer)
            else:
                rest.append(question)
        return rest

    def _blame(self, questions: Sequence[Question], ending: Ending) -> None:
        """Answers questions by how the program ended."""
        words = f"the program {ending.words}; it gave no answer to this case"
        for question in questions:
            self.answers[question.key].append(Answer(failure=f"{words}."))

    def close(self) -> None:
        """Ends the program and deletes all files."""
        self.program.close()
        if self.folders:
            self.folders.close()
            self.folders = None


class Recorder:
    """Notes the questions, and answers each with zeros, which let a check go on to its next question."""

    def __init__(self) -> None:
        self.questions: list[Question] = []

    def ask(self, question: Question) -> Answer:
        """Zeros of the right shape."""
        self.questions.append(question)
        return Answer({name: np.zeros(question.shape, np.float32) for name in RESULTS[question.call]})

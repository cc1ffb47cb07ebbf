"""A subject that is a program in any language: a command that is started for each batch of cases, or one that stays.

The checks call it like a port. Before the cases of a check are run, the check runs once on a recorder in place of the
program, so that the program answers the questions of all its cases at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from vaespec import AutoencoderConfig
from vaespec.initialize import initialize
from vaespec_conformance.subjects.programs.asking import Asker, Asks, Recorder
from vaespec_conformance.subjects.programs.processes import Served, Started
from vaespec_conformance.subjects.programs.question import DECODE, DESCRIBE, ENCODE, Answer, Model, Question
from vaespec_conformance.subjects.subjects import SMALLEST, Alter, Capabilities, Gap, Subject, unaltered

SECONDS = 120.0
"""Seconds that a program may take for a batch of cases, if nobody says so."""
DTYPES = ("float32", "bfloat16", "float16", "float64")


class ProgramVae:
    """The model of a program: NumPy arrays in, the program's numbers out."""

    def __init__(self, model: Model, asks: Asks) -> None:
        self.model, self.asks = model, asks

    def encode(self, x: np.ndarray) -> Any:
        """Images -> mean and log-variance, or the mean alone."""
        return self._call(ENCODE, x).result(ENCODE)

    def decode(self, z: np.ndarray) -> Any:
        """Latents -> images."""
        return self._call(DECODE, z).result(DECODE)

    def layers(self, call: str, x: np.ndarray) -> Mapping[str, np.ndarray]:
        """The results of layers in one call, by diffusers' names; empty if the program gives none."""
        answer = self._call(call, x, layers=True)
        answer.result(call)
        return answer.layers

    def _call(self, call: str, x: np.ndarray, *, layers: bool = False) -> Answer:
        return self.asks.ask(Question(call, self.model, np.array(x), layers))


@dataclass(frozen=True)
class ProgramSubject(Subject):
    """A program; `ProgramSubject.of` makes one from a command line."""

    name: str
    asks: Asks
    alter: Alter = unaltered
    kind = "program"

    @classmethod
    def of(cls, command: str, *, serves: bool = False, seconds: float = SECONDS) -> Self:
        """The program of a command line; `seconds` is its time for a batch of cases. Raises ProgramError.

        The command has the words {request} and {answer}; one that `serves` reads both folders from its stdin.
        """
        return cls(command, Asker(Served(command) if serves else Started(command), seconds))

    def _make(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> ProgramVae:
        return ProgramVae(Model(config, weights, dtype), self.asks)

    def prepare(self, check: Any, cases: Sequence[Any], dtype: str) -> None:
        """Lets the program answer the questions of all these cases of a check at once."""
        recorder = Recorder()
        recording = replace(self, asks=recorder)
        for case in cases:
            with suppress(Exception):  # the check itself tells
                check.run(recording, case, dtype)
        if isinstance(self.asks, Asker) and recorder.questions:
            self.asks.ask_all(recorder.questions)

    @property
    def recording(self) -> bool:
        """Whether answers are zeros, so that nothing need be compared."""
        return isinstance(self.asks, Recorder)

    @property
    def capabilities(self) -> Capabilities:
        """What the program describes; otherwise the dtypes in which it decodes the smallest model."""
        assert isinstance(self.asks, Asker)
        asked = self.asks.first(_about_itself)
        described = asked[DESCRIBE].facts.get("dtypes")
        if not isinstance(described, list):
            described = [dtype for dtype in DTYPES if asked[dtype].tensors] or ["float32"]
        return Capabilities(
            tuple(dtype for dtype in DTYPES if dtype in described), features=frozenset({"deterministic"})
        )

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """None: a program says of each case whether it takes it."""
        return ()

    def close(self) -> None:
        """Ends the program and deletes all files of it."""
        if isinstance(self.asks, Asker):
            self.asks.close()


def _about_itself() -> dict[str, Question]:
    """The question "describe", and decode of the smallest model in each dtype."""
    z, weights = np.zeros((1, SMALLEST.latent_channels, 1, 1)), initialize(SMALLEST, 0)
    asked = {dtype: Question(DECODE, Model(SMALLEST, weights, dtype), z) for dtype in DTYPES}
    return {DESCRIBE: Question(DESCRIBE), **asked}

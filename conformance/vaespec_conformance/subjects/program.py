"""A subject that is a program in any language: a port whose maker asks a program.

Before the cases of a check are run, the check runs once on a recorder in place of the program, so that the program
answers the questions of all its cases at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from vaespec import AutoencoderConfig
from vaespec.architecture import ENCODER
from vaespec.errors import ConfigError
from vaespec.initialize import initialize
from vaespec_conformance.subjects.capabilities import DTYPES, LOGVAR, Capabilities
from vaespec_conformance.subjects.programs.asking import Asker, Asks, Recorder
from vaespec_conformance.subjects.programs.processes import ProgramError, Served, Started
from vaespec_conformance.subjects.programs.question import DECODE, DESCRIBE, ENCODE, Answer, Model, Question
from vaespec_conformance.subjects.subjects import PortSubject

SECONDS = 30.0
"""Seconds that a program may take for a batch of cases, if nobody says so: less than a check in any profile."""
WIDTHS = "block_out_channels"
PLAIN = {"down": "DownEncoderBlock2D", "up": "UpDecoderBlock2D"}
SMALLEST = AutoencoderConfig(block_out_channels=(4,), norm_num_groups=2)
"""The config of the model that a program is first tried with."""


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


@dataclass
class Program:
    """Builds the models of a program. `asks` answers: the program, or a recorder in its place."""

    asker: Asker
    asks: Asks

    def __call__(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> ProgramVae:
        """A model; nothing is asked before it is called."""
        return ProgramVae(Model(config, weights, dtype), self.asks)

    @cached_property
    def capabilities(self) -> Capabilities:
        """What the program describes; otherwise the dtypes in which it decodes the smallest model."""
        about = self.asker.first(_about_itself)
        described = about[DESCRIBE].facts
        dtypes = _chosen(described, "dtypes", DTYPES)
        if dtypes is None:
            dtypes = [dtype for dtype in DTYPES if about[dtype].tensors] or ["float32"]
        return Capabilities(
            tuple(dtype for dtype in DTYPES if dtype in dtypes),
            features=frozenset({"deterministic"}),
            configs=_configs(described),
            lacks=frozenset(_chosen(described, "lacks", (ENCODER.name, LOGVAR)) or ()),
        )

    @property
    def own_name(self) -> str | None:
        """The name and version that the program gives itself."""
        name = self.asker.first(_about_itself)[DESCRIBE].facts.get("name")
        return name if isinstance(name, str) else None


def _chosen(described: Mapping[str, object], member: str, choices: Sequence[str]) -> list[str] | None:
    """A list of names in what a program describes; None if it is left out. Raises ProgramError for another name."""
    names = described.get(member)
    if names is None:
        return None
    for name in names if isinstance(names, list) else [names]:
        if name not in choices:
            known = ", ".join(choices)
            raise ProgramError(f"the program describes {member} {json.dumps(name):.80}: give a list of {known}.")
    return names if isinstance(names, list) else [str(names)]


def _configs(described: Mapping[str, object]) -> tuple[AutoencoderConfig, ...] | None:
    """The configs that a program describes; None, which stands for any, if there are none.

    Block types that are left out are the plain ones, one for each width. Raises ProgramError for what is no config.
    """
    configs = described.get("configs")
    if configs is None:
        return None
    rows: list[Any] = configs if isinstance(configs, list) else [configs]
    if not rows or not all(isinstance(row, dict) and isinstance(row.get(WIDTHS), list) for row in rows):
        words = f"the program describes configs {json.dumps(configs):.80}: give a list of them, with {WIDTHS}."
        raise ProgramError(words)
    try:
        return tuple(AutoencoderConfig.from_dict({**_plain(len(row[WIDTHS])), **row}) for row in rows)
    except ConfigError as error:
        raise ProgramError(f"the program describes a config that is none: {error}") from None


def _plain(levels: int) -> dict[str, list[str]]:
    return {f"{way}_block_types": [kind] * levels for way, kind in PLAIN.items()}


def _about_itself() -> dict[str, Question]:
    """The question "describe", and decode of the smallest model in each dtype."""
    z, weights = np.zeros((1, SMALLEST.latent_channels, 1, 1)), initialize(SMALLEST, 0)
    asked = {dtype: Question(DECODE, Model(SMALLEST, weights, dtype), z) for dtype in DTYPES}
    return {DESCRIBE: Question(DESCRIBE), **asked}


@dataclass(frozen=True)
class ProgramSubject(PortSubject):
    """A program; `ProgramSubject.of_command` makes one from a command line."""

    maker: Program
    kind = "program"

    @classmethod
    def of_command(cls, command: str, *, serves: bool = False, seconds: float = SECONDS) -> Self:
        """The program of a command line; `seconds` is its time for a batch of cases. Raises ProgramError.

        The command has the words {request} and {answer}; one that `serves` reads both folders from its stdin.
        """
        return cls.asking(Asker(Served(command) if serves else Started(command), seconds), command)

    @classmethod
    def asking(cls, asker: Asker, name: str) -> Self:
        """The program behind an asker."""
        return cls(Program(asker, asker), name)

    def prepare(self, check: Any, cases: Sequence[Any], dtype: str) -> None:
        """Lets the program answer the questions of all these cases of a check at once."""
        recorder = Recorder()
        recording = self.replace(maker=Program(self.maker.asker, recorder))
        for case in cases:
            with suppress(Exception):  # the check itself tells
                check.run(recording, case, dtype)
        if recorder.questions:
            self.maker.asker.ask_all(recorder.questions)

    def stub(self, method: str, vae: Any, config: AutoencoderConfig) -> str | None:
        """None: a program says in each answer what it does not do."""
        return None

    @property
    def recording(self) -> bool:
        """Whether answers are zeros, so that nothing need be compared."""
        return isinstance(self.maker.asks, Recorder)

    def close(self) -> None:
        """Ends the program and deletes all files of it."""
        self.maker.asker.close()

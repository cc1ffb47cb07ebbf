"""The request of a command line, as a value that can be sent to another process."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass
from typing import Self

from vaespec import strict_json
from vaespec_conformance.running.timing import TIME_LIMITS

LOADING = 300.0
"""Seconds that importing a subject may take; a framework on a cold disk is slow."""


@dataclass(frozen=True)
class Request:
    """A run of the suite on a backend, a port or a program: one of them is named.

    `levels` is the text of the option, "L0-L3"; `case` is the JSON of one case, for one check in one dtype; `jobs` is
    the number of processes that share the checks, None if the suite chooses it. `debug` asks for tracebacks.
    """

    backend: str | None = None
    port: str | None = None
    program: str | None = None
    program_serve: str | None = None
    device: str | None = None
    precision: str = "highest"
    profile: str = "default"
    seed: int = 0
    dtypes: tuple[str, ...] = ()
    levels: str | None = None
    checks: tuple[str, ...] = ()
    case: str | None = None
    time_limit: float | None = None
    jobs: int | None = None
    debug: bool = False

    @property
    def named(self) -> str:
        """The options of the command line that name the subject."""
        options = {"--backend": self.backend, "--port": self.port, "--device": self.device}
        options |= {"--program": self.program, "--program-serve": self.program_serve}
        if self.precision != "highest":
            options["--precision"] = self.precision
        return " ".join(f"{option} {shlex.quote(value)}" for option, value in options.items() if value)

    @property
    def subject(self) -> str:
        """The backend, the port or the program, as the command line names it."""
        return self.backend or self.port or self.program or self.program_serve or ""

    @property
    def limit(self) -> float:
        """Seconds for a check; for a program, for each batch of its cases."""
        return self.time_limit or TIME_LIMITS[self.profile]

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        fields = strict_json.parse(text)
        return cls(**{**fields, "dtypes": tuple(fields["dtypes"]), "checks": tuple(fields["checks"])})

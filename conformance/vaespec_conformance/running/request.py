"""The request of a command line, as a value that can be sent to another process."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass
from typing import Self

from vaespec import strict_json


@dataclass(frozen=True)
class Request:
    """A run of the suite on a backend or on a port: one of the two is named.

    `levels` is the text of the option, "L0-L3"; `case` is the JSON of one case, for one check in one dtype; `jobs` is
    the number of processes that share the checks, None if the suite chooses it. `debug` asks for tracebacks.
    """

    backend: str | None = None
    port: str | None = None
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
        if self.precision != "highest":
            options["--precision"] = self.precision
        return " ".join(f"{option} {shlex.quote(value)}" for option, value in options.items() if value)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        fields = strict_json.parse(text)
        return cls(**{**fields, "dtypes": tuple(fields["dtypes"]), "checks": tuple(fields["checks"])})

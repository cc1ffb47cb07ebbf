"""What the command line asks for, as a value that another process can be given."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Request:
    """A run of the suite on a backend or on a port: one of the two is named.

    `levels` is as it was written, "L0-L3"; `case` is the JSON of a case, for one check in one dtype; `jobs` is how many
    processes share the checks, where that is not left to the suite.
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

    @property
    def named(self) -> str:
        """The options that name the subject."""
        options = {"--backend": self.backend, "--port": self.port, "--device": self.device}
        if self.precision != "highest":
            options["--precision"] = self.precision
        return " ".join(f"{option} {shlex.quote(value)}" for option, value in options.items() if value)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse."""
        fields = json.loads(text)
        return cls(**{**fields, "dtypes": tuple(fields["dtypes"]), "checks": tuple(fields["checks"])})

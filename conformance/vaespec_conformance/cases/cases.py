"""A case: structure and a seed only; the numbers come from NumPy, seeded by the case. So it is a few words of JSON."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vaespec import strict_json

Json = int | float | str | bool | None | tuple["Json", ...]


@dataclass(frozen=True)
class Case:
    """A mapping of names to JSON values, hashable. `case["shape"]` reads one."""

    items: tuple[tuple[str, Json], ...]

    @classmethod
    def of(cls, **values: Any) -> Case:
        """A case of these values; lists become tuples."""
        return cls(tuple((name, _frozen(value)) for name, value in values.items()))

    @classmethod
    def from_json(cls, text: str) -> Case:
        """The inverse of `to_json`; raises ValueError for anything but an object."""
        values = strict_json.parse(text)
        if not isinstance(values, Mapping):
            raise ValueError(f"a case is a JSON object, got {text!r:.80}.")
        return cls.of(**values)

    def to_json(self) -> str:
        """One line, as `--case` takes it."""
        return json.dumps(dict(self.items))

    def __getitem__(self, name: str) -> Any:
        return dict(self.items)[name]

    def rng(self, what: str) -> np.random.Generator:
        """The random generator of the array called `what`, independent of every other array of the case."""
        return np.random.default_rng([self["seed"], zlib.crc32(what.encode())])


def _frozen(value: Any) -> Json:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value

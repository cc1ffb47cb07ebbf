"""Strategies of hypothesis that draw cases: nothing is filtered, and shrinking finds a small shape and a small seed.

Lists of choices begin with the simplest, since hypothesis shrinks towards it; choices that catch more appear more than
once.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from vaespec_conformance.cases.cases import Case


def cases(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Case]:
    """A strategy that draws cases with the given fields and a seed."""
    return st.fixed_dictionaries({**fields, "seed": SEEDS}).map(lambda values: Case.of(**values))


SEEDS = st.integers(0, 999)


def among(*choices: Any) -> st.SearchStrategy[Any]:
    """A strategy that draws one of the choices; the simplest comes first."""
    return st.sampled_from(choices)

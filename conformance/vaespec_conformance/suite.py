"""The suite as a class of tests, for a subject's own repository."""

from __future__ import annotations

from typing import Any

import pytest

from vaespec_conformance.pytest_request import Asked, Record
from vaespec_conformance.running.agenda import EVERYTHING, Item, Selection
from vaespec_conformance.subjects.loading import as_subject


def conformance_suite(
    subject: Any,
    *,
    profile: str = "default",
    selection: Selection = EVERYTHING,
    seed: int = 0,
    time_limit: float | None = None,
) -> type:
    """A class that pytest collects: `TestMine = conformance_suite(MyBackend)`, or `conformance_suite(build_my_vae)`.

    `subject` is a backend, the class of one, a function that builds a port from (config, weights), or a Subject.
    """
    asked = Asked(as_subject(subject), profile, selection, seed, time_limit)

    class TestConformance:
        """A test for each check and dtype."""

        def test_the_canary_is_caught(self, record_property: Record) -> None:
            """A known mistake, put into the subject, is seen."""
            asked.fly_canary(record_property)

        def test_what_every_subject_must_do_is_claimed(self) -> None:
            """The subject cannot pass by claiming nothing."""
            asked.require_claims()

        @pytest.mark.parametrize("item", asked.items, ids=lambda item: item.id)
        def test_conforms(self, item: Item, record_property: Record) -> None:
            """One check in one dtype."""
            asked.examine(item, record_property)

    return TestConformance

"""What `pytest --pyargs vaespec_conformance` finds: a test for each check and dtype of the subject that is named."""

from __future__ import annotations

import pytest

from vaespec_conformance.pytest_request import Asked, Record
from vaespec_conformance.running.agenda import Item


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test per item; one sentence where nobody said what is to be examined."""
    recorder = metafunc.config.pluginmanager.get_plugin("vaespec-recorder")
    if recorder is None:
        raise pytest.UsageError("name what is to be examined: --vaespec-backend NAME, or --vaespec-port PLACE.")
    if "item" in metafunc.fixturenames:
        metafunc.parametrize("item", recorder.asked.items, ids=lambda item: item.id)


@pytest.fixture(scope="session")
def asked(pytestconfig: pytest.Config) -> Asked:
    """The subject, and how it is examined."""
    recorder = pytestconfig.pluginmanager.get_plugin("vaespec-recorder")
    assert recorder
    return recorder.asked


def test_the_canary_is_caught(asked: Asked, record_property: Record) -> None:
    """A known mistake, put into the subject, is seen."""
    asked.fly_canary(record_property)


def test_what_every_subject_must_do_is_claimed(asked: Asked) -> None:
    """The subject cannot pass by claiming nothing."""
    asked.require_claims()


def test_conforms(asked: Asked, item: Item, record_property: Record) -> None:
    """One check in one dtype."""
    asked.examine(item, record_property)

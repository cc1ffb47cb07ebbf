"""Collected by `pytest --pyargs vaespec_conformance`: the tests of the subject that the options name."""

from __future__ import annotations

import pytest

from vaespec_conformance.pytest_plugin import RECORDER
from vaespec_conformance.pytest_suite import ConformanceTests


class TestConformance(ConformanceTests):
    """One test for each check and dtype of the subject."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives the class its suite, before its own hook; raises a usage error if no option names a subject."""
    recorder = metafunc.config.pluginmanager.get_plugin(RECORDER)
    if recorder is None:
        raise pytest.UsageError("name the subject to examine: --vaespec-backend NAME, or --vaespec-port PLACE.")
    TestConformance.suite = recorder.suite

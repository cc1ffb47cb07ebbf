"""The options of `pytest --pyargs vaespec_conformance --vaespec-backend NAME`, which runs the suite as tests.

pytest loads this module on every machine with vaespec, so it imports pytest alone, and does nothing without its
options.
"""

from __future__ import annotations

import pytest

PREFIX, RECORDER = "--vaespec-", "vaespec-recorder"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options of `vaespec conformance`, each with a prefix."""
    group = parser.getgroup("vaespec", "conformance of a VAE (with --pyargs vaespec_conformance)")
    for name, text in (
        ("backend", "an installed backend, or where one is: package.module:object, file.py:object"),
        ("port", "a whole VAE: package.module:build or file.py:build"),
        ("device", "device of a backend"),
        ("level", "only these: L1, L0-L3, or L1,L4"),
        ("report", "write the report as JSON to this file"),
        ("markdown", "write it as Markdown"),
        ("html", "write it as one page"),
    ):
        group.addoption(PREFIX + name, metavar=name.upper(), help=text)
    group.addoption(PREFIX + "precision", metavar="NAME", default="highest", help="highest or default")
    group.addoption(
        PREFIX + "profile", choices=("quick", "default", "thorough"), default="default", help="how many cases"
    )
    group.addoption(PREFIX + "seed", metavar="N", type=int, default=0, help="which cases")
    group.addoption(PREFIX + "dtype", metavar="NAME", action="append", default=[], help="only this one; again for more")
    group.addoption(PREFIX + "check", metavar="ID", action="append", default=[], help="only this one; again for more")
    group.addoption(PREFIX + "time-limit", metavar="S", type=float, help="seconds for a check")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the recorder if an option names a subject."""
    if config.getoption("vaespec_backend") or config.getoption("vaespec_port"):
        from vaespec.errors import VaespecError
        from vaespec_conformance import require_hypothesis

        try:
            require_hypothesis()
        except VaespecError as error:
            raise pytest.UsageError(str(error)) from None
        from vaespec_conformance.pytest_suite import Recorder

        config.pluginmanager.register(Recorder(config), RECORDER)

"""`pytest --pyargs vaespec_conformance --vaespec-backend NAME`: the suite as tests, one for each check and dtype.

Loaded by pytest wherever vaespec is installed, so it imports nothing but pytest, and does nothing without its options.
"""

from __future__ import annotations

import pytest

PREFIX = "--vaespec-"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Those of `vaespec conformance`, each with a prefix."""
    group = parser.getgroup("vaespec", "conformance of a VAE (with --pyargs vaespec_conformance)")
    for name, text in (
        ("backend", "an installed backend, or where one is: package.module:object, file.py:object"),
        ("port", "a whole VAE: package.module:build or file.py:build"),
        ("device", "of a backend"),
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
    """Where a subject is named, keep what its tests find, for the report."""
    if config.getoption("vaespec_backend") or config.getoption("vaespec_port"):
        from vaespec.errors import VaespecError
        from vaespec_conformance import require_hypothesis

        try:
            require_hypothesis()
        except VaespecError as error:
            raise pytest.UsageError(str(error)) from None
        from vaespec_conformance.recorder import Recorder

        config.pluginmanager.register(Recorder(config), "vaespec-recorder")

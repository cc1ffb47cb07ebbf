"""A warning shows the user's line, even if a framework or an installed package stands between it and vaespec."""

from __future__ import annotations

import sysconfig
from types import FunctionType, ModuleType

import pytest

from vaespec.callers import warn_user


def function_in(name: str, path: str, code: str) -> FunctionType:
    """The function `call`, of a module with this name and file."""
    module = ModuleType(name)
    exec(compile(code, path, "exec"), vars(module))
    return module.call


def test_a_warning_shows_the_users_line():
    ours = function_in("vaespec_torch.live", "/ours.py", "def call(warn):\n    warn('here', UserWarning)")
    framework = function_in("framework", f"{sysconfig.get_path('purelib')}/f.py", "def call(f, warn):\n    f(warn)")
    for call in (lambda: ours(warn_user), lambda: framework(ours, warn_user)):
        with pytest.warns(UserWarning, match="here") as seen:
            call()
        assert seen[0].filename == __file__
        assert seen[0].lineno == call.__code__.co_firstlineno

"""Loads subjects by name: an installed backend, or "module:object" and "file.py:object" for a backend or a port."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from vaespec.backend import MEMBERS
from vaespec.registry import choose_backend
from vaespec_conformance.subjects.errors import LoadError
from vaespec_conformance.subjects.program import ProgramSubject
from vaespec_conformance.subjects.subjects import BackendSubject, PortSubject, Subject


def load_subject(backend: str | None, port: str | None, device: str | None, precision: str) -> Subject:
    """Loads a port if one is named, and the backend otherwise."""
    if port:
        return load_port(port)
    assert backend
    return load_backend(backend, device, precision)


def load_backend(name: str, device: str | None = None, precision: str = "highest") -> BackendSubject:
    """Loads a backend by name; raises BackendError or LoadError if there is none."""
    backend = _backend(load_object(name), name) if ":" in name else choose_backend(name)
    return BackendSubject(backend, device, precision)


def load_port(name: str) -> Subject:
    """Loads a port; `name` leads to the function that builds it from (config, weights)."""
    build = load_object(name)
    if not callable(build):
        raise LoadError(
            f"port {name!r} is a {type(build).__name__}: name a function that builds a VAE from (config, weights)."
        )
    return PortSubject(build, name)


def load_program(command: str | None, serving: str | None, seconds: float) -> ProgramSubject:
    """A program by its command line, or by that of one that serves; `seconds` is its time for a batch of cases."""
    line = command if serving is None else serving
    assert line is not None
    return ProgramSubject.of_command(line, serves=serving is not None, seconds=seconds)


def as_subject(value: Any) -> Subject:
    """A subject of a backend, of a backend's class or of a function that builds a port; a Subject is returned as is."""
    if isinstance(value, Subject):
        return value
    if _missing(value) and callable(value) and not (isinstance(value, type) and hasattr(value, "ops")):
        return PortSubject(value, getattr(value, "__name__", type(value).__name__))
    return BackendSubject(_backend(value, getattr(value, "__name__", type(value).__name__)))


def _backend(value: Any, name: str) -> Any:
    """A backend; if `value` is a class, an instance of it."""
    if isinstance(value, type):
        try:
            value = value()
        except Exception as error:  # a user's class may raise anything
            raise LoadError(f"backend {name!r} cannot be created ({error!r}).") from error
    if missing := _missing(value):
        raise LoadError(f"backend {name!r} lacks {', '.join(missing)}: see vaespec.backend.Backend.")
    return value


def _missing(value: Any) -> list[str]:
    """Members of the Backend protocol that `value` lacks."""
    return [member for member in MEMBERS if not hasattr(value, member)]


def load_object(name: str) -> Any:
    """Imports "package.module:object" or "folder/file.py:object"; modules may also be in the current folder."""
    place, _, attributes = name.rpartition(":")
    if not place or not attributes:
        raise LoadError(f"{name!r}: give package.module:object, or file.py:object.")
    try:
        value: Any = _file(Path(place)) if place.endswith(".py") else _module(place)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise LoadError(f"{place} cannot be imported ({type(error).__name__}: {error}).") from error
    for attribute in attributes.split("."):
        if not hasattr(value, attribute):
            raise LoadError(f"{place} has no {attribute!r}: name an object that it defines.")
        value = getattr(value, attribute)
    return value


def _module(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


def _file(path: Path) -> ModuleType:
    """Imports a file and registers the module in sys.modules, so that pickle can find its classes."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module

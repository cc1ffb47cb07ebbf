"""Subjects by their names: an installed backend, or "module:object" and "file.py:object", a backend or a port."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from vaespec.backend import MEMBERS
from vaespec.errors import VaespecError
from vaespec.registry import choose_backend
from vaespec_conformance.subjects.subjects import BackendSubject, PortSubject, Subject


class LoadError(VaespecError, ImportError):
    """A subject that cannot be found or imported."""


def load_backend(name: str, device: str | None = None, precision: str = "highest") -> BackendSubject:
    """The subject of a backend; BackendError or LoadError where there is none."""
    backend = _backend(load_object(name), name) if ":" in name else choose_backend(name)
    return BackendSubject(backend, device, precision)


def load_port(name: str) -> Subject:
    """The subject of a port: `name` leads to what builds it from (config, weights)."""
    maker = load_object(name)
    if not callable(maker):
        raise LoadError(f"port {name!r} is a {type(maker).__name__}: name what builds a VAE from (config, weights).")
    return PortSubject(maker, name)


def as_subject(given: Any) -> Subject:
    """A Subject as it is; of a backend or its class, of a function that builds a port, the subject."""
    if isinstance(given, Subject):
        return given
    if _lacking(given) and callable(given) and not (isinstance(given, type) and hasattr(given, "ops")):
        return PortSubject(given, getattr(given, "__name__", type(given).__name__))
    return BackendSubject(_backend(given, getattr(given, "__name__", type(given).__name__)))


def _backend(given: Any, name: str) -> Any:
    """A backend, which is made here if the class of one is given."""
    if isinstance(given, type):
        try:
            given = given()
        except Exception as error:  # a stranger's class raises anything
            raise LoadError(f"backend {name!r} cannot be made ({error!r}).") from error
    if lacking := _lacking(given):
        raise LoadError(f"backend {name!r} lacks {', '.join(lacking)}: see vaespec.backend.Backend.")
    return given


def _lacking(given: Any) -> list[str]:
    return [member for member in MEMBERS if not hasattr(given, member)]


def load_object(name: str) -> Any:
    """ "package.module:object" or "folder/file.py:object"; modules are also looked for in the current folder."""
    place, _, attributes = name.rpartition(":")
    if not place or not attributes:
        raise LoadError(f"{name!r}: give package.module:object, or file.py:object.")
    try:
        found: Any = _file(Path(place)) if place.endswith(".py") else _module(place)
    except (Exception, SystemExit) as error:  # a stranger's module raises anything
        raise LoadError(f"{place} cannot be imported ({type(error).__name__}: {error}).") from error
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            raise LoadError(f"{place} has no {attribute!r}: name an object that it defines.")
        found = getattr(found, attribute)
    return found


def _module(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


def _file(path: Path) -> ModuleType:
    """A module from a file, which is registered, so that its classes can be found again."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module

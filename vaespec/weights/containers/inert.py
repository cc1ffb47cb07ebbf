"""What the names in a pickle stand for: tensors, or inert objects. Nothing is imported and nothing is called.

A class of any package is read as an object that does nothing, and of Python's own library those that hold plain data.
A function is read so too if it makes plain data: it is listed here, or its name says that it rebuilds a value. Every
other name is refused, since a file of weights that has one was made to do harm, or is no file of weights.
"""

from __future__ import annotations

import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # the names that pickles have from Python 2
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vaespec.weights.containers.rebuilt import TENSORS, ForbiddenError, Named

MAX_NAME = 4096  # bytes of a name

# What holds plain data in Python's own library: whole modules, and single names of others.
PLAIN_MODULES = (
    "argparse array calendar collections configparser copyreg dataclasses datetime decimal enum fractions inspect "
    "ipaddress itertools math numbers optparse pathlib random re statistics string time typing uuid zoneinfo"
)
PLAIN = {
    "codecs": "encode",
    "builtins": "abs bool bytearray bytes complex dict float frozenset getattr int iter len list max min object print "
    "range round set slice sorted str sum tuple type",
    "functools": "partial reduce",
    "io": "BytesIO StringIO",
    "logging": "Logger RootLogger getLogger",
    "operator": "attrgetter getitem itemgetter or_",
    "types": "GenericAlias SimpleNamespace UnionType",
}
# Functions, and classes that are named like functions, that make plain data.
MAKERS = {
    "codecs": "encode",
    "array": "array",
    "builtins": "bytearray bytes complex dict frozenset getattr iter list object range set slice tuple type",
    "collections": "defaultdict deque",
    "datetime": "date datetime time timedelta timezone",
    "functools": "partial reduce",
    "itertools": "count",
    "logging": "getLogger",
    "numpy": "dtype",
    "numpy._core.multiarray": "scalar",
    "numpy._core.numeric": "_frombuffer",
    "numpy.core.multiarray": "scalar",
    "numpy.core.numeric": "_frombuffer",
    "operator": "attrgetter getitem itemgetter",
    "re": "_compile",
    "time": "struct_time",
    "torch": "device",
    "torch.serialization": "_get_layout",
}
REBUILDS = re.compile(r"__new__|_\w*(?:reconstruct|rebuild|unpickle|newobj|_ctor)\w*")
ORDERED, GETATTR, PARTIAL = "collections.OrderedDict", "builtins.getattr", "functools.partial"


@dataclass(slots=True, eq=False)
class Inert:
    """An object of a class that means nothing to us. Of a mapping, `entries` are those whose keys are text."""

    kind: str
    entries: dict[str, Any] | None = None


def named(module: str, name: str) -> Named:
    """The class or function of that name. Raises ForbiddenError for one of Python's own that is no plain data."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    full = f"{module}.{name}"
    if len(full) > MAX_NAME or not all(part.isidentifier() for part in full.split(".")):
        raise ValueError(f"it refers to a class of the impossible name {full[:100]!r}")
    if full.partition(".")[0] in sys.stdlib_module_names and not _is_plain(full):
        raise ForbiddenError(full)
    return Named(full)


def made(maker: Any, arguments: Any) -> Any:
    """What a class or function makes of the arguments. Raises ForbiddenError unless it would make plain data."""
    if not isinstance(maker, Named) or not isinstance(arguments, tuple):
        raise ValueError("it calls what is neither a class nor a function")
    name = maker.name
    if name in TENSORS:
        return TENSORS[name](arguments)
    if name == ORDERED:  # Python 2 pickled its entries as an argument
        return Inert(name, _entries(arguments[0] if arguments and isinstance(arguments[0], list) else []))
    if name == GETATTR and isinstance(arguments[0], Named) and isinstance(arguments[1], str):  # a class in a class
        return named(arguments[0].name, arguments[1])
    if name == PARTIAL and isinstance(arguments[0], Named):  # called in its turn to make an object, up to protocol 3
        return arguments[0]
    if REBUILDS.fullmatch(name.rpartition(".")[2]):
        return Inert(arguments[0].name if arguments and isinstance(arguments[0], Named) else name)
    if _is_class(name) or _is_in(MAKERS, name):
        return Inert(name)
    raise ForbiddenError(name)


def enter(table: dict[str, Any], key: Any, value: Any) -> None:
    """Add an entry whose key is text; others hold no weights. Raises ValueError for a repeated key."""
    if isinstance(key, Inert) and key.kind == "builtins.str":
        raise ValueError(f"it has a key of more than {MAX_NAME:,} bytes")
    if isinstance(key, str):
        if key in table:
            raise ValueError(f"it has the key {key[:100]!r} twice")
        table[key] = value


def _entries(pairs: list[Any]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError("it has a dictionary of what are no pairs")
        enter(table, *pair)
    return table


def _is_plain(full: str) -> bool:
    """Whether a name of Python's own library is that of plain data."""
    top = full.lstrip("_").partition(".")[0]
    return top in PLAIN_MODULES.split() or _is_in(PLAIN, full) or (top == "builtins" and _is_class(full))


def _is_class(full: str) -> bool:
    """Whether a name is a class's by convention: its last part has a capital first."""
    return full.rpartition(".")[2].lstrip("_")[:1].isupper()


def _is_in(table: Mapping[str, str], full: str) -> bool:
    module, _, name = full.lstrip("_").rpartition(".")  # _operator has the functions of operator, and so on
    return name in table.get(module, "").split()

"""Pickles, read by a machine of our own: it builds plain values in bounded memory, and calls nothing.

Of Python's module `pickle` only the names of the opcodes are used; `pickletools` says what each of them means. Values
that no tensor depends on are dropped: bytes, long text, the state of an object, entries whose key is no text.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from vaespec.weights.containers.inert import MAX_NAME, Inert, enter, made, named
from vaespec.weights.containers.rebuilt import Named, Storage, stored

PROTOCOLS = range(2, 6)
BUDGET = 64 << 20  # bytes of memory that the values of a file's pickles may take, which also bounds the time
SCALAR, OBJECT = 48, 96  # bytes that a step takes at most: its value, and the value's place on the stack or in the memo
MAX_INTEGER = 16  # bytes; no size needs more

BYTE, SHORT, SIGNED, LONG, LONG_LONG = map(struct.Struct, ("<B", "<H", "<i", "<I", "<Q"))


class Window:
    """A part of a file, read in sequence. Raises ValueError at its end."""

    def __init__(self, file: BinaryIO, first: int, end: int) -> None:
        file.seek(first)
        self.at, self._file, self._end = first, file, end

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        content = self._file.read(count) if count <= self._end - self.at else b""
        if len(content) != count:
            raise ValueError(f"it ends inside a pickle, at byte {self._end:,}")
        self.at += count
        return content

    def line(self) -> str:
        """The text before the next line feed. Raises ValueError if it is longer than a name."""
        content = self._file.readline(min(MAX_NAME, self._end - self.at))
        if not content.endswith(b"\n"):
            raise ValueError(f"it has no end of a name before byte {self.at + len(content):,}")
        self.at += len(content)
        return content[:-1].decode()

    def skip(self, count: int) -> None:
        """Leaves out `count` bytes."""
        if not 0 <= count <= self._end - self.at:
            raise ValueError(f"it ends inside a pickle, at byte {self._end:,}")
        self.at += count
        self._file.seek(self.at)


class Machine:
    """Runs the pickles of a file, one after the other; `storages` are those that its tensors refer to.

    Raises ValueError or IndexError for wrong or too many opcodes, ForbiddenError for a name that weights do not need.
    """

    def __init__(self, window: Window) -> None:
        self.storages: dict[str, Storage] = {}
        self._window, self._left = window, BUDGET
        self._names: dict[tuple[str, str], Named] = {}

    def run(self) -> Any:
        """The value of the next pickle."""
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}
        take = self._window.take
        while (code := take(1)) != pickle.STOP:
            if code in STEPS:
                cost, step = STEPS[code]
                self._spend(cost)
                step(self)
            elif code in COUNTED_STEPS:
                cost, number, counted_step = COUNTED_STEPS[code]
                self._spend(cost)
                counted_step(self, number.unpack(self._window.take(number.size))[0])
            else:
                raise ValueError(f"it has the opcode {code!r}, which PyTorch does not write")
        return self._stack.pop()

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ValueError(f"what it has beside the tensors' values takes more than {BUDGET >> 20} MiB of memory")

    # -- plain values

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _integer(self, count: int) -> None:
        if count > MAX_INTEGER:
            self._skip(count, "builtins.int")
        else:
            self._push(int.from_bytes(self._window.take(count), "little", signed=True))

    def _text(self, count: int) -> None:
        if count > MAX_NAME:
            return self._skip(count, "builtins.str")
        self._spend(4 * count)
        try:
            self._push(self._window.take(count).decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:  # bytes, which Python 2 pickled as text
            self._push(Inert("builtins.bytes"))

    def _bytes(self, count: int) -> None:
        self._skip(count, "builtins.bytes")

    def _skip(self, count: int, kind: str) -> None:
        self._window.skip(count)
        self._push(Inert(kind))

    # -- the stack and the memo

    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        values, self._stack = self._stack, self._below.pop()
        return values

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _memoize(self) -> None:
        self._put(len(self._memo))

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise ValueError(f"it refers to its value {index}, which it does not have")
        self._push(self._memo[index])

    # -- tuples, lists, sets, dictionaries

    def _last(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError
        values = self._stack[-count:]
        del self._stack[-count:]
        return values

    def _frozenset(self) -> None:
        self._since_mark()
        self._push(Inert("builtins.frozenset"))

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target += values
        elif type(target) is not Inert:
            raise ValueError("it appends to what is no list")

    def _enter(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is Inert:
            target.entries = {} if target.entries is None else target.entries
            target = target.entries
        if type(target) is not dict or len(values) % 2:
            raise ValueError("it enters into what is no dictionary")
        self._spend(2 * OBJECT * len(values))
        for i in range(0, len(values), 2):
            enter(target, values[i], values[i + 1])

    # -- names and objects

    def _name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("it refers to a class without a name")
        if (module, name) not in self._names:
            self._spend(4 * OBJECT + 8 * len(module + name))
            self._names[module, name] = named(module, name)
        self._push(self._names[module, name])

    def _call(self, maker: Any, arguments: Any) -> None:
        if isinstance(arguments, tuple) and arguments and isinstance(arguments[0], list):
            self._spend(2 * OBJECT * len(arguments[0]))  # they may become a dictionary
        self._push(made(maker, arguments))

    def _object(self, kind: Any) -> None:
        """An object of a class, whatever its arguments are."""
        if not isinstance(kind, Named):
            raise ValueError("it has an object of no class")
        self._push(Inert(kind.name))

    def _protocol(self, protocol: int) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"its pickle has the protocol {protocol}, expected 2 to 5")


# What each opcode does, and how much memory that takes at most.
STEPS: dict[bytes, tuple[int, Callable[[Machine], object]]] = {
    pickle.NONE: (SCALAR, lambda m: m._push(None)),
    pickle.NEWTRUE: (SCALAR, lambda m: m._push(True)),
    pickle.NEWFALSE: (SCALAR, lambda m: m._push(False)),
    pickle.BINFLOAT: (SCALAR, lambda m: m._push(struct.unpack(">d", m._window.take(8))[0])),
    pickle.MARK: (OBJECT, Machine._mark),
    pickle.POP: (SCALAR, Machine._pop),
    pickle.POP_MARK: (SCALAR, Machine._since_mark),
    pickle.MEMOIZE: (OBJECT, Machine._memoize),
    pickle.EMPTY_TUPLE: (SCALAR, lambda m: m._push(())),
    pickle.TUPLE1: (OBJECT, lambda m: m._push(tuple(m._last(1)))),
    pickle.TUPLE2: (OBJECT, lambda m: m._push(tuple(m._last(2)))),
    pickle.TUPLE3: (OBJECT, lambda m: m._push(tuple(m._last(3)))),
    pickle.TUPLE: (OBJECT, lambda m: m._push(tuple(m._since_mark()))),
    pickle.EMPTY_LIST: (OBJECT, lambda m: m._push([])),
    pickle.EMPTY_SET: (OBJECT, lambda m: m._push(Inert("builtins.set"))),
    pickle.EMPTY_DICT: (OBJECT, lambda m: m._push({})),
    pickle.FROZENSET: (OBJECT, Machine._frozenset),
    pickle.APPEND: (SCALAR, lambda m: m._extend(m._last(1))),
    pickle.APPENDS: (SCALAR, lambda m: m._extend(m._since_mark())),
    pickle.ADDITEMS: (SCALAR, lambda m: m._extend(m._since_mark())),
    pickle.SETITEM: (SCALAR, lambda m: m._enter(m._last(2))),
    pickle.SETITEMS: (SCALAR, lambda m: m._enter(m._since_mark())),
    pickle.GLOBAL: (SCALAR, lambda m: m._name(m._window.line(), m._window.line())),
    pickle.STACK_GLOBAL: (SCALAR, lambda m: m._name(*m._last(2))),
    pickle.REDUCE: (2 * OBJECT, lambda m: m._call(*m._last(2))),
    pickle.NEWOBJ: (OBJECT, lambda m: m._object(m._last(2)[0])),
    pickle.NEWOBJ_EX: (OBJECT, lambda m: m._object(m._last(3)[0])),
    pickle.OBJ: (OBJECT, lambda m: m._object(m._since_mark()[0])),
    pickle.BUILD: (SCALAR, lambda m: m._push(m._last(2)[0])),  # the second is the object's state
    pickle.BINPERSID: (3 * OBJECT, lambda m: m._push(stored(m._stack.pop(), m.storages))),
}
# The same of opcodes that a number follows.
COUNTED_STEPS: dict[bytes, tuple[int, struct.Struct, Callable[[Machine, int], object]]] = {
    pickle.PROTO: (OBJECT, BYTE, Machine._protocol),
    pickle.FRAME: (OBJECT, LONG_LONG, lambda m, size: None),  # a help for reading ahead; there are few
    pickle.BININT1: (SCALAR, BYTE, Machine._push),
    pickle.BININT2: (SCALAR, SHORT, Machine._push),
    pickle.BININT: (SCALAR, SIGNED, Machine._push),
    pickle.LONG1: (OBJECT, BYTE, Machine._integer),
    pickle.LONG4: (OBJECT, LONG, Machine._integer),
    pickle.SHORT_BINSTRING: (OBJECT, BYTE, Machine._text),
    pickle.BINSTRING: (OBJECT, LONG, Machine._text),
    pickle.SHORT_BINUNICODE: (OBJECT, BYTE, Machine._text),
    pickle.BINUNICODE: (OBJECT, LONG, Machine._text),
    pickle.BINUNICODE8: (OBJECT, LONG_LONG, Machine._text),
    pickle.SHORT_BINBYTES: (OBJECT, BYTE, Machine._bytes),
    pickle.BINBYTES: (OBJECT, LONG, Machine._bytes),
    pickle.BINBYTES8: (OBJECT, LONG_LONG, Machine._bytes),
    pickle.BYTEARRAY8: (OBJECT, LONG_LONG, Machine._bytes),
    pickle.BINPUT: (OBJECT, BYTE, Machine._put),
    pickle.LONG_BINPUT: (OBJECT, LONG, Machine._put),
    pickle.BINGET: (SCALAR, BYTE, Machine._get),
    pickle.LONG_BINGET: (SCALAR, LONG, Machine._get),
}

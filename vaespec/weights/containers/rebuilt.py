"""The tensors of PyTorch's pickles: what its functions that rebuild one make of their arguments, without values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from vaespec.dtypes import KNOWN_DTYPES, numpy_dtype
from vaespec.weights.containers.tensor_file import MAX_RANK

STORAGES = {
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}
PLAIN_CLASSES = {"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}

Arguments = tuple[Any, ...]


class ForbiddenError(Exception):
    """Weights do not need this name, which is the message."""


@dataclass(slots=True, frozen=True)
class Named:
    """A class or function of this name; never imported."""

    name: str


@dataclass(slots=True, frozen=True)
class Storage:
    """The values that one or more tensors share: `count` of them, from value `first` of the data under `key`."""

    key: str
    dtype: str
    count: int
    first: int = 0

    @property
    def nbytes(self) -> int:
        """How many bytes the values take."""
        return self.count * width(self.dtype)


@dataclass(slots=True, frozen=True)
class Tensor:
    """A tensor begins `offset` values after the begin of its storage; its strides are in values, too."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """How many bytes the tensor takes once it is read."""
        return prod(self.shape) * width(self.dtype)

    @property
    def begin(self) -> int:
        """The first byte, counted from the begin of the data under the storage's key."""
        return self.storage.first * width(self.storage.dtype) + self.offset * width(self.dtype)

    @property
    def span(self) -> int:
        """How many values the storage has from the tensor's first to its last one."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    @property
    def in_order(self) -> bool:
        """Whether the values are stored one after the other, as NumPy has them."""
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size > 1 and stride != step:
                return 0 in self.shape
            step *= size
        return True


@dataclass(slots=True, frozen=True)
class Unreadable:
    """A tensor that cannot become an array; `problem` says why."""

    problem: str


def width(dtype: str) -> int:
    """Bytes of one value. The quantized dtypes, which NumPy does not have, take one byte or four."""
    return numpy_dtype(dtype).itemsize if dtype in KNOWN_DTYPES else 4 if dtype == "qint32" else 1


def stored(identifier: Any, known: dict[str, Storage]) -> Any:
    """The storage of a persistent identifier, which is added to the known ones; or the class of a whole module."""
    if not isinstance(identifier, tuple) or not 4 <= len(identifier) <= 6:
        raise ValueError("it refers to something that is no storage")
    if identifier[0] == "module":
        return identifier[1]
    what, kind, key, _, count, *part = (*identifier, None)
    dtype = STORAGES.get(kind.name.rpartition(".")[2]) if isinstance(kind, Named) else None
    if what != "storage" or dtype is None or not isinstance(key, str) or not _are_sizes(count):
        raise ValueError("it refers to a storage of an unknown kind")
    storage = Storage(key, dtype, count)
    if known.setdefault(key, storage) != storage and count:  # PyTorch may give a key again to an empty storage
        raise ValueError(f"it has two different storages {key[:100]!r}")
    if not part or part[0] is None:
        return storage
    _, first, size = part[0]  # as PyTorch before 0.4 saved a part of a storage
    if not _are_sizes(first, size) or first + size > count:
        raise ValueError(f"it has a part of the storage {key[:100]!r} that ends beyond it")
    return Storage(key, dtype, size, first)


def _tensor(arguments: Arguments, dtype: str | None = None, metadata: Any = None) -> Tensor | Unreadable:
    """Storage, offset, shape and strides. Raises ValueError if the tensor would end beyond its storage."""
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ValueError("it has a tensor without storage, shape or strides")
    if len(shape) != len(strides) or len(shape) > MAX_RANK or not _are_sizes(offset, *shape, *strides):
        raise ValueError("it has a tensor of an impossible shape")
    tensor = Tensor(storage, dtype or storage.dtype, offset, shape, strides)
    if tensor.span and (offset + tensor.span) * width(tensor.dtype) > storage.nbytes:
        raise ValueError(f"it has a tensor that ends beyond its storage of {storage.nbytes:,} bytes")
    if tensor.dtype not in KNOWN_DTYPES:
        return Unreadable(f"has the dtype {tensor.dtype}, which NumPy does not have")
    if metadata:
        return Unreadable("is a conjugate or negative view")
    if tensor.nbytes > storage.nbytes:
        return Unreadable(f"claims {prod(shape):,} values, but stores fewer")
    return tensor


def _tensor_of_bytes(arguments: Arguments) -> Tensor | Unreadable:
    """A tensor whose storage is of bytes. Its dtype is named after requires_grad and the hooks."""
    return _tensor(arguments, _dtype(arguments[6:7]), arguments[7:8])


def _tensor_of_class(arguments: Arguments) -> Any:
    """A tensor with attributes, or of a subclass: a function, the class, the function's arguments, the attributes."""
    function, kind, inner, _ = arguments
    if not isinstance(kind, Named) or not isinstance(function, Named) or not isinstance(inner, tuple):
        raise ValueError("it has a tensor of no class")
    if kind.name not in PLAIN_CLASSES:
        return Unreadable(f"is sparse or of a subclass of Tensor ({kind.name})")
    if TENSORS.get(function.name, _tensor_of_class) is _tensor_of_class:
        raise ForbiddenError(function.name)
    return TENSORS[function.name](inner)


def _tensor_moved(arguments: Arguments) -> Any:
    """A tensor in the CPU's memory, and the dtype that it has on its own device."""
    tensor, dtype = arguments[0], _dtype(arguments[1:2])
    if not isinstance(tensor, Tensor):
        return Unreadable("is an array of NumPy")
    return tensor if tensor.dtype == dtype else Unreadable(f"has the dtype {dtype}, but values of {tensor.dtype}")


def _dtype(names: Arguments) -> str:
    if not names or not isinstance(names[0], Named):
        raise ValueError("it has a tensor without a dtype")
    return names[0].name.removeprefix("torch.")


def _are_sizes(*numbers: Any) -> bool:
    return all(type(n) is int and 0 <= n < 2**63 for n in numbers)


def _first(arguments: Arguments) -> Any:
    return arguments[0]


def _unreadable(problem: str) -> Callable[[Arguments], Unreadable]:
    return lambda arguments: Unreadable(problem)


TENSORS: dict[str, Callable[[Arguments], Any]] = {
    "torch.Size": _first,
    "torch._tensor._rebuild_from_type_v2": _tensor_of_class,
} | {
    f"torch._utils._rebuild_{name}": rebuild
    for name, rebuild in {
        "tensor": _tensor,
        "tensor_v2": lambda arguments: _tensor(arguments, None, arguments[6:7]),  # after requires_grad and hooks
        "tensor_v3": _tensor_of_bytes,
        "qtensor": _tensor,
        "parameter": _first,
        "parameter_with_state": _first,
        "meta_tensor_no_storage": _unreadable("is on the device meta, without its values"),
        "sparse_tensor": _unreadable("is sparse or of a subclass of Tensor"),
        "nested_tensor": _unreadable("is sparse or of a subclass of Tensor"),
        "wrapper_subclass": _unreadable("is sparse or of a subclass of Tensor"),
        "device_tensor_from_cpu_tensor": _tensor_moved,
        "device_tensor_from_numpy": _tensor_moved,
        "xla_tensor": _tensor_moved,
    }.items()
}

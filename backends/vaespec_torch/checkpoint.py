"""Files that torch.save wrote, read without running anything that is in them."""

from __future__ import annotations

import mmap
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaespec.errors import WeightFileError
from vaespec.weights.containers.tensor_file import (
    ML_DTYPES,
    NUMPY_DTYPES,
    State,
    TensorFile,
    damaged,
    numpy_dtype,
    opened,
    require_unchanged,
    state_of,
)

ZIP, LEGACY = "PyTorch zip", "PyTorch legacy pickle"
FORBIDDEN = re.compile(r"(?:Unsupported global: GLOBAL|unsupported GLOBAL) (\S+)")
WRAPPERS = ("model", "module", "params", "params_ema", "ema", "model_ema", "state_dict_ema")

# What training left in real checkpoints beside the weights: it is read as nothing.
HARMLESS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.early_stopping.EarlyStopping",
    "numpy.core.multiarray.scalar",  # the best score of a ModelCheckpoint
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)


class Inert:
    """Stands for an object of HARMLESS: takes whatever is given to it and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> Inert:
        """As of a class without arguments."""
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        """Keeps nothing."""


class Checkpoint(TensorFile):
    """The tensors of a checkpoint, which stay in the file (zip) or in memory (legacy) until they are asked for."""

    def __init__(self, path: Path, kind: str, tensors: Mapping[str, Tensor], state: State) -> None:
        self.path, self.kind, self.metadata, self._tensors, self._state = path, kind, {}, tensors, state

    def shape(self, name: str) -> tuple[int, ...]:
        """From the pickle."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> str:
        """From the pickle; torch's names are NumPy's and ml_dtypes'."""
        return _dtype(self._tensors[name])

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        with opened(self.path) as file:  # a map of a file that was cut would end the process
            require_unchanged(self.path, file, self._state)
        array = np.empty(tuple(tensor.shape), numpy_dtype(_dtype(tensor)))
        word = f"int{8 * array.itemsize}"  # NumPy's bfloat16 and PyTorch's know each other only as bits
        if array.itemsize <= 8:
            torch.from_numpy(array.view(word)).copy_(tensor.view(getattr(torch, word)))
        else:
            torch.from_numpy(array).copy_(tensor)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a zip or legacy file. WeightFileError names what is forbidden or wrong in it; none of its code is run."""
    with opened(path) as file:
        kind, state = ZIP if file.read(2) == b"PK" else LEGACY, state_of(file)
        size = os.fstat(file.fileno()).st_size
    if kind == ZIP:
        _require_plain_zip(path, size)
    tensors = _flat(_unnested(_loaded(path, kind)))
    if not tensors:
        raise WeightFileError(f"{path} is a {kind} without tensors: give a checkpoint with weights.")
    for name, tensor in tensors.items():
        if problem := _problem(tensor):
            raise WeightFileError(f"{path}: tensor {name} {problem}; save it as a plain tensor.")
    claimed = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    if claimed > 2 * size:  # not 1: some models have one tensor under two names
        raise damaged(path, kind, f"its tensors take {claimed:,} bytes, the file {size:,}")
    return Checkpoint(path, kind, tensors, state)


def _require_plain_zip(path: Path, size: int) -> None:
    """WeightFileError unless the zip is one of PyTorch's, which compresses nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise damaged(path, ZIP, error) from None
    if not any(entry.filename.endswith("/data.pkl") for entry in entries):
        raise WeightFileError(f"{path} is a zip archive, but none of PyTorch's: unpack it, give the file in it.")
    if sum(entry.file_size for entry in entries) > size:
        raise damaged(path, ZIP, "it is compressed, which PyTorch's files never are")


def _loaded(path: Path, kind: str) -> Any:
    """The content. torch refuses a tensor that would make its storage grow beyond what is in the file."""
    inert: Any = [(Inert, name) for name in HARMLESS]
    try:
        with torch.serialization.safe_globals(inert), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about storages
            if kind == ZIP:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                # A map gives no more than there is; from a file, a pickle may ask for any amount, and gets the memory.
                return torch.load(content, map_location="cpu", weights_only=True)  # type: ignore[arg-type]
    except Exception as error:  # a damaged pickle makes torch raise anything
        if forbidden := FORBIDDEN.search(str(error)):
            raise WeightFileError(
                f"{path} asks for {forbidden[1]}, which weights have no need of: it was refused, and none of its code "
                "was run; get the weights as .safetensors."
            ) from None
        raise damaged(path, kind, _reason(error)) from None


def _reason(error: Exception) -> str:
    """torch's reason in a line, without its advice to trust the file."""
    reason = str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    return reason.splitlines()[0][:200].rstrip(".")


def _unnested(content: Any) -> Any:
    """What is in `state_dict`, else in the one wrapper that holds tensors, else everything."""
    if not isinstance(content, Mapping):
        return content
    if isinstance(content.get("state_dict"), Mapping):
        return content["state_dict"]
    wrapped = [content[key] for key in WRAPPERS if _flat(content.get(key))]
    bare = any(isinstance(value, Tensor) for value in content.values())
    return wrapped[0] if len(wrapped) == 1 and not bare else content


def _flat(content: Any) -> dict[str, Tensor]:
    """The tensors under a mapping, with their names; lists and other objects hold no weights."""
    found: dict[str, Tensor] = {}
    waiting, seen = [("", content)], set()
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, Tensor) and name:
            found[name] = node.detach()
        elif isinstance(node, Mapping) and id(node) not in seen:  # each once: a mapping may hold itself
            seen.add(id(node))
            inner = [(f"{name}.{key}" if name else key, value) for key, value in node.items() if isinstance(key, str)]
            waiting += inner[::-1]
    return found


def _problem(tensor: Tensor) -> str | None:
    """Why this tensor is no array."""
    if tensor.layout != torch.strided or type(tensor) is not Tensor:
        return "is sparse or of a class of its own"
    if tensor.device.type != "cpu":
        return f"is on the device {tensor.device.type}, without its values"
    if _dtype(tensor) not in NUMPY_DTYPES | ML_DTYPES:
        return f"is of {_dtype(tensor)}, which NumPy cannot have"
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        return f"claims {tensor.numel():,} values, but stores fewer"
    return None


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

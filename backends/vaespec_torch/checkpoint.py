"""Files that torch.save wrote, read without running any code in them."""

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

from vaespec.dtypes import KNOWN_DTYPES, numpy_dtype
from vaespec.errors import WeightFileError
from vaespec.weights.containers.tensor_file import State, TensorFile, damaged, opened, require_unchanged, state_of

ZIP, LEGACY = "PyTorch zip", "PyTorch legacy pickle"
FORBIDDEN = re.compile(r"(?:Unsupported global: GLOBAL|unsupported GLOBAL) (\S+)")
WRAPPERS = ("model", "module", "params", "params_ema", "ema", "model_ema", "state_dict_ema")

# Classes of objects that training left in real checkpoints beside the weights; each is read as `Inert`.
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
    """Replaces an object of a class in HARMLESS: accepts any arguments and state, and keeps nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> Inert:
        """Ignores the arguments."""
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        """Ignores the state."""


class Checkpoint(TensorFile):
    """The tensors of a checkpoint, which stay in the file (zip) or in memory (legacy) until they are indexed."""

    def __init__(self, path: Path, kind: str, tensors: Mapping[str, Tensor], state: State) -> None:
        self.path, self.kind, self.metadata, self._tensors, self._state = path, kind, {}, tensors, state

    def shape(self, name: str) -> tuple[int, ...]:
        """From the pickle."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> str:
        """From the pickle; torch uses the names of NumPy and ml_dtypes."""
        return _dtype(self._tensors[name])

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        with opened(self.path) as file:  # reading a memory map of a truncated file would end the process
            require_unchanged(self.path, file, self._state)
        array = np.empty(tuple(tensor.shape), numpy_dtype(_dtype(tensor)))
        word = f"int{8 * array.itemsize}"  # neither library converts the other's bfloat16, so bits are copied
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
    """Open a zip or legacy file and run none of its code. Raises WeightFileError for wrong or forbidden content."""
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
    if claimed > 2 * size:  # twice: some models have one tensor under two names
        raise damaged(path, kind, f"its tensors take {claimed:,} bytes, the file {size:,}")
    return Checkpoint(path, kind, tensors, state)


def _require_plain_zip(path: Path, size: int) -> None:
    """Raises WeightFileError unless PyTorch wrote this zip archive; PyTorch never compresses."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise damaged(path, ZIP, error) from None
    if not any(entry.filename.endswith("/data.pkl") for entry in entries):
        raise WeightFileError(f"{path} is a zip archive, but not of PyTorch: unpack it and give the file inside.")
    if sum(entry.file_size for entry in entries) > size:
        raise damaged(path, ZIP, "it is compressed, which PyTorch's files never are")


def _loaded(path: Path, kind: str) -> Any:
    """The unpickled content. torch refuses a tensor that is larger than its storage in the file."""
    inert: Any = [(Inert, name) for name in HARMLESS]
    try:
        with torch.serialization.safe_globals(inert), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about storages
            if kind == ZIP:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                # A memory map is never larger than the file; reading from a file, a pickle can allocate any amount.
                return torch.load(content, map_location="cpu", weights_only=True)  # type: ignore[arg-type]
    except Exception as error:  # a damaged pickle makes torch raise anything
        if forbidden := FORBIDDEN.search(str(error)):
            raise WeightFileError(
                f"{path} refers to {forbidden[1]}, which weights do not need: it was refused, and none of its code "
                "was run; get the weights as .safetensors."
            ) from None
        raise damaged(path, kind, _reason(error)) from None


def _reason(error: Exception) -> str:
    """torch's reason in one line, without its advice to trust the file."""
    reason = str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    return reason.splitlines()[0][:200].rstrip(".")


def _unnested(content: Any) -> Any:
    """The value of `state_dict`, else of the only wrapper with tensors in it, else the whole content."""
    if not isinstance(content, Mapping):
        return content
    if isinstance(content.get("state_dict"), Mapping):
        return content["state_dict"]
    wrapped = [content[key] for key in WRAPPERS if _flat(content.get(key))]
    bare = any(isinstance(value, Tensor) for value in content.values())
    return wrapped[0] if len(wrapped) == 1 and not bare else content


def _flat(content: Any) -> dict[str, Tensor]:
    """The tensors in nested mappings, with names joined by dots; lists and other objects are skipped."""
    tensors: dict[str, Tensor] = {}
    waiting, seen = [("", content)], set()
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, Tensor) and name:
            tensors[name] = node.detach()
        elif isinstance(node, Mapping) and id(node) not in seen:  # each once: a mapping may contain itself
            seen.add(id(node))
            inner = [(f"{name}.{key}" if name else key, value) for key, value in node.items() if isinstance(key, str)]
            waiting += inner[::-1]
    return tensors


def _problem(tensor: Tensor) -> str | None:
    """Why this tensor cannot become a NumPy array; None if it can."""
    if tensor.layout != torch.strided or type(tensor) is not Tensor:
        return "is sparse or of a subclass of Tensor"
    if tensor.device.type != "cpu":
        return f"is on the device {tensor.device.type}, without its values"
    if _dtype(tensor) not in KNOWN_DTYPES:
        return f"has the dtype {_dtype(tensor)}, which NumPy does not have"
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        return f"claims {tensor.numel():,} values, but stores fewer"
    return None


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

"""The table of containers, and opening a file by its first bytes: its name may be wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vaespec.errors import BackendError, WeightFileError
from vaespec.registry import backends, get_backend
from vaespec.weights.containers.container import Container
from vaespec.weights.containers.flax import MSGPACK
from vaespec.weights.containers.gguf import GGUF
from vaespec.weights.containers.npz import NPZ
from vaespec.weights.containers.pytorch import PYTORCH_LEGACY, PYTORCH_ZIP
from vaespec.weights.containers.quantized import dequantized
from vaespec.weights.containers.safetensors import SAFETENSORS
from vaespec.weights.containers.shards import Shards, read_index
from vaespec.weights.containers.strangers import stranger
from vaespec.weights.containers.tensor_file import TensorFile, memory_for, opened

# safetensors comes first: the length it begins with may look like another container's magic.
# NPZ comes before PyTorch's archives, which are all other zip archives.
CONTAINERS = (SAFETENSORS, GGUF, MSGPACK, NPZ, PYTORCH_ZIP, PYTORCH_LEGACY)

START = 512  # bytes by which a container is recognized
MAX_NAME = 1000  # characters


def open_tensors(path: Path) -> TensorFile:
    """Open a file of tensors in any container, or an index of shards; linear maps that MLX quantized read as floats.

    Raises WeightFileError that says what the file is instead, what is wrong with it, or what to install.
    """
    with memory_for(path):
        start = _start(path)
        if SAFETENSORS.begins(start) or not start.lstrip().startswith(b"{"):
            return _named(dequantized(_open(path)))
        index = read_index(path)
        files = sorted(set(index.values()))
        if lacking := [file for file in files if not os.path.exists(path.parent / file)]:
            raise WeightFileError(f"{path} names the shard {lacking[0]}, which is not beside it: download it too.")
        return _named(dequantized(Shards(path, index, {file: _open(path.parent / file) for file in files})))


def suffixes() -> tuple[str, ...]:
    """The suffixes of all containers: those of CONTAINERS, then those that only a framework reads."""
    known = (*CONTAINERS, *(container for container, _ in _backend_containers()))
    return tuple(dict.fromkeys(suffix for container in known for suffix in container.suffixes))


def _open(path: Path) -> TensorFile:
    start = _start(path)
    for container in CONTAINERS:
        if container.begins(start):
            return container.open(path)
    unusable = None
    for container, problem in _backend_containers():
        if container.begins(start):
            if problem is None:
                return container.open(path)
            unusable = f"{path} is a {container.name} file: {problem.rstrip('.')}, or convert it to .safetensors."
    raise WeightFileError(unusable) if unusable else stranger(path, start, path.stat().st_size, suffixes())


def _named(file: TensorFile) -> TensorFile:
    """The file itself. Raises WeightFileError if it has a name that no error could repeat."""
    if (longest := max(map(len, file), default=0)) > MAX_NAME:
        raise WeightFileError(
            f"{file.path} has a tensor whose name has {longest:,} characters, the limit is {MAX_NAME:,}: rename it."
        )
    return file


def _backend_containers() -> Iterator[tuple[Container, str | None]]:
    """The containers of every backend, each with the reason why its framework cannot be used, if there is one."""
    for info in backends():
        with suppress(BackendError):  # a broken plugin raises when it is requested by name
            for container in getattr(get_backend(info.name), "containers", ()):
                yield container, info.problem


def _start(path: Path) -> bytes:
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size  # 0 for a file of the system, whose first byte may be waited for
        return os.pread(file.fileno(), min(START, size), 0)

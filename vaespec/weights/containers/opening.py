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
from vaespec.weights.containers.pytorch import PYTORCH_LEGACY, PYTORCH_ZIP
from vaespec.weights.containers.quantized import dequantized
from vaespec.weights.containers.safetensors import SAFETENSORS
from vaespec.weights.containers.shards import Shards, read_index
from vaespec.weights.containers.tensor_file import TensorFile, opened

# safetensors comes first: the length it begins with may look like another container's magic.
CONTAINERS = (SAFETENSORS, GGUF, MSGPACK, PYTORCH_ZIP, PYTORCH_LEGACY)

START = 64  # bytes by which a container is recognized

# Beginnings of files that hold no weights, and what to do about them.
NO_WEIGHTS = {
    b"version https://git-lfs": "a git-lfs pointer, not the file itself: run `git lfs pull`",
    b"<": "a web page: the download probably needs a login",
}


def open_tensors(path: Path) -> TensorFile:
    """Open a file of tensors in any container, or an index of shards; linear maps that MLX quantized read as floats.

    Raises WeightFileError that says what the file is instead, what is wrong with it, or what to install.
    """
    start = _start(path)
    if SAFETENSORS.begins(start) or not start.lstrip().startswith(b"{"):
        return dequantized(_open(path))
    index = read_index(path)
    files = sorted(set(index.values()))
    if lacking := [file for file in files if not (path.parent / file).exists()]:
        raise WeightFileError(f"{path} names the shard {lacking[0]}, which is not beside it: download it too.")
    return dequantized(Shards(path, index, {file: _open(path.parent / file) for file in files}))


def suffixes() -> tuple[str, ...]:
    """The suffixes of all containers: those of CONTAINERS, then those that only a framework reads."""
    known = (*CONTAINERS, *(container for container, _ in _backend_containers()))
    return tuple(dict.fromkeys(suffix for container in known for suffix in container.suffixes))


def _open(path: Path) -> TensorFile:
    start = _start(path)
    for container in CONTAINERS:
        if container.begins(start):
            return container.open(path)
    for magic, description in NO_WEIGHTS.items():
        if start.lstrip().startswith(magic):
            raise WeightFileError(f"{path} is {description}.")
    message = (
        f"{path} ({path.stat().st_size} bytes) does not begin like a file of weights: expected the content of "
        f"{', '.join(suffixes())}."
    )
    for container, problem in _backend_containers():
        if container.begins(start):
            if problem is None:
                return container.open(path)
            message = f"{path} is a {container.name} file: {problem.rstrip('.')}, or convert it to .safetensors."
    raise WeightFileError(message)


def _backend_containers() -> Iterator[tuple[Container, str | None]]:
    """The containers of every backend, each with the reason why its framework cannot be used, if there is one."""
    for info in backends():
        with suppress(BackendError):  # a broken plugin raises when it is requested by name
            for container in getattr(get_backend(info.name), "containers", ()):
                yield container, info.problem


def _start(path: Path) -> bytes:
    with opened(path) as file:
        return os.pread(file.fileno(), START, 0)

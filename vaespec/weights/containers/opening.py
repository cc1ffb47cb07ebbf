"""Which container a file is, by its first bytes: names lie."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from vaespec.errors import BackendError, WeightFileError
from vaespec.registry import backends, get_backend
from vaespec.weights.containers.flax import begins_msgpack, open_msgpack
from vaespec.weights.containers.gguf import open_gguf
from vaespec.weights.containers.quantised import dequantised
from vaespec.weights.containers.safetensors import begins_safetensors, open_safetensors
from vaespec.weights.containers.shards import Shards, read_index
from vaespec.weights.containers.tensor_file import TensorFile, opened

START = 64  # bytes that are looked at

# What files that hold no weights begin with, and what to do about them.
NO_WEIGHTS = {
    b"version https://git-lfs": "a git-lfs pointer, not the file itself: run `git lfs pull`",
    b"<": "a web page: the download probably needs a login",
}


def open_tensors(path: Path) -> TensorFile:
    """Open a file of tensors, whatever container it is; linear maps that MLX made a few bits wide come as floats.

    WeightFileError tells what the file is instead, what is wrong with it, or what to install to read it.
    """
    start = _start(path)
    if not begins_safetensors(start) and start.lstrip().startswith(b"{"):
        index = read_index(path)
        files = sorted(set(index.values()))
        if lacking := [file for file in files if not (path.parent / file).exists()]:
            raise WeightFileError(f"{path} names the shard {lacking[0]}, which is not beside it: download it too.")
        return dequantised(Shards(path, index, {file: _open(path.parent / file) for file in files}))
    return dequantised(_open(path))


def _open(path: Path) -> TensorFile:
    """One file that holds tensors itself."""
    start = _start(path)
    if begins_safetensors(start):  # first: a length may look like the magic of others
        return open_safetensors(path)
    for magic, what in NO_WEIGHTS.items():
        if start.lstrip().startswith(magic):
            raise WeightFileError(f"{path} is {what}.")
    if start.startswith(b"GGUF"):
        return open_gguf(path)
    if begins_msgpack(start):
        return open_msgpack(path)
    if (file := _open_by_backend(path, start)) is not None:
        return file
    raise WeightFileError(
        f"{path} ({path.stat().st_size} bytes) does not begin like a file of weights: .safetensors, PyTorch's .ckpt, "
        ".pt and .bin, Flax's .msgpack and .gguf can be read."
    )


def _open_by_backend(path: Path, start: bytes) -> TensorFile | None:
    """By the backend that declares containers that begin like this; None if there is none."""
    problem = None
    for info in backends():
        with suppress(BackendError):  # a broken plugin is told to whoever asks for it by name
            backend = get_backend(info.name)
            for magic, what in getattr(backend, "containers", {}).items():
                if not start.startswith(magic):
                    continue
                if info.available:
                    file: TensorFile = backend.open_tensors(path)  # type: ignore[attr-defined]
                    return file
                problem = f"{path} is a {what}: {str(info.problem)[:-1]}, or convert the file to .safetensors."
    if problem is not None:
        raise WeightFileError(problem)
    return None


def _start(path: Path) -> bytes:
    with opened(path) as file:
        return os.pread(file.fileno(), START, 0)

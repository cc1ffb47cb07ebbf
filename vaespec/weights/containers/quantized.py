"""Quantized weights: MLX's linear maps of a few bits, which are read as floats, and others, which are refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from vaespec.dtypes import numpy_dtype
from vaespec.errors import WeightFileError
from vaespec.weights.containers.tensor_file import TensorFile

GROUP = 64  # values that share a scale and a bias, in MLX and mflux
BITS = (2, 4, 8)  # divisors of 32, so that no value crosses a word
FLOATS = {"float32", "float16", "bfloat16"}
SCALED = ("scale_weight", "weight_scale", "input_scale")  # tensors beside a weight in ComfyUI's scaled float8


class Dequantized(TensorFile):
    """A file whose linear maps MLX quantized, read as floats in the dtype of their scales.

    `file` has X.weight (O, I·bits/32) of uint32, X.scales and X.biases (O, I/64); this view has X.weight (O, I) alone.
    """

    def __init__(self, file: TensorFile) -> None:
        self.path, self.kind, self.metadata, self._file = file.path, file.kind, file.metadata, file
        self._layers = {f"{layer}.weight": layer for layer in _layers(file)}
        for layer in self._layers.values():
            _bits(file, layer)
        hidden = {f"{layer}.{part}" for layer in self._layers.values() for part in ("scales", "biases")}
        self._names = {name: None for name in file if name not in hidden}

    def shape(self, name: str) -> tuple[int, ...]:
        """From the header; the shape of the floats."""
        if name not in self._layers:
            return self._file.shape(self._known(name))
        rows, groups = self._file.shape(f"{self._layers[name]}.scales")
        return rows, groups * GROUP

    def dtype(self, name: str) -> str:
        """From the header; for a quantized weight the dtype of its scales."""
        return self._file.dtype(f"{self._layers[name]}.scales" if name in self._layers else self._known(name))

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._layers:
            return self._file[self._known(name)]
        layer = self._layers[name]
        words, scales, biases = self._file[name], self._file[f"{layer}.scales"], self._file[f"{layer}.biases"]
        return dequantize(words, scales, biases, _bits(self._file, layer))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _known(self, name: str) -> str:
        if name not in self._names:
            raise KeyError(name)
        return name


def dequantized(file: TensorFile) -> TensorFile:
    """The file itself, or a view of it as floats if MLX quantized any of its linear maps."""
    return Dequantized(file) if any(_layers(file)) else file


def dequantize(words: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int) -> np.ndarray:
    """w = scale · q + bias; value i of a word is stored in its bits from i·bits on.

    words (O, I·bits/32) of uint32, scales and biases (O, I/64) -> (O, I), computed in the dtype of the scales.
    """
    O, groups = scales.shape
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    q = (words[..., None] >> shifts) & np.uint32(2**bits - 1)
    w = q.reshape(O, groups, GROUP).astype(scales.dtype) * scales[..., None] + biases[..., None]
    return w.reshape(O, groups * GROUP)


def quantize(w: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantize as MLX does: zero and, per group, the extreme of larger magnitude are exact; `dequantize` undoes it.

    w (O, I), I divisible by 64 -> words (O, I·bits/32), scales and biases (O, I/64) of the dtype of w.
    """
    O, I = w.shape
    groups, most = w.reshape(O, I // GROUP, GROUP).astype(np.float32), np.float32(2**bits - 1)
    low, high = groups.min(-1), groups.max(-1)
    down = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / most, np.float32(1e-7)) * np.where(down, np.float32(1), np.float32(-1))
    edge = np.where(down, low, high)
    steps = np.rint(edge / scale)
    scale = np.where(steps != 0, edge / np.where(steps != 0, steps, 1), scale)
    bias = np.where(steps != 0, edge, np.float32(0))
    q = np.clip(np.rint((groups - bias[..., None]) / scale[..., None]), 0, most).astype(np.uint32)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    words = np.bitwise_or.reduce(q.reshape(O, -1, 32 // bits) << shifts, axis=-1)
    return words, scale.astype(w.dtype), bias.astype(w.dtype)


def require_plain(file: TensorFile, names: Iterable[str]) -> None:
    """Raises WeightFileError if one of these tensors is no plain float; reads none."""
    if problem := plain_problem(file, names):
        raise WeightFileError(problem)


def plain_problem(file: TensorFile, names: Iterable[str]) -> str | None:
    """Why the first tensor that is no plain float is refused; None if all are plain. 0-d integers are counters."""
    for name in names:
        dtype, layer = file.dtype(name), name.rpartition(".")[0]
        if numpy_dtype(dtype).kind == "c":
            return f"{file.path}: tensor {name} holds complex numbers ({dtype}): save its real part."
        if numpy_dtype(dtype).kind in "iub" and file.shape(name):
            return (
                f"{file.path}: tensor {name} holds integers ({dtype}): quantized weights of an unknown scheme; "
                "take the file they were made from."
            )
        if scale := next((key for key in SCALED if f"{layer}.{key}" in file), None):
            return (
                f"{file.path}: tensor {name} is {dtype} with a scale ({layer}.{scale}), which cannot be read: "
                "take the file it was made from."
            )
    return None


def _layers(file: TensorFile) -> Iterator[str]:
    """Yields the names of the linear maps that MLX quantized."""
    for name in file:
        layer = name.removesuffix(".weight")
        if layer != name and f"{layer}.scales" in file and f"{layer}.biases" in file and file.dtype(name) == "uint32":
            yield layer


def _bits(file: TensorFile, layer: str) -> int:
    """How many bits a value has, by the shapes. Raises WeightFileError if they do not agree."""
    words, scales, biases = (file.shape(f"{layer}.{part}") for part in ("weight", "scales", "biases"))
    dtypes = {file.dtype(f"{layer}.{part}") for part in ("scales", "biases")}
    if len(words) == len(scales) == 2 and biases == scales and len(dtypes) == 1 and dtypes <= FLOATS:
        for bits in BITS:
            if words == (scales[0], scales[1] * GROUP * bits // 32):
                return bits
    raise WeightFileError(
        f"{file.path}: {layer} is not quantized as MLX does, to {BITS} bits in groups of {GROUP}: weight {words}, "
        f"scales {scales}, biases {biases} of {' and '.join(sorted(dtypes))}; take the file it was made from."
    )

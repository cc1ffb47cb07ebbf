"""Weights that are not plain floats: MLX's few bits, which can be undone exactly, and others, which are refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from vaespec.errors import WeightFileError
from vaespec.weights.containers.tensor_file import TensorFile, numpy_dtype

GROUP = 64  # values that share a scale and a bias, in MLX and mflux
BITS = (2, 4, 8)  # of which a word of 32 bits holds a whole number
FLOATS = {"float32", "float16", "bfloat16"}
SCALED = ("scale_weight", "weight_scale", "input_scale")  # ComfyUI's float8, beside the weight


class Dequantised(TensorFile):
    """`file` with the linear maps that MLX made a few bits wide as floats, in the dtype of their scales.

    Such a map has X.weight (O, I·bits/32) of uint32, X.scales and X.biases (O, I/64): here X.weight (O, I) alone.
    """

    def __init__(self, file: TensorFile) -> None:
        self.path, self.kind, self.metadata, self._file = file.path, file.kind, file.metadata, file
        self._layers = {f"{layer}.weight": layer for layer in _layers(file)}
        for layer in self._layers.values():
            _bits(file, layer)
        hidden = {f"{layer}.{part}" for layer in self._layers.values() for part in ("scales", "biases")}
        self._names = {name: None for name in file if name not in hidden}

    def shape(self, name: str) -> tuple[int, ...]:
        """From the header, at full width."""
        if name not in self._layers:
            return self._file.shape(self._known(name))
        rows, groups = self._file.shape(f"{self._layers[name]}.scales")
        return rows, groups * GROUP

    def dtype(self, name: str) -> str:
        """From the header; that of the scales for a weight of a few bits."""
        return self._file.dtype(f"{self._layers[name]}.scales" if name in self._layers else self._known(name))

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._layers:
            return self._file[self._known(name)]
        layer = self._layers[name]
        words, scales, biases = self._file[name], self._file[f"{layer}.scales"], self._file[f"{layer}.biases"]
        return dequantise(words, scales, biases, _bits(self._file, layer))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _known(self, name: str) -> str:
        if name not in self._names:
            raise KeyError(name)
        return name


def dequantised(file: TensorFile) -> TensorFile:
    """The file itself, or, if it has linear maps that MLX quantised, a view of it as floats."""
    return Dequantised(file) if any(_layers(file)) else file


def dequantise(words: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int) -> np.ndarray:
    """w = scale · q + bias; value i of a word is its bits from i·bits on.

    words (O, I·bits/32) of uint32, scales and biases (O, I/64) -> (O, I), dtype and rounding of the scales.
    """
    O, groups = scales.shape
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    q = (words[..., None] >> shifts) & np.uint32(2**bits - 1)
    w = q.reshape(O, groups, GROUP).astype(scales.dtype) * scales[..., None] + biases[..., None]
    return w.reshape(O, groups * GROUP)


def quantise(w: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MLX's way: per group the end of larger magnitude is met exactly, and so is zero; `dequantise` undoes it.

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
    """WeightFileError names the first of these tensors that is no plain float; nothing is read. 0-d are counters."""
    for name in names:
        dtype = file.dtype(name)
        if numpy_dtype(dtype).kind in "iub" and file.shape(name):
            raise WeightFileError(
                f"{file.path}: tensor {name} holds integers ({dtype}): quantised weights, in a way that is not known; "
                "take the file they were made from."
            )
        layer = name.rpartition(".")[0]
        if scale := next((key for key in SCALED if f"{layer}.{key}" in file), None):
            raise WeightFileError(
                f"{file.path}: tensor {name} is scaled {dtype} (it has {layer}.{scale}), which is not read: "
                "take the file it was made from."
            )


def _layers(file: TensorFile) -> Iterator[str]:
    """The linear maps that MLX has quantised."""
    for name in file:
        layer = name.removesuffix(".weight")
        if layer != name and f"{layer}.scales" in file and f"{layer}.biases" in file and file.dtype(name) == "uint32":
            yield layer


def _bits(file: TensorFile, layer: str) -> int:
    """How wide one value is, by the shapes; WeightFileError where they do not go together."""
    words, scales, biases = (file.shape(f"{layer}.{part}") for part in ("weight", "scales", "biases"))
    dtypes = {file.dtype(f"{layer}.{part}") for part in ("scales", "biases")}
    if len(words) == len(scales) == 2 and biases == scales and len(dtypes) == 1 and dtypes <= FLOATS:
        for bits in BITS:
            if words == (scales[0], scales[1] * GROUP * bits // 32):
                return bits
    raise WeightFileError(
        f"{file.path}: {layer} is not quantised as MLX does, to {BITS} bits in groups of {GROUP}: weight {words}, "
        f"scales {scales}, biases {biases} of {' and '.join(sorted(dtypes))}; take the file it was made from."
    )

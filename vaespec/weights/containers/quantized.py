"""Quantized weights: MLX's linear maps of a few bits, which are read as floats, and others, which are refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from vaespec.dtypes import numpy_dtype
from vaespec.errors import WeightFileError
from vaespec.weights.containers.tensor_file import TensorFile

GROUP = 64  # values that share a scale and a bias in the files that we write, as in MLX and mflux
BITS = (1, 2, 3, 4, 5, 6, 8)  # of a value, in MLX's mode "affine"
WORD = 32  # bits
FLOATS = {"float32", "float16", "bfloat16"}
SCALED = ("scale_weight", "weight_scale", "input_scale")  # tensors beside a weight in ComfyUI's scaled float8
MODES = {128: "mxfp4", 256: "mxfp8", 64: "nvfp4"}  # MLX's modes without biases, by the bits that share a scale

Shape = tuple[int, ...]


class Dequantized(TensorFile):
    """A file whose linear maps MLX quantized, read as floats in the dtype of their scales.

    `file` has X.weight (O, I·bits/32) of uint32, X.scales and X.biases (O, I/group); this view has X.weight (O, I)
    alone. The same shapes may be of few bits in large groups or of many bits in small ones: I tells them apart, which
    `inputs` has for each X.weight. For one that it lacks, the view takes I = O, or else groups of GROUP, if it can.
    """

    def __init__(self, file: TensorFile, inputs: Mapping[str, int] | None = None) -> None:
        self.path, self.kind, self.metadata, self._file = file.path, file.kind, file.metadata, file
        self._inputs = inputs or {}
        self._layers = {f"{layer}.weight": layer for layer in _layers(file)}
        hidden = {f"{layer}.{part}" for layer in self._layers.values() for part in ("scales", "biases")}
        self._names = {name: None for name in file if name not in hidden}

    def with_inputs(self, inputs: Mapping[str, int]) -> TensorFile:
        """A copy that knows how many inputs these linear maps have."""
        return Dequantized(self._file, inputs)

    def shape(self, name: str) -> Shape:
        """From the header; the shape of the floats."""
        if name not in self._layers:
            return self._file.shape(self._known(name))
        return self._file.shape(name)[0], self._width(name)

    def dtype(self, name: str) -> str:
        """From the header; for a quantized weight the dtype of its scales."""
        return self._file.dtype(f"{self._layers[name]}.scales" if name in self._layers else self._known(name))

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._layers:
            return self._file[self._known(name)]
        layer, inputs = self._layers[name], self._width(name)
        words, scales, biases = self._file[name], self._file[f"{layer}.scales"], self._file[f"{layer}.biases"]
        return dequantize(words, scales, biases, WORD * words.shape[1] // inputs)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _known(self, name: str) -> str:
        if name not in self._names:
            raise KeyError(name)
        return name

    def _width(self, name: str) -> int:
        """How many inputs a quantized layer has. Raises WeightFileError if its tensors are no quantized layer's."""
        words, scales = _require_affine(self._file, self._layers[name])
        asked = self._inputs.get(name)

        def likely(inputs: int) -> tuple[bool, bool, bool]:
            return inputs == asked, inputs == words[0], inputs == GROUP * scales[1]

        return max(_widths(words, scales), key=likely)


def dequantized(file: TensorFile) -> TensorFile:
    """The file itself, or a view of it as floats if MLX quantized any of its linear maps."""
    return Dequantized(file) if any(_layers(file)) else file


def with_inputs(file: TensorFile, inputs: Mapping[str, int]) -> TensorFile:
    """The file, whose quantized linear maps are read as maps of that many inputs (stored name -> inputs)."""
    return file.with_inputs(inputs) if isinstance(file, Dequantized) else file


def dequantize(words: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int) -> np.ndarray:
    """w = scale · q + bias; value i of a row is stored in its bits from i·bits on, and may cross into the next word.

    words (O, I·bits/32) of uint32, scales and biases (O, I/group) -> (O, I), computed in the dtype of the scales.
    """
    (O, groups), I = scales.shape, words.shape[1] * WORD // bits
    word, shift = np.divmod(np.arange(I) * bits, WORD)
    q = words[:, word] >> shift.astype(np.uint32)
    if (crossing := shift + bits > WORD).any():
        q[:, crossing] |= words[:, word[crossing] + 1] << (WORD - shift[crossing]).astype(np.uint32)
    q &= np.uint32(2**bits - 1)
    w = q.reshape(O, groups, I // groups).astype(scales.dtype) * scales[..., None] + biases[..., None]
    return w.reshape(O, I)


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
        if mode := _mode(file, layer):
            return (
                f"{file.path}: {layer} is quantized in MLX's mode {mode}, which cannot be read: take the file it was "
                'made from, or quantize it in the mode "affine".'
            )
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


def _mode(file: TensorFile, layer: str) -> str | None:
    """MLX's mode of a layer that has scales of 8 bits and no biases; None for any other layer."""
    weight, scales = f"{layer}.weight", f"{layer}.scales"
    if weight not in file or scales not in file or f"{layer}.biases" in file:
        return None
    words, groups = file.shape(weight), file.shape(scales)
    if (file.dtype(weight), file.dtype(scales)) != ("uint32", "uint8") or not groups or not groups[-1]:
        return None
    return MODES.get(WORD * words[-1] // groups[-1], "of another kind") if words else None


def _require_affine(file: TensorFile, layer: str) -> tuple[Shape, Shape]:
    """The shapes of words and scales. Raises WeightFileError if no number of bits explains them."""
    words, scales, biases = (file.shape(f"{layer}.{part}") for part in ("weight", "scales", "biases"))
    dtypes = {file.dtype(f"{layer}.{part}") for part in ("scales", "biases")}
    agree = len(words) == len(scales) == 2 and biases == scales and words[0] == scales[0] and scales[1] > 0
    if agree and len(dtypes) == 1 and dtypes <= FLOATS and any(_widths(words, scales)):
        return words, scales
    raise WeightFileError(
        f"{file.path}: {layer} is not quantized as MLX does, to {BITS} bits in equal groups: weight {words}, "
        f"scales {scales}, biases {biases} of {' and '.join(sorted(dtypes))}; take the file it was made from."
    )


def _widths(words: Shape, scales: Shape) -> list[int]:
    """The numbers of inputs that a layer of these shapes can have: one for each number of bits that is possible."""
    bits = WORD * words[1]
    return [bits // count for count in BITS if bits and bits % count == 0 and bits // count % scales[1] == 0]

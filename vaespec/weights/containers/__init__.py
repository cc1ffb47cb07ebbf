"""Files of named tensors in every format a VAE comes in: opened lazily, by their content, and never trusted."""

from vaespec.weights.containers.flax import write_msgpack
from vaespec.weights.containers.opening import open_tensors
from vaespec.weights.containers.quantised import Dequantised, quantise, require_plain
from vaespec.weights.containers.safetensors import write_safetensors
from vaespec.weights.containers.shards import read_index
from vaespec.weights.containers.tensor_file import TensorFile

__all__ = [
    "Dequantised",
    "TensorFile",
    "open_tensors",
    "quantise",
    "read_index",
    "require_plain",
    "write_msgpack",
    "write_safetensors",
]

"""Files of named tensors in every format a VAE comes in: opened lazily, by content, and never trusted."""

from vaespec.weights.containers.container import Container
from vaespec.weights.containers.flax import write_msgpack
from vaespec.weights.containers.opening import CONTAINERS, open_tensors, suffixes
from vaespec.weights.containers.quantized import plain_problem, quantize, require_plain
from vaespec.weights.containers.safetensors import HEADER_LIMIT, write_safetensors
from vaespec.weights.containers.shards import read_index
from vaespec.weights.containers.tensor_file import TensorFile

__all__ = [
    "CONTAINERS",
    "HEADER_LIMIT",
    "Container",
    "TensorFile",
    "open_tensors",
    "plain_problem",
    "quantize",
    "read_index",
    "require_plain",
    "suffixes",
    "write_msgpack",
    "write_safetensors",
]

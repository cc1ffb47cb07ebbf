"""Files of named tensors in every format a VAE comes in: opened lazily, by content, and never trusted."""

from vaespec.weights.containers.container import Container
from vaespec.weights.containers.flax import write_msgpack
from vaespec.weights.containers.opening import CONTAINERS, open_tensors, suffixes
from vaespec.weights.containers.quantized import plain_problem, quantize, require_plain, with_inputs
from vaespec.weights.containers.safetensors import HEADER_LIMIT, write_safetensors
from vaespec.weights.containers.shards import read_index
from vaespec.weights.containers.strangers import strange_folder
from vaespec.weights.containers.tensor_file import TensorFile, memory_for

__all__ = [
    "CONTAINERS",
    "HEADER_LIMIT",
    "Container",
    "TensorFile",
    "memory_for",
    "open_tensors",
    "plain_problem",
    "quantize",
    "read_index",
    "require_plain",
    "strange_folder",
    "suffixes",
    "with_inputs",
    "write_msgpack",
    "write_safetensors",
]

"""Write goldens/flax.msgpack: what flax.serialization.to_bytes makes of files.tensors(), and of an array in pieces.

flax is no dependency of the tests: `pip install --no-deps --target DIR flax`, then run this with DIR on PYTHONPATH.
"""

from __future__ import annotations

import sys
from pathlib import Path

import flax
import numpy as np
from flax import serialization

sys.path.append(str(Path(__file__).parents[1]))
from support.weight_files import tensors

GOLDEN = Path(__file__).with_name("flax.msgpack")

if __name__ == "__main__":
    tree: dict = {"encoder": {"conv_in": {}}, "decoder": {"conv_in": {}}}
    for name, array in tensors().items():
        half, layer, leaf = name.split(".")
        tree[half][layer][leaf] = array
    tree["scalar"] = np.float32(0.5)
    tree["step"] = 7
    serialization.MAX_CHUNK_SIZE = 64  # bytes: so small that one array comes in pieces
    tree["pieces"] = np.arange(60, dtype=np.float32).reshape(3, 20)
    GOLDEN.write_bytes(serialization.to_bytes(tree))
    print(f"{GOLDEN}: {GOLDEN.stat().st_size} bytes, flax {flax.__version__}")

"""Small files of every container, written by the libraries whose formats they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import ml_dtypes
import msgpack
import numpy as np
import safetensors.numpy
import torch

Tensors = dict[str, np.ndarray]


def tensors() -> Tensors:
    """Tensors of several dtypes and ranks; no two are alike."""
    ramp = np.arange(60, dtype=np.float32) / 7
    return {
        "encoder.conv_in.weight": ramp.reshape(5, 4, 3, 1),
        "encoder.conv_in.bias": ramp[:5].astype(np.float16),
        "decoder.conv_in.weight": (1 - ramp).reshape(2, 30).astype(ml_dtypes.bfloat16),
    }


def torch_tensors(tensors: Tensors) -> dict[str, torch.Tensor]:
    """bfloat16 goes through float32, which holds it exactly."""
    return {
        name: torch.from_numpy(a.astype(np.float32)).bfloat16()
        if a.dtype == ml_dtypes.bfloat16
        else torch.from_numpy(a.copy())
        for name, a in tensors.items()
    }


def safetensors_file(folder: Path, tensors: Tensors) -> Path:
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder / "model.safetensors"


def zip_file(folder: Path, tensors: Tensors, **options: bool) -> Path:
    torch.save({"state_dict": torch_tensors(tensors), "epoch": 3}, folder / "model.ckpt", **options)
    return folder / "model.ckpt"


def legacy_file(folder: Path, tensors: Tensors) -> Path:
    return zip_file(folder, tensors, _use_new_zipfile_serialization=False)


def msgpack_file(folder: Path, tensors: Tensors) -> Path:
    """A file like that of flax.serialization.to_bytes; goldens/flax.msgpack is one that flax wrote."""
    tree: dict = {}
    for name, a in tensors.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = msgpack.ExtType(1, msgpack.packb((a.shape, a.dtype.name, a.tobytes())))
    (folder / "model.msgpack").write_bytes(msgpack.packb(tree, strict_types=True))
    return folder / "model.msgpack"


def npz_file(folder: Path, tensors: Tensors) -> Path:
    np.savez(folder / "model.npz", **tensors)
    return folder / "model.npz"


def packed_npz_file(folder: Path, tensors: Tensors) -> Path:
    np.savez_compressed(folder / "model.npz", **tensors)
    return folder / "model.npz"


def gguf_file(folder: Path, tensors: Tensors, quantized: dict[str, gguf.GGMLQuantizationType] | None = None) -> Path:
    writer = gguf.GGUFWriter(folder / "model.gguf", "vae")
    writer.add_array("general.tags", ["vae", "tiny"])
    for name, a in tensors.items():
        kind = (quantized or {}).get(name)
        if a.dtype == ml_dtypes.bfloat16:
            writer.add_tensor(name, a.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
        elif kind is None:
            writer.add_tensor(name, a)
        else:
            writer.add_tensor(name, gguf.quants.quantize(a, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


def sharded_file(folder: Path, tensors: Tensors) -> Path:
    """One tensor a shard, all beside the index."""
    files = {name: f"model-{i:05}-of-{len(tensors):05}.safetensors" for i, name in enumerate(tensors, start=1)}
    for name, file in files.items():
        safetensors.numpy.save_file({name: tensors[name]}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": files}))
    return index


WRITERS: dict[str, Callable[[Path, Tensors], Path]] = {
    "safetensors": safetensors_file,
    "shards": sharded_file,
    "torch-zip": zip_file,
    "torch-legacy": legacy_file,
    "msgpack": msgpack_file,
    "gguf": gguf_file,
    "npz": npz_file,
    "npz-packed": packed_npz_file,
}

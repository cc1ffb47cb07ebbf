"""The SHA-256 of weights: the same for the same numbers however they are stored, another for any other number."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator, Mapping

import gguf
import ml_dtypes
import numpy as np
import pytest
from support.configs import CONFIGS, drawn_weights, narrow
from support.oracle import diffusers_model
from support.weight_files import WRITERS, gguf_file

from vaespec import AutoencoderKL, parameters
from vaespec.weights import digest, load_file, load_folder, save_file
from vaespec.weights.dialects import DIALECTS
from vaespec.weights.inspect import inspect_weights

CONFIG = narrow((8, 16))


def drawn(dtype: str = "float32", config=CONFIG) -> dict[str, np.ndarray]:
    weights = drawn_weights({name: row.shape for name, row in parameters(config).items()})
    return {name: a.astype(dtype) if a.dtype.kind == "f" else a for name, a in weights.items()}


def test_the_digest_is_that_of_its_description():
    """Written again, for the state_dict of diffusers' own model."""
    theirs, lines = diffusers_model(CONFIG).float(), []
    for name, tensor in sorted(theirs.state_dict().items()):
        sides = " ".join(str(n) for n in tensor.shape)
        lines.append(f"{name} float32 {sides}\n".encode() + tensor.numpy().astype("<f4").tobytes())
    ours = AutoencoderKL(CONFIG, {name: t.numpy() for name, t in theirs.state_dict().items()}, backend="torch")
    assert digest(ours.weights()) == hashlib.sha256(b"".join(lines)).hexdigest()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ["sd", "flux2"])
def test_the_digest_is_the_same_in_every_dialect_and_layout(tmp_path, name, dialect):
    config = CONFIGS[name]
    path = tmp_path / f"model{DIALECTS[dialect].suffix}"
    save_file(path, config, drawn(config=config), dialect=dialect, prefix="" if dialect == "flax" else "vae.")
    assert digest(load_file(path, config)[1]) == digest(drawn(config=config))


@pytest.mark.parametrize("writer", WRITERS)
def test_the_digest_is_the_same_in_every_container(tmp_path, writer):
    assert digest(load_file(WRITERS[writer](tmp_path, drawn()), CONFIG)[1]) == digest(drawn())


def test_the_digest_is_the_same_in_a_folder_of_diffusers_and_in_its_shards(tmp_path):
    theirs = diffusers_model(CONFIG).float()
    for name, size in (("whole", "1GB"), ("shards", "20KB")):
        theirs.save_pretrained(tmp_path / name, max_shard_size=size)
    assert len(list((tmp_path / "shards").iterdir())) > 3
    expected = digest({name: tensor.numpy() for name, tensor in theirs.state_dict().items()})
    assert [digest(load_folder(tmp_path / name)[1]) for name in ("whole", "shards")] == [expected] * 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_one_bit_of_one_weight_changes_the_digest(dtype):
    weights = drawn(dtype)
    seen, draw = {digest(weights)}, np.random.default_rng(0)
    for name in list(weights)[::9]:
        raw = np.frombuffer(bytearray(weights[name].tobytes()), np.uint8)
        raw[draw.integers(raw.size)] ^= 1 << draw.integers(8)
        seen.add(digest(weights | {name: raw.view(weights[name].dtype).reshape(weights[name].shape)}))
    assert len(seen) == 1 + len(list(weights)[::9])


def test_the_digest_is_of_numbers_not_of_the_dtype_that_stores_them():
    half = drawn("float16")
    for wider in ("float32", "float64"):
        assert digest({name: a.astype(wider) for name, a in half.items()}) == digest(half)
    assert digest({name: a.astype(ml_dtypes.bfloat16) for name, a in half.items()}) != digest(half)
    assert len({digest(drawn(dtype)) for dtype in ("float16", "bfloat16", "float32", "float64")}) == 4
    assert digest({"a": np.float32([-0.0])}) != digest({"a": np.float32([0.0])})


def test_names_and_shapes_count_and_the_order_does_not():
    one, other = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    assert digest({"a": one, "b": other}) == digest({"b": other, "a": one})
    assert digest({"a": one, "b": other}) != digest({"a": other, "b": one})
    assert digest({"a": one}) != digest({"a": one.reshape(3, 2)})
    assert digest({"a": np.asfortranarray(np.arange(6.0).reshape(2, 3))}) == digest({"a": np.arange(6.0).reshape(2, 3)})
    third = np.float64([1 / 3])
    assert digest({"a": one.astype(">f4")}) == digest({"a": one})
    assert digest({"a": third.astype(">f8")}) == digest({"a": third}) != digest({"a": third.astype(np.float32)})


def test_the_digest_of_quantized_weights_is_that_of_what_they_dequantize_to(tmp_path):
    name = "encoder.mid_block.attentions.0.to_q.weight"
    config = narrow((32, 32))
    path = gguf_file(tmp_path, drawn(config=config), {name: gguf.GGMLQuantizationType.Q8_0})
    weights = load_file(path, config)[1]
    assert digest(weights) == digest(dict(weights)) != digest(drawn(config=config))


def test_the_count_of_batches_is_not_hashed():
    weights = drawn(config=CONFIGS["flux2"])
    del weights["bn.num_batches_tracked"]
    assert digest(weights) == digest(drawn(config=CONFIGS["flux2"]))


class Lent(Mapping):
    """Tensors of which at most a few may exist at once."""

    def __init__(self, names: int) -> None:
        self.names, self.alive, self.most = [f"t{i:02}" for i in range(names)], weakref.WeakValueDictionary(), 0

    def __getitem__(self, name: str) -> np.ndarray:
        self.alive[name] = array = np.full((64, 64), int(name[1:]), np.float16)
        self.most = max(self.most, len(self.alive))
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def test_tensors_are_read_one_at_a_time():
    lent = Lent(20)
    digest(lent)
    assert lent.most <= 2


def test_inspection_hashes_what_loading_returns_and_reads_nothing_if_not_asked(tmp_path, monkeypatch):
    save_file(path := tmp_path / "model.safetensors", CONFIG, drawn("float16"), dialect="ldm")
    assert inspect_weights(path, hashed=True).sha256 == digest(load_file(path)[1]) == digest(drawn("float16"))
    assert inspect_weights(path, check=True).sha256 == digest(drawn("float16"))
    monkeypatch.setattr("vaespec.weights.containers.tensor_file.StoredTensors.read", None)
    assert inspect_weights(path).sha256 is None

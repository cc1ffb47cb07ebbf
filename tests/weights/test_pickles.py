"""PyTorch's files: equal to torch.load, no code run, no more memory or time than the file deserves."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import functools
import mmap
import os
import pathlib
import pickle
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.depth import first
from support.weight_files import legacy_file, tensors, zip_file

from vaespec import WeightFileError
from vaespec.weights.containers import open_tensors, pickled, tensor_file

ONE = {"a.w": torch.arange(3.0)}
FORMATS = pytest.mark.parametrize("new", [True, False])
PROTOCOLS = range(2, 6)
DTYPES = "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 complex128 uint16 float8_e4m3fn"


def text(content: str) -> bytes:
    return b"X" + struct.pack("<I", len(content.encode())) + content.encode()


KEY = text("a")


def with_pickle(path: Path, content: bytes, new: bool = True) -> Path:
    """A file of PyTorch with this pickle, and no storages."""
    if new:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3\n")
    else:
        before = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {})]
        path.write_bytes(b"".join([*before, content, pickle.dumps([], 2)]))
    return path


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def assert_equal(path: Path, expected: dict[str, torch.Tensor]) -> None:
    file = open_tensors(path)
    assert list(file) == list(expected)
    for name, tensor in expected.items():
        assert (file.shape(name), file.dtype(name)) == (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        array = file[name]
        assert (array.shape, array.dtype.name) == (file.shape(name), file.dtype(name))
        assert array.tobytes() == bits(tensor), name


# -- what torch.load reads ---------------------------------------------------------------------------------------------


@st.composite
def state_dicts(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Tensors of every dtype: contiguous or not, scalar or empty, and some that share one storage."""
    state: dict[str, torch.Tensor] = {}
    for i in range(draw(st.integers(1, 4))):
        shape = draw(st.lists(st.integers(0, 4), max_size=4))
        dtype = getattr(torch, draw(st.sampled_from(DTYPES.split())))
        tensor = torch.arange(int(np.prod(shape, dtype=int)) + 3).to(dtype)[3:].reshape(shape)
        if len(shape) == 4 and draw(st.booleans()):
            tensor = tensor.to(memory_format=torch.channels_last)
        state[f"{draw(st.text(max_size=3))}.{i}"] = tensor.permute(draw(st.permutations(range(len(shape)))))
        if shape and shape[0] and draw(st.booleans()):
            state[f"part.{i}"] = tensor[:: draw(st.integers(1, 2))]
    return state


@given(state=state_dicts(), protocol=st.sampled_from(PROTOCOLS), new=st.booleans(), wrapped=st.booleans())
@settings(deadline=None)
def test_what_torch_saves_is_what_is_read(tmp_path_factory, state, protocol, new, wrapped):
    path = tmp_path_factory.mktemp("any") / "m.pt"
    content = {"state_dict": state, "epoch": 1, "optimizer": [torch.ones(2)]} if wrapped else state
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    assert_equal(path, state)


@FORMATS
def test_parameters_and_tensors_with_attributes_are_plain_tensors(tmp_path, new):
    marked, parameter = torch.arange(3.0), torch.nn.Parameter(torch.ones(2))
    marked.note, parameter.note = "x", "y"
    state = {"marked": marked, "parameter": parameter, "plain": torch.nn.Parameter(torch.zeros(2))}
    torch.save(state, tmp_path / "m", _use_new_zipfile_serialization=new)
    assert_equal(tmp_path / "m", {name: tensor.detach() for name, tensor in state.items()})


def test_a_big_endian_file_is_read(tmp_path):
    state = {"f": torch.arange(6.0).reshape(2, 3).T, "h": torch.arange(3).half(), "c": torch.tensor([1 + 2j, 3j])}
    torch.save(state, tmp_path / "little")
    with zipfile.ZipFile(tmp_path / "little") as source, zipfile.ZipFile(tmp_path / "big", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if "/data/" in name:
                width = {"0": 4, "1": 2, "2": 4}[name.rpartition("/")[2]]
                content = np.frombuffer(content, f"u{width}").byteswap().tobytes()
            target.writestr(name, b"big" if name.endswith("byteorder") else content)
    torch.testing.assert_close(torch.load(tmp_path / "big"), state)
    assert_equal(tmp_path / "big", state)


class Part:
    """The second to fourth of five values: pickles as a tensor of PyTorch before 0.4 whose storage is a view."""

    def __reduce__(self) -> tuple:
        return torch._utils._rebuild_tensor, (STORAGE, 0, (3,), (1,))


class Old(pickle.Pickler):
    def persistent_id(self, value: object) -> tuple | None:
        return ("storage", torch.FloatStorage, "7", "cpu", 5, ("8", 1, 3)) if value is STORAGE else None


STORAGE = object()


def test_a_part_of_a_storage_in_a_file_of_an_old_pytorch_is_read(tmp_path):
    with (tmp_path / "m").open("wb") as file:
        for value in (0x1950A86A20F9469CFC6C, 1001, {}, {"w": Part()}, ["7"]):
            Old(file, 2).dump(value)
        file.write(struct.pack("<q", 5) + np.arange(5, dtype=np.float32).tobytes())
    assert torch.load(tmp_path / "m")["w"].tolist() == [1, 2, 3]
    assert_equal(tmp_path / "m", {"w": torch.tensor([1.0, 2.0, 3.0])})


def test_only_the_tensor_that_is_indexed_takes_memory(tmp_path):
    torch.save({f"t{i}": torch.ones(500_000) for i in range(20)}, tmp_path / "m")
    tracemalloc.start()
    try:
        file = open_tensors(tmp_path / "m")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        for name in file:
            assert file[name].sum() == 500_000
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


@FORMATS
def test_a_file_cut_while_it_is_read_is_an_error_and_nothing_is_mapped(tmp_path, monkeypatch, new):
    path = tmp_path / "m"
    torch.save({"w": torch.ones(100_000)}, path, _use_new_zipfile_serialization=new)
    monkeypatch.setattr(mmap, "mmap", None)
    monkeypatch.setattr(torch, "load", None)
    file = open_tensors(path)
    monkeypatch.setattr(tensor_file, "require_unchanged", lambda *_: os.truncate(path, 5000))
    with pytest.raises(WeightFileError, match="ends inside tensor w: load it again"):
        file["w"]


@pytest.mark.parametrize("step", ["vaespec.weights.containers.pytorch.Machine.run", "numpy.empty"])
def test_out_of_memory_is_not_told_as_damage(tmp_path, monkeypatch, step):
    torch.save(ONE, tmp_path / "m")

    def full(*args: object, **kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr(step, full)
    with pytest.raises(MemoryError):
        open_tensors(tmp_path / "m")["a.w"]


# -- what is no tensor -------------------------------------------------------------------------------------------------


class Mode(enum.Enum):
    FAST = 1


class Options(dict):
    """A dictionary of another package, as EasyDict."""


def omegaconf() -> object:
    module = pytest.importorskip("omegaconf")
    return module.OmegaConf.create({"lr": 1e-4, "steps": [1, None, True], "run": {"name": "${lr}", "at": "???"}})


EXTRAS: dict[str, Callable[[], object]] = {
    "argparse": lambda: argparse.Namespace(lr=1e-4, out=pathlib.Path("runs")),
    "pathlib": lambda: [pathlib.PurePosixPath("/runs"), pathlib.PureWindowsPath("C:/runs"), pathlib.Path("runs")],
    "collections": lambda: [collections.defaultdict(list, a=[1]), collections.Counter("aab"), collections.deque([1])],
    "omegaconf": omegaconf,
    "numpy": lambda: [np.zeros((3, 2)), np.float64(0.5), np.dtype("f4"), np.random.default_rng(0), np.array([None])],
    "datetime": lambda: [datetime.datetime.now(datetime.UTC), datetime.timedelta(1), datetime.date(2026, 1, 1)],
    "enum": lambda: Mode.FAST,
    "partial": lambda: functools.partial(torch.nn.functional.gelu, approximate="tanh"),
    "torch": lambda: [torch.Size([1, 2]), torch.float16, torch.device("cpu"), torch.strided, torch.get_rng_state()],
    "a class of another package": lambda: Options(lr=Options(a=1)),
    "the class itself": lambda: {Options: 1},
    "plain values": lambda: [b"x", bytearray(b"x"), 1j, {1, "a"}, frozenset([1]), range(3), 2**200, -1, "x" * 10_000],
    "a module": lambda: torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize("protocol", first(1, PROTOCOLS))
@FORMATS
@pytest.mark.parametrize("what", EXTRAS)
def test_plain_objects_beside_the_weights_are_inert(tmp_path, what, new, protocol):
    content = {"extra": EXTRAS[what](), "state_dict": ONE, "more": EXTRAS[what]()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has no source of a class of a test
        torch.save(content, tmp_path / "m", pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    assert_equal(tmp_path / "m", ONE)


@pytest.mark.parametrize("kind", [Options, functools.partial(collections.defaultdict, dict), collections.OrderedDict])
def test_weights_in_any_class_of_dictionary_are_found(tmp_path, kind):
    content, inner = kind(), kind()
    inner.update(ONE)
    content.update(state_dict=inner)
    torch.save(content, tmp_path / "m")
    assert_equal(tmp_path / "m", ONE)


def test_an_ordered_dictionary_of_python_2_is_a_list_of_pairs(tmp_path):
    pairs = b"ccollections\nOrderedDict\n](](" + KEY + b"K\x01e](" + text("b") + b"K\x01ee\x85R"
    path = with_pickle(tmp_path / "m", b"\x80\x02" + pairs + b".")
    refused(path, "without tensors: give a checkpoint")
    path.write_bytes(path.read_bytes().replace(text("b"), KEY))
    refused(path, "the key 'a' twice")


# -- hostile pickles ---------------------------------------------------------------------------------------------------


def refused(path: Path, words: str) -> None:
    with pytest.raises(WeightFileError, match=words) as caught:
        open_tensors(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


@FORMATS
@pytest.mark.parametrize(
    ("module", "name"),
    [
        *[("os", "system"), ("posix", "system"), ("subprocess", "Popen"), ("builtins", "eval"), ("builtins", "exec")],
        *[
            ("__builtin__", "eval"),
            ("builtins", "__import__"),
            ("commands", "getoutput"),
            ("importlib", "import_module"),
        ],
        *[("torch.hub", "load"), ("numpy", "load"), ("pathlib", "os.system"), ("torch.serialization", "os.system")],
        *[("webbrowser", "open"), ("runpy", "run_path"), ("pickle", "loads"), ("ctypes", "CDLL"), ("__main__", "f")],
    ],
)
def test_functions_that_could_do_harm_are_refused_by_name(tmp_path, module, name, new):
    call = text(module) + text(name) + b"\x93" + text("touch harm") + b"\x85R"
    content = b"\x80\x04}(" + text("a") + call + text("b") + b"Nu."
    refused(
        with_pickle(tmp_path / "m", content, new), r"refers to [\w.]+, which weights do not need: .* none of its code"
    )


def test_a_class_inside_a_class_is_found_by_its_whole_name(tmp_path):
    """getattr(torch.serialization, "os") and so on, step by step."""
    module = b"cbuiltins\ngetattr\n(ctorch\nserialization\n" + text("os") + b"tR"
    content = b"\x80\x02cbuiltins\ngetattr\n(" + module + text("system") + b"tR" + text("x") + b"\x85R."
    refused(with_pickle(tmp_path / "m", content), r"refers to torch\.serialization\.os\.system")


A = text("a" * 4000)
BIG_LIST = b"](" + b"".join(b"](" + text(f"k{i}") + b"Ne" for i in range(3000)) + b"eq\x00"
COLLIDING = b"".join(b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"N" for k in range(50_000))
CHILDREN = b"".join(text(f"{i}") + b"}" for i in range(20_000))
REBUILD, TYPED = b"ctorch._utils\n_rebuild_tensor\nq\x01", b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00"
HUNGRY = {
    "bytearray": b"cbuiltins\nbytearray\n(\x8a\x05" + (1500 << 20).to_bytes(5, "little") + b"tR",
    "punycode": b"c_codecs\nencode\n(" + text("一丁" * 100_000) + text("punycode") + b"tR",
    "empty lists": b"(" + b"]" * 2_000_000 + b"t",
    "lists in lists": b"]" * 600_000 + b"a" * 599_999,
    "tuples in tuples": b"N" + b"\x85" * 1_000_000,
    "dictionaries in dictionaries": (b"}" + KEY) * 8000 + b"N" + b"s" * 8000,
    "colliding keys": b"}(" + COLLIDING + b"u",
    "a long text": text("a" * 3_000_000 + "😀"),
    "bytes that are not there": b"\x8e" + (2**60).to_bytes(8, "little"),
    "a number of many digits": b"\x8b" + struct.pack("<I", 3_000_000) + b"\x7f" * 3_000_000,
    "one list as many dictionaries": BIG_LIST + b"(ccollections\nOrderedDict\nq\x01" + b"h\x01h\x00\x85R" * 10_000,
    "a shape of very many": b"(" + b"K\x01" * 100_000 + b"tq\x00" + REBUILD + b"h\x01(NK\x00h\x00h\x00tR" * 9000,
    "tensors in tensors": TYPED + b"ctorch\nTensor\nq\x01h\x00" + b"(h\x00h\x01" * 9000 + b"N" + b"Nt" * 9000 + b"R",
    "long names": (b"}" + A) * 100 + b"}(" + CHILDREN + b"u" + b"s" * 100,
    "a name that grows": b"cbuiltins\ngetattr\nq\x00ca\nB\nq\x01" + (b"0h\x00h\x01" + A + b"\x86Rq\x01") * 500,
}


@pytest.mark.parametrize("new", first(1, [True, False]))
@pytest.mark.parametrize("what", HUNGRY)
def test_a_pickle_takes_no_more_memory_than_its_budget(tmp_path, monkeypatch, what, new):
    path = with_pickle(tmp_path / "m", b"\x80\x02" + HUNGRY[what] + b".", new)
    monkeypatch.setattr(pickled, "BUDGET", 8 << 20)  # an eighth of it, for a quick test
    tracemalloc.start()
    try:
        refused(path, "is a damaged PyTorch|without tensors|refers to torch")
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("step", [b"\x80\x02", b"\x95" + bytes(8)], ids=["protocol", "frame"])
def test_steps_that_only_take_time_are_bounded_too(tmp_path, monkeypatch, step):
    monkeypatch.setattr(pickled, "BUDGET", 1 << 20)
    refused(with_pickle(tmp_path / "m", b"\x80\x04" + step * 12_000 + b"}.", True), "more than 1 MiB of memory")


@FORMATS
def test_a_key_that_is_repeated_is_refused(tmp_path, new):
    refused(
        with_pickle(tmp_path / "m", b"\x80\x02}(" + text("a") + b"N" + text("a") + b"Nu.", new), "the key 'a' twice"
    )
    refused(with_pickle(tmp_path / "m", b"\x80\x02}" + (text("a") + b"Ns") * 2 + b".", new), "the key 'a' twice")
    torch.save({"a": {"b": torch.ones(1)}, "a.b": torch.ones(2)}, tmp_path / "m", _use_new_zipfile_serialization=new)
    refused(tmp_path / "m", r"two tensors of the name a\.b")


def test_depth_counts_and_names_are_bounded(tmp_path):
    deep: dict = {"w": torch.ones(1)}
    for _ in range(130):
        deep = {"a": deep}
    torch.save(deep, tmp_path / "m")
    refused(tmp_path / "m", "more than 128 dictionaries inside each other")
    refused(with_pickle(tmp_path / "m", b"\x80\x02}" + text("a" * 5000) + b"Ns."), "a key of more than 4,096 bytes")
    torch.save({"\ud800": torch.ones(1)}, tmp_path / "m")
    refused(tmp_path / "m", "surrogates not allowed")
    columns = torch.zeros(100, 1000)
    torch.save({str(i): columns[:, i] for i in range(100)}, tmp_path / "m")
    refused(tmp_path / "m", r"its tensors are spread over [\d,]+ bytes, the file has")
    same = torch.zeros(0)
    torch.save({str(i): same for i in range((1 << 16) + 1)}, tmp_path / "m")
    refused(tmp_path / "m", "more than 65,536 tensors")


def test_a_directory_of_very_many_entries_is_refused_before_it_is_read(tmp_path):
    entry, count = b"PK\1\2" + bytes(24) + struct.pack("<H", 5) + bytes(16) + b"12345", 90_000
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count & 0xFFFF, count & 0xFFFF, len(entry) * count, 30, 0)
    (tmp_path / "m").write_bytes(b"PK\3\4" + bytes(26) + entry * count + end)
    tracemalloc.start()
    try:
        refused(tmp_path / "m", "its directory has 4,590,000 bytes, the limit is 4,194,304")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_two_entries_of_one_name_are_refused(tmp_path):
    torch.save(ONE, tmp_path / "m")
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "m", "a") as archive:
        warnings.simplefilter("ignore")  # zipfile's own
        archive.writestr("m/data/0", bytes(12))
    refused(tmp_path / "m", "two entries of one name")


# -- files without weights ---------------------------------------------------------------------------------------------


def scripted(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


def exported(path: Path) -> None:
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), path)


def packaged(path: Path) -> None:
    with torch.package.PackageExporter(path) as package:
        package.extern("**")
        package.save_pickle("model", "model.pkl", torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (scripted, "a TorchScript archive, .* open it with torch.jit.load, and save its state_dict"),
        (exported, "an archive of torch.export, .* torch.export.load"),
        (packaged, "an archive of torch.package, .* torch.package.PackageImporter"),
    ],
)
def test_a_program_is_named_with_what_opens_it(tmp_path, write, words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        write(tmp_path / "m.pt2")
    refused(tmp_path / "m.pt2", words)


@FORMATS
def test_a_whole_module_is_named_with_what_to_save_instead(tmp_path, new):
    for content in (torch.nn.Linear(2, 2), {"model": torch.nn.Linear(2, 2)}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(content, tmp_path / "m", _use_new_zipfile_serialization=new)
        refused(tmp_path / "m", r"an object of torch\.nn\.modules\.linear\.Linear: save .* state_dict")


class Marked(torch.Tensor):
    """A subclass, as the quantized tensors of other packages are."""


def test_tensors_of_a_subclass_are_named_with_it(tmp_path):
    torch.save({"t": torch.ones(3).as_subclass(Marked)}, tmp_path / "m")
    refused(tmp_path / "m", r"tensor t is sparse or of a subclass of Tensor \([\w.]+\.Marked\)")
    torch.save({"\x1b[31m": torch.ones(3).as_subclass(Marked)}, tmp_path / "m")
    refused(tmp_path / "m", r"tensor \\x1b\[31m is sparse")
    torch.save({"t": torch.tensor([1j]).conj()}, tmp_path / "m")
    refused(tmp_path / "m", "tensor t is a conjugate or negative view")


# -- at random ---------------------------------------------------------------------------------------------------------

PIECES = [bytes([code]) for code in range(256)] + [b"h\0", b"q\0", b"K\1", b"\x85R", b"}(", b"u", text("a"), b"N", b"("]


def outcome(path: Path) -> str:
    """What is read has the values that torch.load gives, if that reads the file too."""
    try:
        arrays = dict(open_tensors(path))
    except WeightFileError as error:
        return "refused" if "\n" not in str(error) else str(error)
    try:
        theirs = torch.load(path)
    except Exception:  # torch refuses more
        return "read"
    theirs = theirs["state_dict"] if isinstance(theirs.get("state_dict"), dict) else theirs
    for name, array in arrays.items():
        if isinstance(theirs.get(name), torch.Tensor):
            assert array.tobytes() == bits(theirs[name]), name
    return "read"


@pytest.mark.parametrize("count", first(1, [500, 4000]))
@pytest.mark.parametrize("write", [zip_file, legacy_file])
@pytest.mark.filterwarnings("ignore")  # torch's own, about what it reads
def test_spliced_opcodes_are_refused_or_read_as_torch_reads_them(tmp_path, write, count):
    whole, rng = write(tmp_path, tensors()).read_bytes(), np.random.default_rng(5)
    begin = whole.index(b"\x80\x02}")
    tally = dict.fromkeys(("refused", "read"), 0)
    for _ in range(count):
        at, other = map(int, rng.integers(begin, begin + 600, 2))
        piece = PIECES[rng.integers(len(PIECES))] if rng.random() < 0.5 else whole[other : other + rng.integers(1, 8)]
        (tmp_path / "spliced").write_bytes(whole[:at] + piece + whole[at + len(piece) :])
        tally[outcome(tmp_path / "spliced")] += 1
    assert min(tally.values()) > count // 20

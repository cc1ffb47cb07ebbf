"""Damaged inputs of every kind, from a seed: `python -m support.damage KIND COUNT [FIRST]` prints a tally as JSON.

Each input is made from its number alone, so that one that fails is made again by `KIND 1 NUMBER`. It runs in a process
of its own, so that a crash is a failed test. An input may be accepted, or refused by a VaespecError that names the
file in printable text; anything else ends the run: another exception, more than SECONDS, more memory than its limit.
"""

from __future__ import annotations

import functools
import json
import resource
import signal
import sys
import tempfile
import tracemalloc
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vaespec.errors import VaespecError

SECONDS = 10  # for one input
SLACK = 200_000_000  # bytes beside twice the file: a picture is compressed, a config is short and its model is not
HIDDEN = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")  # categories of characters that an error must not have
HEADER_SLACK = 200_000  # bytes that reading the tensors of any file takes: buffers, the objects of a header


@dataclass(frozen=True)
class Target:
    """A kind of input: `make(rng)` makes one, `read(path)` takes it; `slack` bytes beside twice the file.

    `wholes` are inputs without damage, which must be accepted; files of `beside` are in the same folder.
    """

    wholes: Sequence[bytes]
    make: Callable[[np.random.Generator], bytes]
    read: Callable[[Path], Any]
    slack: int
    suffix: str = ""
    beside: Mapping[str, bytes] = field(default_factory=dict)


def damaged(rng: np.random.Generator, content: bytes) -> bytes:
    """Some bytes changed, or the end cut off; half of the changes are where headers are."""
    if rng.random() < 0.2:
        return content[: rng.integers(len(content))]
    changed = np.frombuffer(content, np.uint8).copy()
    span = int(rng.choice([16, 128, 1024, len(content)]))
    places = rng.integers(min(span, len(content)), size=rng.integers(1, 4))
    if rng.random() < 0.3:
        places = len(content) - 1 - places  # a zip's directory is at its end
    changed[places] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))], size=len(places))
    return changed.tobytes()


def spliced(rng: np.random.Generator, content: bytes) -> bytes:
    """A piece left out, doubled, or moved to another place."""
    first, last, place = sorted(rng.integers(len(content), size=3))
    piece = content[first:last]
    ways = content[:first] + content[last:], content[:last] + piece + content[last:], content[:place] + piece
    return ways[rng.integers(3)]


def worsened(rng: np.random.Generator, content: bytes) -> bytes:
    """Damages content, seldom twice."""
    way = damaged if rng.random() < 0.8 else spliced
    return way(rng, content) if rng.random() < 0.8 else damaged(rng, way(rng, content))


# -- the kinds ---------------------------------------------------------------------------------------------------


def weight_file(container: str) -> Target:
    """Small files of a container: all tensors are read."""
    from support.weight_files import WRITERS, tensors

    from vaespec.weights.containers import open_tensors, opening

    # Which backends are installed is looked up once: it takes 30 ms and 200 kB, whatever the file.
    opening.backends, opening.get_backend = map(functools.cache, (opening.backends, opening.get_backend))
    with tempfile.TemporaryDirectory() as folder:
        whole = (path := WRITERS[container](Path(folder), tensors())).read_bytes()
        beside = {other.name: other.read_bytes() for other in Path(folder).iterdir() if other != path}  # the shards

    def read(path: Path) -> None:
        file = open_tensors(path)
        for name in file:
            assert (file[name].shape, file[name].dtype.name) == (file.shape(name), file.dtype(name))

    return Target([whole], lambda rng: damaged(rng, whole), read, HEADER_SLACK, beside=beside)


def model_file(container: str) -> Target:
    """Files of a whole small model: loaded as a user does, with the config from the names and shapes."""
    from support.weight_files import WRITERS

    from vaespec import AutoencoderKL
    from vaespec.weights import load_file

    sizes = {"block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2}
    vae = AutoencoderKL.from_config(sizes | {"up_block_types": ("UpDecoderBlock2D",) * 2}, backend="numpy")
    with tempfile.TemporaryDirectory() as folder:
        if container == "msgpack":  # which has names and kernels of its own
            vae.save_single_file(path := Path(folder) / "flax.msgpack", dialect="flax")
        else:
            path = WRITERS[container](Path(folder), vae.weights())
        whole = path.read_bytes()

    def read(path: Path) -> None:
        _, weights = load_file(path)
        for name in weights:
            assert weights[name] is not None

    return Target([whole], lambda rng: worsened(rng, whole), read, SLACK)


def pictures() -> Target:
    """Pictures of every format and depth that vaespec reads, some turned, transparent or with a colour profile."""
    from support.picture_files import PICTURES

    from vaespec.cli.picture_files import read, read_header

    wholes = list(PICTURES.values())

    def read_as_encode(path: Path) -> None:
        read_header(path)
        pixels = read(path)
        assert (pixels.ndim, pixels.shape[2]) == (3, 3)
        assert pixels.dtype in (np.uint8, np.uint16, np.float32)

    return Target(wholes, lambda rng: worsened(rng, wholes[rng.integers(len(wholes))]), read_as_encode, SLACK, ".png")


def configs() -> Target:
    """Files called config.json with odd values, fields and text: the model that they describe is listed."""
    from vaespec import families
    from vaespec.architecture import parameters
    from vaespec.config import AutoencoderConfig

    def read(path: Path) -> None:
        config = AutoencoderConfig.from_json(path)
        assert AutoencoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert parameters(config)

    wholes = [json.dumps(families.config(name).to_dict()).encode() for name in families.names()]
    return Target(wholes, _odd_config, read, SLACK, ".json")


ODD_NUMBERS = ("0", "-1", "1.5", "1e999", "-0.0", "NaN", "Infinity", "1" + "0" * 400, "9" * 5000, "100000", "1e-320")
ODD_VALUES = (
    "null",
    "true",
    '""',
    '"\\u001b[31m"',
    '"silu"',
    "[]",
    "{}",
    "[[[]]]",
    "[" * 3000,
    '{"a": 1}',
    *ODD_NUMBERS,
)


def _odd_config(rng: np.random.Generator) -> bytes:
    """The text of a config in which a few values are odd, doubled or of another field; one in three is damaged."""
    from vaespec import families

    names = families.names()
    whole = families.config(names[rng.integers(len(names))]).to_dict()
    fields = [[json.dumps(name), json.dumps(value)] for name, value in whole.items()]
    for _ in range(rng.integers(0, 4)):
        i, j = rng.integers(len(fields), size=2)
        odd = ODD_VALUES[rng.integers(len(ODD_VALUES))]
        match rng.integers(6):
            case 0:
                fields[i][1] = odd
            case 1:
                fields[i][1] = f"[{', '.join([odd] * int(rng.integers(1, 5)))}]"
            case 2:
                fields[i][1] = fields[j][1]
            case 3:
                fields.append(fields[j])
            case 4:
                fields.append(['"unknown_field"', odd])
            case 5:
                del fields[i]
    text = "{" + ", ".join(f"{name}: {value}" for name, value in fields) + "}"
    return worsened(rng, text.encode()) if rng.random() < 0.3 else text.encode()


def target(kind: str) -> Target:
    """Looks up a kind: "pictures", "configs", a container, or "model:" and a container."""
    if kind in ("pictures", "configs"):
        return {"pictures": pictures, "configs": configs}[kind]()
    return model_file(kind.removeprefix("model:")) if kind.startswith("model:") else weight_file(kind)


# -- the run -----------------------------------------------------------------------------------------------------


def outcome(read: Callable[[Path], Any], path: Path) -> str:
    """Reads a file: "accepted", or "refused" by an error in printable text that names the file."""
    try:
        read(path)
        return "accepted"
    except VaespecError as error:
        message = str(error)
    assert str(path) in message, message
    lines = message.split("\n  ")  # a file's problems are a list, one in each line
    assert not any(unicodedata.category(c) in HIDDEN for line in lines for c in line), message
    return "refused"


def main(kind: str, count: int, first: int = 0) -> dict[str, float]:
    warnings.simplefilter("error")  # nothing of a library reaches the terminal
    chosen, tally = target(kind), {"accepted": 0, "refused": 0, "hungriest": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"damaged{chosen.suffix}"
        for name, content in chosen.beside.items():
            path.with_name(name).write_bytes(content)
        for content in (b"PK\3\4", b"\x80\x02", b"{}", b"?"):  # imports all that opening any file may need
            path.write_bytes(content)
            outcome(chosen.read, path)
        for content in chosen.wholes:
            path.write_bytes(content)
            assert outcome(chosen.read, path) == "accepted"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if chosen.slack == HEADER_SLACK or kind == "pictures":  # else what the process grows by says enough
            tracemalloc.start()
        for number in range(first, first + count):
            path.write_bytes(content := chosen.make(np.random.default_rng([number, zlib.crc32(kind.encode())])))
            signal.alarm(SECONDS)
            tracemalloc.reset_peak()
            start = tracemalloc.get_traced_memory()[0]
            try:
                tally[outcome(chosen.read, path)] += 1
            except BaseException:
                print(f"{kind} {number}: {content[:200]!r}", file=sys.stderr)
                raise
            taken, size = tracemalloc.get_traced_memory()[1] - start, len(content)
            assert taken <= 2 * size + chosen.slack, f"{kind} {number} took {taken:,} bytes, the file has {size:,}"
            tally["hungriest"] = max(tally["hungriest"], taken)
        signal.alarm(0)
    tally["grown_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return tally


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError(f"over {SECONDS} s")))
    print(json.dumps(main(sys.argv[1], *map(int, sys.argv[2:4]))))

"""Kills work while it writes: `python -m support.kills WORK COUNT [SEED]` prints a tally as JSON.

Each run is a child of this process, which ends it with SIGKILL: half of the times before its n-th change of the folder
that it writes to, with n from the first to the last, half of the times at a random moment. Afterwards each file must be
the old or the new one, whole; a folder of weights must load as the old or the new model, or be refused.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
from support.configs import narrow
from support.workplace import picture

import vaespec
from vaespec.cli.app import app
from vaespec.errors import VaespecError

CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "os.link", "os.truncate")
OLD, NEW = narrow((8, 8)), narrow((8, 8), scaling_factor=0.5)


@dataclass(frozen=True)
class Work:
    """`run(source, out)` writes to the folder `out`, from `source`, the name of a model's folder."""

    run: Callable[[str, Path], None]
    read: Callable[[Path], Mapping[str, object]]


def command(*arguments: str | Path) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


def convert(source: str, out: Path) -> None:
    command("convert", source, out / "vae.safetensors", "--to", "ldm", "--force")


def encode(source: str, out: Path) -> None:
    command("encode", "a.png", "b.png", "-w", source, "--backend", "numpy", "-o", out / "latents.safetensors")


def roundtrip(source: str, out: Path) -> None:
    command("roundtrip", "a.png", "b.png", "-w", source, "--backend", "numpy", "-o", out)


def save_pretrained(source: str, out: Path) -> None:
    vaespec.load(source, backend="numpy").save_pretrained(out)


def contents(out: Path) -> dict[str, object]:
    """What each file holds. A hidden part that a kill has left is no result."""
    read = {".safetensors": tensors, ".png": Path.read_bytes}
    return {path.name: read[path.suffix](path) for path in out.iterdir() if not path.name.endswith(".part")}


def tensors(path: Path) -> tuple[object, dict[str, bytes]]:
    """The metadata, whose order in the file is not defined, and the tensors' bytes."""
    with safetensors.safe_open(path, "np") as file:
        return file.metadata(), {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def model(out: Path) -> dict[str, object]:
    """The model that the folder holds as one content; none if it is refused."""
    try:
        vae = vaespec.load(out, backend="numpy")
    except VaespecError:
        return {}
    weights = {name: array.tobytes() for name, array in vae.weights().items()}
    return {"model": (vae.config, weights)}


WORKS = {
    "convert": Work(convert, contents),
    "encode": Work(encode, contents),
    "roundtrip": Work(roundtrip, contents),
    "save_pretrained": Work(save_pretrained, model),
}


def child(run: Callable[[], None]) -> int:
    """Runs in a child that ends silently; returns its id."""
    if (pid := os.fork()) == 0:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        try:
            run()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid


def ended(pid: int) -> int:
    """Waits for a child; returns its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def before_change(out: Path, act: Callable[[int], None]) -> None:
    """Calls `act(n)` before the n-th change of the folder, from 1."""
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in CHANGES and str(arguments[0]).startswith(str(out)):
            count += 1
            act(count)

    sys.addaudithook(hook)


def changes(work: Work, source: str, out: Path) -> tuple[int, float]:
    """Runs undisturbed; returns how often it changes the folder, and the seconds that it takes."""
    log = out.with_name("changes")
    log.unlink(missing_ok=True)

    def count() -> None:
        before_change(out, lambda n: log.write_text(str(n)))
        work.run(source, out)

    start = time.perf_counter()
    assert ended(child(count)) == 0
    return int(log.read_text()), time.perf_counter() - start


def killed_before(work: Work, source: str, out: Path, n: int) -> None:
    """Runs until the n-th change, and no farther."""

    def run() -> None:
        before_change(out, lambda change: os.kill(os.getpid(), signal.SIGKILL) if change == n else None)
        work.run(source, out)

    assert ended(child(run)) in (-signal.SIGKILL, 0)


def killed_after(work: Work, source: str, out: Path, seconds: float) -> None:
    """Runs for so many seconds at most."""
    pid = child(lambda: work.run(source, out))
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) in (-signal.SIGKILL, 0)


def main(name: str, count: int, seed: int = 0) -> dict[str, int]:
    work, rng = WORKS[name], np.random.default_rng(seed)
    tally = {"old": 0, "new": 0, "between": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        out = Path(folder) / "out"
        picture("a.png"), picture("b.png", seed=1)
        for source, config, its_seed in (("old", OLD, 0), ("new", NEW, 1)):
            make = vaespec.AutoencoderKL.from_config(config, seed=its_seed, backend="numpy").save_pretrained
            assert ended(child(lambda make=make, source=source: make(source))) == 0
        out.mkdir()
        total, seconds = changes(work, "new", out)
        new = work.read(out)
        changes(work, "old", out)
        old = work.read(out)
        assert new != old
        for i in range(count):
            assert ended(child(lambda: work.run("old", out))) == 0
            assert work.read(out) == old
            if i % 2:
                killed_after(work, "new", out, seconds * rng.random())
            else:
                killed_before(work, "new", out, 1 + round(i / count * total))
            left = work.read(out)
            assert all(left[each] in (old[each], new[each]) for each in left), f"kill {i} left a mixture"
            assert left.keys() == old.keys() or name == "save_pretrained", f"kill {i} lost {old.keys() - left.keys()}"
            tally["refused" if not left else "old" if left == old else "new" if left == new else "between"] += 1
    return tally


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], *map(int, sys.argv[2:4]))))

"""How fast, beside every peer? Stable Diffusion's VAE at full width, encode and decode, in one run on one machine.

    python -m benchmarks.run [--quick] [--sizes 256 512 1024] [--batches 1 4] [--directions decode encode]
                             [--runs 5] [--subjects ...] [--peers ...] [--device cuda] [--output docs/speed]

Each subject is a process of its own, which makes itself ready from the same weights and waits; they run in turns, so
that whatever else the machine does falls on all of them. Measured are the median and the spread of the seconds, the
highest resident memory during a run, and the error, relative L2 to diffusers in float64. Flops are those of the model
as it is written (`vaespec.analysis.cost`); beside them stands the rate of a matrix product in the same run. Writes
OUTPUT.json, OUTPUT.md and OUTPUT.png as it goes. Needs the `bench` extra; a peer that is not installed is left out and
named. --quick: 256 px, NumPy, PyTorch and diffusers.
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks import subjects
from benchmarks.report import write
from vaespec import AutoencoderKL, families
from vaespec.analysis.cost import cost

CONFIG = families.config("sd1")
QUICK = ("vaespec numpy", "vaespec torch", "diffusers", "diffusers channels-last")
EXACT_TO = 512  # px: beyond, float64 takes more memory than most machines have


class Running:
    """A subject's process."""

    def __init__(self, name, folder, direction, device, python=sys.executable):
        command = [python, "-m", "benchmarks.subjects", name, folder, direction, device]
        self.name, self.runs = name, []
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def ready(self):
        """None, or why it is not: its last words."""
        return None if self.process.stdout.readline() else (self.process.stderr.read().strip() or "?").splitlines()[-1]

    def run(self, result=""):
        """Once; its result goes to the file of that name. False where the process ended."""
        try:
            self.process.stdin.write(f"{result}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return False
        told = self.process.stdout.readline()
        if told:
            self.runs.append(json.loads(told))
        return bool(told)


def environment(requirements, folder):
    """The Python of a virtual environment with these packages."""
    venv.create(folder, with_pip=True)
    python = str(Path(folder) / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
    return python


def error(folder, name):
    """‖result - exact‖ / ‖exact‖, or None where nothing is exact."""
    if not (Path(folder) / "exact.npy").exists():
        return None
    actual, exact = (np.load(Path(folder) / f"{stem}.npy").astype(np.float64) for stem in (name, "exact"))
    return float(np.linalg.norm(actual - exact) / np.linalg.norm(exact))


def measure(folder, case, names, device, runs, pythons):
    """A row for each subject; where one fails, or does not fit the memory, a row that says so."""
    direction, size, batch = case
    if size <= EXACT_TO:
        with Running("exact", folder, direction, device) as exact:
            exact.ready()
            exact.run(f"{folder}/exact.npy")
    rows, ceilings = [], []
    with ExitStack() as stack:
        alive = []
        for name in names:
            one = stack.enter_context(Running(name, folder, direction, device, pythons.get(name, sys.executable)))
            failed = one.ready() or (None if one.run(f"{folder}/result.npy") else "it ended: out of memory?")
            if failed:
                rows.append({"subject": name, "failed": failed})
                continue
            one.error = error(folder, "result")
            one.runs.clear()  # warm from here on
            alive.append(one)
        for i in range(runs):
            ceilings.append(subjects.matrix_product())
            for one in random.Random(i).sample(alive, len(alive)):  # nobody always runs behind the same one
                one.run()
        rows = [_row(one) for one in alive] + rows
    flops = cost(CONFIG, direction, (size, size) if direction == "encode" else (size // 8, size // 8), batch).flops
    told = {"direction": direction, "size": size, "batch": batch, "runs": runs, "flops": flops}
    return [told | {"ceiling": statistics.median(ceilings)} | row for row in rows]


def _row(one):
    seconds = [run["seconds"] for run in one.runs]
    return {
        "subject": one.name,
        "precision": {**subjects.SUBJECTS, **subjects.ON_CUDA}[one.name].precision,
        "seconds": statistics.median(seconds),
        "least": min(seconds),
        "most": max(seconds),
        "memory": max(run["memory"] for run in one.runs),
        "error": one.error,
    }


def machine():
    """What the figures are of."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    flags = Path("/proc/cpuinfo").read_text().split()
    extensions = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": f"{model} ({', '.join(extensions)})",
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{memory:.0f} GiB",
        "python": platform.python_version(),
    }


def versions():
    """Of what is measured."""
    from importlib import metadata

    named = ("vaespec", "numpy", "torch", "diffusers", "onnxruntime", "openvino", "jax", "mlx")
    found = {name: list(metadata.distributions(name=name)) for name in named}
    return {name: some[0].version for name, some in found.items() if some} | {"Flax": ", ".join(subjects.FLAX[:3])}


def main(asked):
    """Make the weights and the inputs, measure, write."""
    offered = subjects.ON_CUDA if asked.device == "cuda" else subjects.SUBJECTS
    names = asked.subjects or (QUICK if asked.quick else tuple(offered))
    left_out = {name: offered[name].missing for name in names if offered[name].missing}
    names = [name for name in names if name not in left_out]
    report = {"machine": machine(), "device": asked.device, "versions": versions(), "rows": []}
    report["left out"] = {name: f"{', '.join(missing)} not installed" for name, missing in left_out.items()} | {
        name: f"above {offered[name].up_to} px, where a run takes minutes"
        for name in names
        if max(asked.sizes) > offered[name].up_to
    }
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        vae = AutoencoderKL.from_config(CONFIG, backend="numpy")
        vae.save_pretrained(folder)
        Path(f"{folder}/flax").mkdir()
        vae.save_single_file(f"{folder}/flax/diffusion_flax_model.msgpack", dialect="flax")
        shutil.copy(f"{folder}/config.json", f"{folder}/flax")
        del vae
        pythons = {
            name: environment(offered[name].environment, f"{folder}/env-{i}")
            for i, name in enumerate(names)
            if offered[name].environment
        }
        for size in asked.sizes:
            running = [name for name in names if size <= offered[name].up_to]
            for batch in asked.batches:
                for direction in asked.directions:
                    shape = (batch, 3, size, size) if direction == "encode" else (batch, 4, size // 8, size // 8)
                    x = rng.uniform(-1, 1, shape) if direction == "encode" else rng.standard_normal(shape)
                    np.save(f"{folder}/{direction}.npy", x.astype(np.float32))
                    Path(f"{folder}/exact.npy").unlink(missing_ok=True)
                    case = direction, size, batch
                    report["rows"] += measure(folder, case, running, asked.device, asked.runs, pythons)
                    write(report, asked.output)
                    print(f"{direction} {size} px, batch {batch}: done", file=sys.stderr, flush=True)
    print(asked.output.with_suffix(".md").read_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="256 px, one image, NumPy, PyTorch and diffusers")
    parser.add_argument("--sizes", type=int, nargs="+", help="of the images, in px", default=None)
    parser.add_argument("--batches", type=int, nargs="+", default=None)
    parser.add_argument("--directions", choices=("decode", "encode"), nargs="+", default=("decode", "encode"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--subjects", "--peers", nargs="+", help="by name; all by default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=Path("speed"), help="files to write, without their ending")
    asked = parser.parse_args()
    asked.sizes = asked.sizes or ([256] if asked.quick else [256, 512, 1024])
    asked.batches = asked.batches or ([1] if asked.quick else [1, 4])
    main(asked)

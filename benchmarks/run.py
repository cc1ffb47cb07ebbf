"""Measures the speed of Stable Diffusion's VAE at full width beside every peer, in one run on one machine.

    python -m benchmarks.run [--quick] [--sizes 256 512 1024] [--batches 1 4] [--directions decode encode]
                             [--runs 5] [--subjects ...] [--peers ...] [--device cuda] [--output docs/speed]

Each subject has its own process, which loads the same weights and waits. Subjects run in turns, so that other load of
the machine slows all of them. The report has the median and the spread of the seconds, the highest resident memory
during a run, and the error, relative L2 to diffusers in float64. Flops are counted from the model as it is written
(`vaespec.analysis.cost`) and compared with the rate of a matrix product in the same run. OUTPUT.json, OUTPUT.md and
OUTPUT.png are written after each case. Needs the `bench` extra; the report names each peer that is not installed.
--quick: 256 px, NumPy, PyTorch and diffusers.
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
from vaespec import AutoencoderKL, backends, families
from vaespec.analysis.cost import cost

CONFIG = families.config("sd1")
QUICK = ("vaespec numpy", "vaespec torch", "diffusers", "diffusers channels-last")
EXACT_TO = 512  # px: beyond, float64 takes more memory than most machines have


class Running:
    """The process of a subject."""

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

    def failure(self):
        """None if the process is ready; else the last line of its stderr."""
        return None if self.process.stdout.readline() else (self.process.stderr.read().strip() or "?").splitlines()[-1]

    def run(self, result=""):
        """Runs once and writes the result to the file `result`. Returns False if the process has ended."""
        try:
            self.process.stdin.write(f"{result}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return False
        answer = self.process.stdout.readline()
        if answer:
            self.runs.append(json.loads(answer))
        return bool(answer)


def environment(requirements, folder):
    """Creates a virtual environment with the required packages and returns its Python."""
    venv.create(folder, with_pip=True)
    python = str(Path(folder) / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
    return python


def error(folder, name):
    """‖result - exact‖ / ‖exact‖; None if there is no exact result."""
    if not (Path(folder) / "exact.npy").exists():
        return None
    actual, exact = (np.load(Path(folder) / f"{stem}.npy").astype(np.float64) for stem in (name, "exact"))
    return float(np.linalg.norm(actual - exact) / np.linalg.norm(exact))


def measure(folder, case, names, device, runs, pythons):
    """A row for each subject; the row of a subject that failed, or ran out of memory, has the reason."""
    direction, size, batch = case
    if size <= EXACT_TO:
        with Running("exact", folder, direction, device) as exact:
            exact.failure()
            exact.run(f"{folder}/exact.npy")
    rows, ceilings = [], []
    with ExitStack() as stack:
        alive = []
        for name in names:
            subject = stack.enter_context(Running(name, folder, direction, device, pythons.get(name, sys.executable)))
            failure = subject.failure() or (None if subject.run(f"{folder}/result.npy") else "it ended: out of memory?")
            if failure:
                rows.append({"subject": name, "failed": failure})
                continue
            subject.error = error(folder, "result")
            subject.runs.clear()  # the first run was the warm-up
            alive.append(subject)
        for i in range(runs):
            ceilings.append(subjects.matrix_product())
            for subject in random.Random(i).sample(alive, len(alive)):  # a new order in each turn
                subject.run()
        rows = [_row(subject, device) for subject in alive] + rows
    flops = cost(CONFIG, direction, (size, size) if direction == "encode" else (size // 8, size // 8), batch).flops
    shared = {"direction": direction, "size": size, "batch": batch, "runs": runs, "flops": flops}
    return [shared | {"ceiling": statistics.median(ceilings)} | row for row in rows]


def _row(subject, device):
    seconds = [run["seconds"] for run in subject.runs]
    return {
        "subject": subject.name,
        "precision": {**subjects.our_subjects(device), **subjects.peers(device)}[subject.name].precision,
        "seconds": statistics.median(seconds),
        "least": min(seconds),
        "most": max(seconds),
        "memory": max(run["memory"] for run in subject.runs),
        "error": subject.error,
    }


def machine():
    """The machine that was measured."""
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
    """The installed versions of all subjects."""
    from importlib import metadata

    names = ("vaespec", *(info.framework for info in backends()), "diffusers", "onnxruntime", "openvino")
    installed = {name: list(metadata.distributions(name=name)) for name in names}
    flax = {"Flax": ", ".join(subjects.FLAX[:3])}
    return {name: distributions[0].version for name, distributions in installed.items() if distributions} | flax


def main(arguments):
    """Writes the weights and the inputs, measures all cases and writes the report."""
    offered = {**subjects.our_subjects(arguments.device), **subjects.peers(arguments.device)}
    names = arguments.subjects or (QUICK if arguments.quick else tuple(offered))
    left_out = {name: offered[name].missing for name in names if offered[name].missing}
    names = [name for name in names if name not in left_out]
    report = {"machine": machine(), "device": arguments.device, "versions": versions(), "rows": []}
    report["left out"] = {name: f"{', '.join(missing)} not installed" for name, missing in left_out.items()} | {
        name: f"above {offered[name].up_to} px, where a run takes minutes"
        for name in names
        if max(arguments.sizes) > offered[name].up_to
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
        for size in arguments.sizes:
            running = [name for name in names if size <= offered[name].up_to]
            for batch in arguments.batches:
                for direction in arguments.directions:
                    shape = (batch, 3, size, size) if direction == "encode" else (batch, 4, size // 8, size // 8)
                    x = rng.uniform(-1, 1, shape) if direction == "encode" else rng.standard_normal(shape)
                    np.save(f"{folder}/{direction}.npy", x.astype(np.float32))
                    Path(f"{folder}/exact.npy").unlink(missing_ok=True)
                    case = direction, size, batch
                    report["rows"] += measure(folder, case, running, arguments.device, arguments.runs, pythons)
                    write(report, arguments.output)
                    print(f"{direction} {size} px, batch {batch}: done", file=sys.stderr, flush=True)
    print(arguments.output.with_suffix(".md").read_text())


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
    arguments = parser.parse_args()
    arguments.sizes = arguments.sizes or ([256] if arguments.quick else [256, 512, 1024])
    arguments.batches = arguments.batches or ([1] if arguments.quick else [1, 4])
    main(arguments)

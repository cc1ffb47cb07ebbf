"""How fast is a decode, or an encode, on the CPU? Stable Diffusion's VAE at full width in float32, beside diffusers.

    python benchmarks/speed.py [--sizes 256 512] [--runs 5] [--batch 1]

Each subject is a process of its own, which loads the same weights and waits; they run in turns, so that whatever else
the machine does falls on all of them. Prints the median and the spread of the times, the highest resident memory of a
process that does nothing but decode, and the error in relative L2 to diffusers' result in float64. Needs the `test`
extra.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MEASURED = """
import json, sys, time
import numpy as np
path, subject, direction = sys.argv[1:]
x = np.load(path + "/" + direction + ".npy")
{prepare}
for line in sys.stdin:
    start = time.perf_counter()
    y = run(x)
    seconds = time.perf_counter() - start
    if line.strip():
        np.save(line.strip(), np.asarray(y))
    status = open("/proc/self/status").read()
    print(json.dumps([seconds, int(status.split("VmHWM:")[1].split()[0]) * 1024]), flush=True)
"""
OURS = """
import vaespec
vae = vaespec.AutoencoderKL.from_pretrained(path, backend={backend!r}, device="cpu", precision={precision!r})
run = {{"encode": lambda x: vae.encode(x).latent_dist.mean, "decode": lambda z: vae.decode(z).sample}}[direction]
"""
DIFFUSERS = """
import diffusers, torch
torch.set_grad_enabled(False)
vae = diffusers.AutoencoderKL.from_pretrained(path).eval(){how}
run = {{
    "encode": lambda x: vae.encode(torch.from_numpy(x){how}).latent_dist.mean,
    "decode": lambda z: vae.decode(torch.from_numpy(z){how}).sample,
}}[direction]
"""
SUBJECTS = {
    "vaespec, numpy": OURS.format(backend="numpy", precision="default"),
    "vaespec, numpy, highest precision": OURS.format(backend="numpy", precision="highest"),
    "diffusers": DIFFUSERS.format(how=""),
    "diffusers, channels last": DIFFUSERS.format(how=".to(memory_format=torch.channels_last)"),
}
EXACT = DIFFUSERS.format(how=".double()")


class Subject:
    """A process that runs when it is asked to."""

    def __init__(self, prepare, folder, name, direction):
        command = [sys.executable, "-c", MEASURED.format(prepare=prepare), folder, name, direction]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self.process, self.seconds, self.memory = subprocess.Popen(command, **pipes), [], 0

    def run(self, result=""):
        """Once; its result goes to the file of that name."""
        self.process.stdin.write(f"{result}\n")
        self.process.stdin.flush()
        seconds, self.memory = json.loads(self.process.stdout.readline())
        self.seconds.append(seconds)

    def end(self):
        """No more runs."""
        self.process.stdin.close()
        self.process.wait()


def error(folder, name):
    """‖result - exact‖ / ‖exact‖."""
    import numpy as np

    actual, exact = (np.load(Path(folder) / f"{stem}.npy").astype(np.float64) for stem in (name, "exact"))
    return np.linalg.norm(actual - exact) / np.linalg.norm(exact)


def measure(folder, direction, runs):
    """Rows of the table: every subject, the exact one once."""
    exact = Subject(EXACT, folder, "exact", direction)
    exact.run(f"{folder}/exact.npy")
    exact.end()
    subjects = {name: Subject(prepare, folder, name, direction) for name, prepare in SUBJECTS.items()}
    for i, subject in enumerate(subjects.values()):
        subject.run(f"{folder}/{i}.npy")  # warm from here on
        subject.seconds.clear()
        subject.off = error(folder, i)
    for _ in range(runs):
        for subject in subjects.values():
            subject.run()
    for subject in subjects.values():
        subject.end()
    slowest = statistics.median(subjects["diffusers"].seconds)
    for name, subject in subjects.items():
        median = statistics.median(subject.seconds)
        spread = f"{min(subject.seconds):.2f} to {max(subject.seconds):.2f}"
        yield (
            name,
            f"{median:.2f}",
            spread,
            f"{slowest / median:.2f}",
            f"{subject.memory / 2**20:.0f}",
            f"{subject.off:.1e}",
        )


def main(sizes, runs, batch):
    """Make the weights and the inputs, measure, print."""
    import numpy as np

    from vaespec import AutoencoderKL, families

    print(f"{len(os.sched_getaffinity(0))} cores, {runs} runs, batch {batch}\n")
    print("| | | seconds | spread | times diffusers | MiB | error |\n|---|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        AutoencoderKL.from_config(families.config("sd1"), backend="numpy").save_pretrained(folder)
        for size in sizes:
            np.save(f"{folder}/encode.npy", rng.uniform(-1, 1, (batch, 3, size, size)).astype(np.float32))
            np.save(f"{folder}/decode.npy", rng.standard_normal((batch, 4, size // 8, size // 8), np.float32))
            for direction in ("decode", "encode"):
                for name, *figures in measure(folder, direction, runs):
                    print(f"| {direction}, {size} px | {name} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=(256, 512))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    asked = parser.parse_args()
    main(asked.sizes, asked.runs, asked.batch)

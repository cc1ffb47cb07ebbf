"""Measures how fast, and in how much memory, a Stable Diffusion VAE (335 MB) is loaded, beside safetensors itself.

    python benchmarks/loading.py [--runs 5]

Each run has its own process; cases run in turns. The file is in the system's cache. Memory is the growth of the peak
resident set since just before loading, as a multiple of the file. Prints the median of each.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from vaespec import AutoencoderKL, backends, families

MEASURED = """
import sys, time
def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))
{prepare}
open("/proc/self/clear_refs", "w").write("5")  # resets the peak
before, start = status("VmRSS"), time.perf_counter()
kept = {load}
print(time.perf_counter() - start, status("VmHWM") - before)
"""
PREPARE = "import vaespec; vaespec.load('tiny', backend={!r}, device='cpu')"  # imports first
LOAD = "vaespec.AutoencoderKL.from_single_file(sys.argv[1], backend={!r}, device='cpu')"
CASES = {
    "safetensors.numpy": ("from safetensors.numpy import load_file", "load_file(sys.argv[1])"),
    # safetensors.torch maps the file and reads nothing before a number is used; cloning reads everything.
    "safetensors.torch": ("from safetensors.torch import load_file", "load_file(sys.argv[1])"),
    "safetensors.torch, each tensor cloned": (
        "from safetensors.torch import load_file",
        "{name: tensor.clone() for name, tensor in load_file(sys.argv[1]).items()}",
    ),
    **{
        f"vaespec, {info.name}": (PREPARE.format(info.name), LOAD.format(info.name))
        for info in backends()
        if info.version
    },
}


def measure(case, path):
    """Seconds and bytes of one run."""
    prepare, load = CASES[case]
    command = [sys.executable, "-c", MEASURED.format(prepare=prepare, load=load), str(path)]
    seconds, grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), float(grown)


def main(runs):
    """Writes the file, measures all cases and prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sd1.safetensors"
        AutoencoderKL.from_config(families.config("sd1"), backend="numpy").save_single_file(path)
        size = path.stat().st_size
        results = {case: [] for case in CASES}
        for _ in range(runs):
            for case, measurements in results.items():
                measurements.append(measure(case, path))
    print(f"file: {size / 1e6:.0f} MB, {runs} runs\n")
    print("| | seconds | spread | peak memory, of the file |\n|---|---|---|---|")
    for case, measurements in results.items():
        seconds, grown = zip(*measurements, strict=True)
        spread = f"{min(seconds):.3f} to {max(seconds):.3f}"
        print(f"| {case} | {statistics.median(seconds):.3f} | {spread} | {statistics.median(grown) / size:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    main(parser.parse_args().runs)

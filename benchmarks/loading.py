"""How fast, and in how much memory, is a Stable Diffusion VAE (335 MB) loaded? Beside safetensors itself.

    python benchmarks/loading.py [--runs 5]

Each run is a process of its own, in turns; the file is in the system's cache. Memory is the growth of the peak resident
set from just before loading, as a multiple of the file. Prints the median of each.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MEASURED = """
import sys, time
def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))
{prepare}
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before, start = status("VmRSS"), time.perf_counter()
kept = {load}
print(time.perf_counter() - start, status("VmHWM") - before)
"""
PREPARE = "import vaespec; vaespec.load('tiny', backend={!r}, device='cpu')"  # so that imports are not measured
LOAD = "vaespec.AutoencoderKL.from_single_file(sys.argv[1], backend={!r}, device='cpu')"
CASES = {
    "safetensors.numpy": ("from safetensors.numpy import load_file", "load_file(sys.argv[1])"),
    "vaespec, numpy": (PREPARE.format("numpy"), LOAD.format("numpy")),
    # Which only maps the file: nothing is read before somebody looks at a number. The second reads it.
    "safetensors.torch": ("from safetensors.torch import load_file", "load_file(sys.argv[1])"),
    "safetensors.torch, each tensor cloned": (
        "from safetensors.torch import load_file",
        "{name: tensor.clone() for name, tensor in load_file(sys.argv[1]).items()}",
    ),
    "vaespec, torch": (PREPARE.format("torch"), LOAD.format("torch")),
}


def measure(case, path):
    """Seconds and bytes of one run."""
    prepare, load = CASES[case]
    command = [sys.executable, "-c", MEASURED.format(prepare=prepare, load=load), str(path)]
    seconds, grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), float(grown)


def main(runs):
    """Make the file, measure, print."""
    from vaespec import AutoencoderKL, families

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sd1.safetensors"
        AutoencoderKL.from_config(families.config("sd1"), backend="numpy").save_single_file(path)
        size = path.stat().st_size
        found = {case: [] for case in CASES}
        for _ in range(runs):
            for case, results in found.items():
                results.append(measure(case, path))
    print(f"file: {size / 1e6:.0f} MB, {runs} runs\n")
    print("| | seconds | spread | peak memory, of the file |\n|---|---|---|---|")
    for case, results in found.items():
        seconds, grown = zip(*results, strict=True)
        spread = f"{min(seconds):.3f} to {max(seconds):.3f}"
        print(f"| {case} | {statistics.median(seconds):.3f} | {spread} | {statistics.median(grown) / size:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    main(parser.parse_args().runs)

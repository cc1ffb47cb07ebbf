"""How much memory does a decode take? SD's decoder at full width in float32 on the CPU; prints a table.

    python benchmarks/memory.py [--sizes 512 1024] [--cases ...]

Each case runs in a process of its own: its peak is the resident memory the system has seen, frameworks and weights
included. The error is relative L2 to the untiled decode of the same backend. Needs the `test` extra; about fifteen
minutes on two cores.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from vaespec import families
from vaespec.architecture import decoder
from vaespec.backend import get_backend, make_ops
from vaespec.tiling.banded import BandedOps

CONFIG = families.config("sd1")


def drawn(row, rng):
    """A parameter that neither lets maps die out nor grow."""
    if row.role in ("conv", "linear"):
        return rng.standard_normal(row.shape, np.float32) / np.float32(row.fan_in**0.5)
    return np.full(row.shape, row.role == "norm_scale", np.float32)


def ours(backend, how):
    """decode(z), untiled where `how` is None, else in bands kept where it says."""
    ops = make_ops(get_backend(backend), "cpu", "float32", "default")
    table, params, rng = dict(decoder(CONFIG).parameters()), {}, np.random.default_rng(0)
    for name, row in table.items():  # one at a time: nothing but the weights is in memory
        params |= ops.prepare({name: drawn(row, rng)}, table)
    run = (BandedOps(ops, store=how) if how else ops).compile(decoder(CONFIG))
    return lambda z: ops.to_numpy(run(ops.from_numpy(z), params))


def diffusers(tiled):
    """decode(z) of diffusers' model, without its encoder, which is not wanted here either."""
    import torch
    from diffusers import AutoencoderKL

    fields = {name: value for name, value in CONFIG.to_dict().items() if not name.startswith("_")}
    vae = AutoencoderKL(**fields).eval()
    del vae.encoder
    vae.use_tiling = tiled

    @torch.no_grad()
    def decode(z):
        return vae.decode(torch.tensor(z)).sample.numpy()

    return decode


CASES = {
    "diffusers": lambda: diffusers(False),
    "diffusers, blended tiles": lambda: diffusers(True),
    "torch": lambda: ours("torch", None),
    "torch, bands": lambda: ours("torch", "device"),
    "torch, bands in a file": lambda: ours("torch", tempfile.gettempdir()),
    "numpy": lambda: ours("numpy", None),
    "numpy, bands": lambda: ours("numpy", "device"),
    "numpy, bands in a file": lambda: ours("numpy", tempfile.gettempdir()),
}


def measure(case, size, result):
    """Decode once and write {peak, seconds}, and the image into the file `result`."""
    z = np.random.default_rng(0).standard_normal((1, CONFIG.latent_channels, size // 8, size // 8), np.float32)
    decode = CASES[case]()
    decode(z[:, :, :4, :4])  # what is done once only
    before = time.perf_counter()
    image = decode(z)
    seconds = time.perf_counter() - before
    np.save(result, image)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"peak": peak, "seconds": seconds}))


def compare(sizes, cases):
    """A row for each size and case."""
    print("| px | case | peak GiB | of diffusers | seconds | error |\n|---|---|---|---|---|---|")
    for size in sizes:
        whole, peaks = {}, {}
        for case in cases:
            with tempfile.TemporaryDirectory() as folder:
                result = os.path.join(folder, "image.npy")
                command = [sys.executable, __file__, "--measure", case, "--sizes", str(size), "--result", result]
                row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                image = np.load(result)
            name = case.split(",")[0]
            expected = whole.setdefault(name, image)
            peaks[case] = row["peak"]
            error = np.linalg.norm(image - expected) / np.linalg.norm(expected)
            share = row["peak"] / peaks.get("diffusers", np.nan)
            print(f"| {size} | {case} | {row['peak'] / 2**30:.2f} | {share:.2f} | {row['seconds']:.0f} | {error:.1e} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=(512, 1024), help="of the images, in px")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=tuple(CASES))
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure, asked.sizes[0], asked.result)
    else:
        compare(asked.sizes, asked.cases)

"""Measures memory and time of SD's decoder at full width, in float32, on the CPU; prints a table.

    python benchmarks/memory.py [--sizes 512 1024] [--cases ...] [--runs 1]

Each run has its own process. Its peak is the highest resident memory of the process, with frameworks and weights;
`estimated` is the planner's estimate just before the run. Cases run in turns; seconds are medians. The error is the
relative L2 to the untiled decode of the same backend. Needs the `test` extra; about half an hour on two cores.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial

import numpy as np

from vaespec import families
from vaespec.architecture import DECODER, decoder
from vaespec.layers import Sequential
from vaespec.model import Model
from vaespec.registry import backends, get_backend, make_ops
from vaespec.tiling import planner
from vaespec.tiling.banded import BandedOps
from vaespec.tiling.planner import MemoryPlan

CONFIG = families.config("sd1")


def drawn(row, rng):
    """A random parameter that keeps the size of maps from layer to layer."""
    if row.role in ("conv", "linear"):
        return rng.standard_normal(row.shape, np.float32) / np.float32(row.fan_in**0.5)
    return np.full(row.shape, row.role == "norm_scale", np.float32)


def ours(backend, store):
    """(decode(z), estimate(z) in bytes): untiled if `store` is None, else in bands whose maps are stored there."""
    ops = make_ops(get_backend(backend), "cpu", "float32", "default")
    layers, rng = decoder(CONFIG), np.random.default_rng(0)
    table, params = dict(layers.parameters()), {}
    for name, row in table.items():  # one at a time, so that memory holds the weights once
        params |= ops.load_params({name: drawn(row, rng)}, table)
    model = Model(CONFIG, Sequential(()), layers, params, ops)
    plan = MemoryPlan(bands={"store": store} if store else None)
    run = (BandedOps(ops, **plan.bands) if store else ops).compile(layers)
    return (
        lambda z: ops.to_numpy(run(ops.from_numpy(z), params)),
        lambda z: planner.estimate(model, DECODER, z.shape, plan).peak,
    )


def diffusers(tiled):
    """(decode(z), no estimate) of diffusers' model without its encoder."""
    import torch
    from diffusers import AutoencoderKL

    fields = {name: value for name, value in CONFIG.to_dict().items() if not name.startswith("_")}
    torch.manual_seed(0)  # each process draws the same model
    vae = AutoencoderKL(**fields).eval()
    del vae.encoder
    vae.use_tiling = tiled

    @torch.no_grad()
    def decode(z):
        return vae.decode(torch.tensor(z)).sample.numpy()

    return decode, lambda z: None


CASES = {
    "diffusers": lambda: diffusers(False),
    "diffusers, blended tiles": lambda: diffusers(True),
    **{
        info.name + words: partial(ours, info.name, store)
        for info in backends()
        if info.version
        for words, store in (
            ("", None),
            (", bands", "device"),
            (", bands on the host", "host"),
            (", bands in a file", tempfile.gettempdir()),
        )
    },
}


def measure(case, size, result):
    """Decodes once, prints {peak, estimated, seconds} and writes the image to the file `result`."""
    z = np.random.default_rng(0).standard_normal((1, CONFIG.latent_channels, size // 8, size // 8), np.float32)
    decode, estimate = CASES[case]()
    decode(z[:, :, :4, :4])  # a first call compiles and allocates
    estimated, before = estimate(z), time.perf_counter()
    image = decode(z)
    seconds = time.perf_counter() - before
    np.save(result, image)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"peak": peak, "estimated": estimated, "seconds": seconds}))


def run(case, size):
    """(row, image) of one run in its own process; (None, None) if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        result = os.path.join(folder, "image.npy")
        command = [sys.executable, __file__, "--measure", case, "--sizes", str(size), "--result", result]
        done = subprocess.run(command, stdout=subprocess.PIPE)
        if done.returncode:
            return None, None
        return json.loads(done.stdout), np.load(result)


def compare(sizes, cases, runs):
    """Prints a row for each size and case."""
    print("| px | case | peak GiB | of diffusers | estimated | seconds | error |\n|---|---|---|---|---|---|---|")
    for size in sizes:
        rows, images = {case: [] for case in cases}, {}
        for _ in range(runs):
            for case in cases:
                row, images[case] = run(case, size)
                rows[case].append(row)
        for case in cases:
            if None in rows[case]:
                print(f"| {size} | {case} | out of memory, or ended otherwise | | | | |", flush=True)
                continue
            peak, seconds = (np.median([row[figure] for row in rows[case]]) for figure in ("peak", "seconds"))
            reference = rows.get("diffusers", [None])[0]
            share = f"{peak / reference['peak']:.2f}" if reference else ""
            estimated = ""
            if rows[case][0]["estimated"]:
                median = np.median([row["estimated"] for row in rows[case]])
                ratios = [row["estimated"] / row["peak"] for row in rows[case]]
                estimated = f"{median / 2**30:.2f} ({min(ratios):.2f}x to {max(ratios):.2f}x)"
            whole = images.get(case.split(",")[0])
            error = "" if whole is None else f"{np.linalg.norm(images[case] - whole) / np.linalg.norm(whole):.1e}"
            figures = f"{peak / 2**30:.2f} | {share} | {estimated} | {seconds:.1f} | {error}"
            print(f"| {size} | {case} | {figures} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=(512, 1024), help="of the images, in px")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=tuple(CASES))
    parser.add_argument("--runs", type=int, default=1, help="of each case, in turns")
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.sizes[0], arguments.result)
    else:
        compare(arguments.sizes, arguments.cases, arguments.runs)

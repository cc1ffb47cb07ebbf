"""How much memory does a decode take, and how long? SD's decoder at full width, float32, on the CPU; prints a table.

    python benchmarks/memory.py [--sizes 512 1024] [--cases ...] [--runs 1]

Each run has a process of its own: its peak is the resident memory the system has seen, frameworks and weights included,
and `estimated` what the planner said just before it. Runs of the cases take turns; seconds are medians. The error is
relative L2 to the untiled decode of the same backend. Needs the `test` extra; about fifteen minutes on two cores.
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
from vaespec.registry import get_backend, make_ops
from vaespec.tiling import planner
from vaespec.tiling.banded import BandedOps
from vaespec.tiling.planner import MemoryPlan

CONFIG = families.config("sd1")


def drawn(row, rng):
    """A parameter that neither lets maps die out nor grow."""
    if row.role in ("conv", "linear"):
        return rng.standard_normal(row.shape, np.float32) / np.float32(row.fan_in**0.5)
    return np.full(row.shape, row.role == "norm_scale", np.float32)


def ours(backend, how):
    """(decode(z), estimate(z) in bytes), untiled where `how` is None, else in bands kept where it says."""
    ops = make_ops(get_backend(backend), "cpu", "float32", "default")
    layers, rng = decoder(CONFIG), np.random.default_rng(0)
    table, params = dict(layers.parameters()), {}
    for name, row in table.items():  # one at a time: nothing but the weights is in memory
        params |= ops.load_params({name: drawn(row, rng)}, table)
    model = Model(CONFIG, Sequential(()), layers, params, ops)
    plan = MemoryPlan(bands={"store": how} if how else None)
    run = (BandedOps(ops, **plan.bands) if how else ops).compile(layers)
    return (
        lambda z: ops.to_numpy(run(ops.from_numpy(z), params)),
        lambda z: planner.estimate(model, DECODER, z.shape, plan).peak,
    )


def diffusers(tiled):
    """(decode(z), no estimate) of diffusers' model, without its encoder, which is not wanted here either."""
    import torch
    from diffusers import AutoencoderKL

    fields = {name: value for name, value in CONFIG.to_dict().items() if not name.startswith("_")}
    torch.manual_seed(0)  # every process draws the same model
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
        name + words: partial(ours, name, how)
        for name in ("torch", "numpy")
        for words, how in (
            ("", None),
            (", bands", "device"),
            (", bands on the host", "host"),
            (", bands in a file", tempfile.gettempdir()),
        )
    },
}


def measure(case, size, result):
    """Decode once and write {peak, estimated, seconds}, and the image into the file `result`."""
    z = np.random.default_rng(0).standard_normal((1, CONFIG.latent_channels, size // 8, size // 8), np.float32)
    decode, estimate = CASES[case]()
    decode(z[:, :, :4, :4])  # what is done once only
    estimated, before = estimate(z), time.perf_counter()
    image = decode(z)
    seconds = time.perf_counter() - before
    np.save(result, image)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"peak": peak, "estimated": estimated, "seconds": seconds}))


def measured(case, size):
    """(row, image) of one run, in a process of its own; a row without figures where it ends otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        result = os.path.join(folder, "image.npy")
        command = [sys.executable, __file__, "--measure", case, "--sizes", str(size), "--result", result]
        done = subprocess.run(command, stdout=subprocess.PIPE)
        if done.returncode:
            return None, None
        return json.loads(done.stdout), np.load(result)


def compare(sizes, cases, runs):
    """A row for each size and case."""
    print("| px | case | peak GiB | of diffusers | estimated | seconds | error |\n|---|---|---|---|---|---|---|")
    for size in sizes:
        rows, images = {case: [] for case in cases}, {}
        for _ in range(runs):
            for case in cases:
                row, images[case] = measured(case, size)
                rows[case].append(row)
        for case in cases:
            if None in rows[case]:
                print(f"| {size} | {case} | out of memory, or ended otherwise | | | | |", flush=True)
                continue
            peak, seconds = (np.median([row[what] for row in rows[case]]) for what in ("peak", "seconds"))
            reference = rows.get("diffusers", [None])[0]
            share = f"{peak / reference['peak']:.2f}" if reference else ""
            estimated = ""
            if rows[case][0]["estimated"]:
                said = np.median([row["estimated"] for row in rows[case]])
                ratios = [row["estimated"] / row["peak"] for row in rows[case]]
                estimated = f"{said / 2**30:.2f} ({min(ratios):.2f}x to {max(ratios):.2f}x)"
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
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure, asked.sizes[0], asked.result)
    else:
        compare(asked.sizes, asked.cases, asked.runs)

"""Measures each convolution of Stable Diffusion's VAE on NumPy, and prints a table of forms and rates.

    python benchmarks/engine.py [--size 256] [--runs 5]

GFLOP/s count the flops of the convolution as it is written, so a form with fewer multiplications can exceed the
ceiling: the rate of a product of two 2048 × 2048 matrices in the same run. Inputs have the shapes of the maps in the
decoder and the encoder for images of that size; times are medians.
"""

import argparse
import statistics
import time

import numpy as np

from vaespec.analysis.cost import CostOps
from vaespec.architecture import decoder, encoder
from vaespec.families import config
from vaespec.layers import Upsample
from vaespec.registry import get_backend, make_ops
from vaespec_cpu.lazy import Upsampled2x


class ListedOps(CostOps):
    """Counts the convolutions of a model by shapes of x and w, stride, padding, and whether x was upsampled before."""

    def __init__(self):
        super().__init__(bytes_per_number=4)
        self.listed, self.doubling = {}, False

    def run(self, layer, x, params):
        """Runs a layer and notes whether it upsamples."""
        self.doubling = isinstance(layer, Upsample)
        y = layer(x, params, self)
        self.doubling = False
        return y

    def conv2d(self, x, w, b, *, stride, padding):
        """Counts the convolution."""
        key = (x.shape, w.shape, stride, padding, self.doubling)
        self.listed[key] = self.listed.get(key, 0) + 1
        return super().conv2d(x, w, b, stride=stride, padding=padding)


def seconds(call, runs):
    """The median of `runs` calls, after a first one to warm up."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def ceiling(runs):
    """The rate of a matrix product in GFLOP/s."""
    a = np.random.default_rng(0).standard_normal((2048, 2048), np.float32)
    return 2 * 2048**3 / seconds(lambda: a @ a, runs) / 1e9


def measure(ops, listed, runs):
    """Yields (description, count, form, milliseconds, GFLOP/s) of each convolution."""
    rng = np.random.default_rng(0)
    for (shape, kernel, stride, padding, doubled), times in listed.items():
        (B, C, H, W), (O, _, kh, kw) = shape, kernel
        x = rng.standard_normal((B, H // 2, W // 2, C) if doubled else (B, H, W, C), np.float32)
        w, b = rng.standard_normal((kh, kw, C, O), np.float32), rng.standard_normal(O, np.float32)
        choice = ops.convolution_form(shape, kernel, stride=stride, padding=padding, doubled=doubled)
        if doubled:
            x = Upsampled2x.of(x)
        how = {"stride": stride, "padding": padding}
        taken = seconds(lambda x=x, w=w, b=b, how=how: ops.conv2d(x, w, b, **how), runs)
        flops = 2 * B * (H // stride) * (W // stride) * C * O * kh * kw
        what = f"{C} -> {O}, {kh} × {kw}, {H} × {W}" + (", halved" if stride == 2 else ", doubled" if doubled else "")
        yield what, times, choice.form, taken * 1e3, flops / taken / 1e9


def main(size, runs):
    """Lists the convolutions of both halves, measures them and prints the table."""
    ops = make_ops(get_backend("numpy"), "cpu", "float32", "default")
    sd = config("sd1")
    for half, shape in ((decoder(sd), (1, 4, size // 8, size // 8)), (encoder(sd), (1, 3, size, size))):
        listing = ListedOps()
        half(listing.array(*shape), dict(half.parameters()), listing)
        print(f"\nceiling {ceiling(runs):.0f} GFLOP/s\n")
        print("| convolution | times | form | ms | GFLOP/s |\n|---|---|---|---|---|")
        total = 0.0
        for description, count, form, taken, rate in measure(ops, listing.listed, runs):
            total += count * taken
            print(f"| {description} | {count} | {form} | {taken:.1f} | {rate:.0f} |", flush=True)
        print(f"\nall convolutions: {total:.0f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    main(arguments.size, arguments.runs)

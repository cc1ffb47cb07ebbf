"""Convolution by an algorithm of vaespec_cpu.winograd, on blocks of tiles that stay in a core's cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.lib.stride_tricks import as_strided

from vaespec_cpu.lazy import LazyMap, window
from vaespec_cpu.memory import Array, Scratch, fresh
from vaespec_cpu.threads import cores, share
from vaespec_cpu.winograd import Algorithm

TILES = 256  # in a block: as many as efficient matrix products need, and no more
FEW_TILES = 128  # per core: fewer are not worth reading all kernels
FEW_CHANNELS = 128  # outputs per block: fewer are not worth the transforms of all its inputs
KERNEL_ELEMENTS = 1 << 13  # kernels transformed at a time: such small matrix products go without packing


@dataclass(frozen=True)
class Block:
    """Some tiles of an item, `rows` and `columns` of them, and the output channels to compute."""

    item: int
    rows: range
    columns: range
    channels: slice


def blocks(items: int, rows: int, columns: int, channels: int) -> Iterator[Block]:
    """Yield all tiles in blocks of about TILES, of nearly equal size, equally many for each core.

    If tiles are few, cores share the channels: then each half of a matrix is read once, not the whole matrix twice.
    """
    wide = -(-columns // TILES)
    high = -(-rows // max(1, TILES // -(-columns // wide)))
    deep = max(1, min(cores() // max(1, items * rows * columns // FEW_TILES), channels // FEW_CHANNELS))
    while high < rows and items * wide * high * deep % cores():
        high += 1
    parts = product(range(items), _parts(rows, high), _parts(columns, wide), _parts(channels, deep))
    for item, some_rows, some_columns, some in parts:
        yield Block(item, some_rows, some_columns, slice(some.start, some.stop))


def _parts(length: int, parts: int) -> Iterator[range]:
    for i in range(parts):
        yield range(length * i // parts, length * (i + 1) // parts)


def tiled_conv2d(
    algorithm: Algorithm,
    source: LazyMap,
    w: Array,
    b: Array,
    residual: Array | None,
    before: tuple[int, int],
    size: tuple[int, int],
    scratch: Scratch,
    skipped: int = 0,
) -> Array:
    """Compute the first `size` outputs of a source with (above, left) zeros `before` it, and zeros after it as needed.

    w (3, 3, C, O), b (O,) -> (B, rows, columns, O), plus a residual of that shape, if any. The first `skipped` rows of
    outputs are left out. Each thread takes a block from its inputs to its outputs.
    """
    (h, wd), lead = size, (algorithm.lead + skipped, algorithm.lead)
    A, B, G = (matrix.astype(w.dtype) for matrix in (algorithm.A, algorithm.B, algorithm.G))
    kernels = scratch.again("kernels", w, algorithm, make=lambda: transformed_kernels(G, w, scratch))
    y = fresh((source.shape[0], h, wd, w.shape[3]), w.dtype)

    def compute(block: Block) -> None:
        part, k = (block.item, ..., block.channels), len(block.rows)
        inputs = inputs_of(algorithm, source, before, block, scratch)
        across = inputs_across(algorithm, B, inputs, len(block.columns), scratch)
        down = outputs_down(algorithm, A, B, across, kernels[..., block.channels], k, scratch)
        outputs = outputs_across(A, down, inputs, scratch)
        added = None if residual is None else residual[part]
        store(outputs, b[block.channels], added, algorithm.outputs, lead, block, y[part])

    share(compute, list(blocks(len(y), algorithm.tiles(h + skipped), algorithm.tiles(wd), len(b))))
    return y


def scratch_of_tiles(algorithm: Algorithm, C: int, O: int) -> int:
    """Count the scratch numbers: the kernels, and for every core a block of tiles from inputs to outputs."""
    n, m, step = algorithm.products, algorithm.outputs, algorithm.step
    down = 0 if in_place(algorithm, C, O) else m * n * O
    across = 0 if m * m * O <= step * step * C else m * m * O
    per_tile = (step * step + step * n + n) * C + n * O + down + across
    return n * n * C * O + cores() * TILES * per_tile


def transformed_kernels(G: Array, w: Array, scratch: Scratch) -> Array:
    """Compute G w Gᵀ for every pair of channels: w (3, 3, C, O) -> (n, n, C, O)."""
    n, (_, _, C, O) = G.shape[0], w.shape
    kernels = scratch("kernels", n, n, C * O)
    taps = w.reshape(3, 3, C * O)

    def strip(part: slice) -> None:
        columns = np.matmul(G, taps[:, :, part])  # (3, n, part)
        np.matmul(G, columns.transpose(1, 0, 2), out=kernels[:, :, part].transpose(1, 0, 2))

    share(strip, [slice(i, i + KERNEL_ELEMENTS) for i in range(0, C * O, KERNEL_ELEMENTS)])
    return kernels.reshape(n, n, C, O)


def inputs_of(algorithm: Algorithm, source: LazyMap, before: tuple[int, int], block: Block, scratch: Scratch) -> Array:
    """Read the inputs of the tiles of a block: (rows, columns, C)."""
    rows, columns = (algorithm.step * (len(part) - 1) + algorithm.span for part in (block.rows, block.columns))
    corner = (algorithm.step * block.rows.start - before[0], algorithm.step * block.columns.start - before[1])
    return window(source, block.item, corner, 1, scratch("inputs", rows, columns, source.shape[3]))


def inputs_across(algorithm: Algorithm, B: Array, inputs: Array, j: int, scratch: Scratch) -> Array:
    """Compute Bᵀ d along the columns of j tiles: (rows, columns, C) -> (rows, n, j, C)."""
    (rows, _, C), (row, pixel, channel) = inputs.shape, inputs.strides
    tiles = as_strided(inputs, (rows, j, algorithm.span, C), (row, algorithm.step * pixel, pixel, channel))
    across = scratch("across", rows, algorithm.products, j, C)
    np.matmul(B.T, tiles, out=across.transpose(0, 2, 1, 3))
    return across


def inputs_down(algorithm: Algorithm, B: Array, across: Array, k: int, scratch: Scratch) -> Array:
    """Compute Bᵀ d along the rows: (rows, tiles across, C) -> (n, k · tiles across, C)."""
    (_, j, C), (row, _, channel) = across.shape, across.strides
    tiles = as_strided(across, (k, algorithm.span, j * C), (algorithm.step * row, row, channel))
    both = scratch("both", algorithm.products, k, j * C)
    np.matmul(B.T, tiles, out=both.transpose(1, 0, 2))
    return both.reshape(algorithm.products, k * j, C)


def outputs_down(
    algorithm: Algorithm, A: Array, B: Array, across: Array, kernels: Array, k: int, scratch: Scratch
) -> Array:
    """Compute the products p, and Aᵀ p along the rows: (rows, n, j, C) of k tiles, (n, n, C, O) -> (k · m, n, j, O).

    One column of products at a time, which stays in the cache. It replaces its inputs in memory if it is as large.
    """
    (_, n, j, C), m, O = across.shape, algorithm.outputs, kernels.shape[3]
    down = across[: k * m] if in_place(algorithm, C, O) else scratch("down", k * m, n, j, O)
    columns, products = down.reshape(k, m, n, j * O), scratch("products", n, k * j, O)
    for v in range(n):
        np.matmul(inputs_down(algorithm, B, across[:, v], k, scratch), kernels[:, v], out=products)
        np.matmul(A.T, products.reshape(n, k, j * O).transpose(1, 0, 2), out=columns[:, :, v])
    return down


def in_place(algorithm: Algorithm, C: int, O: int) -> bool:
    """Whether the outputs of tiles along the rows fit into the memory of their inputs."""
    return O == C and algorithm.outputs <= algorithm.step


def outputs_across(A: Array, down: Array, inputs: Array, scratch: Scratch) -> Array:
    """Compute Aᵀ p along the columns: (rows, n, j, O) -> (rows, j · m, O), in the memory of the inputs if it fits."""
    (rows, _, j, O), m = down.shape, A.shape[1]
    size = rows * j * m * O
    across = inputs.reshape(-1)[:size] if size <= inputs.size else scratch("outputs", size)
    np.matmul(A.T, down.transpose(0, 2, 1, 3), out=across.reshape(rows, j, m, O))
    return across.reshape(rows, j * m, O)


def store(
    outputs: Array, b: Array, residual: Array | None, m: int, lead: tuple[int, int], block: Block, y: Array
) -> None:
    """Store the outputs of a block, m per tile, plus b and a residual, in y (H, W, the block's channels).

    The first `lead` rows and columns of the first tiles are outside y, and so is the excess of the last tiles.
    """
    sides = list(zip((block.rows, block.columns), lead, strict=True))
    top, left = (max(0, before - m * part.start) for part, before in sides)
    rows, columns = (slice(max(0, m * part.start - before), m * part.stop - before) for part, before in sides)
    out = y[rows, columns]
    np.add(outputs[top : top + out.shape[0], left : left + out.shape[1]], b, out=out)
    if residual is not None:
        out += residual[rows, columns]

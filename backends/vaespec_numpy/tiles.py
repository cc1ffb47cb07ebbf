"""A convolution as an algorithm of vaespec_numpy.winograd, on blocks of tiles that stay in a core's cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.lib.stride_tricks import as_strided

from vaespec_numpy.sources import Source, window
from vaespec_numpy.strips import Scratch, cores, fresh, share
from vaespec_numpy.winograd import Algorithm

TILES = 256  # in a block: as many as the matrix products need to be efficient, and no more
FEW_TILES = 128  # for a core: fewer are not worth reading all kernels
FEW_CHANNELS = 128  # to make of a block: fewer are not worth the transforms of all its inputs
KERNEL_ELEMENTS = 1 << 13  # kernels transformed at a time: such small matrix products go without packing


@dataclass(frozen=True)
class Block:
    """Some tiles of an item, `rows` and `columns` of them, and which channels of theirs are made."""

    item: int
    rows: range
    columns: range
    channels: slice


def blocks(items: int, rows: int, columns: int, channels: int) -> Iterator[Block]:
    """All tiles, in blocks of about TILES, of much the same size, as many for one core as for another.

    Where tiles are few, cores share the channels: halves of a matrix are read once, halves of the tiles read it twice.
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
    source: Source,
    w: np.ndarray,
    b: np.ndarray,
    residual: np.ndarray | None,
    before: tuple[int, int],
    size: tuple[int, int],
    scratch: Scratch,
    skipped: int = 0,
) -> np.ndarray:
    """The first `size` outputs from a source with (above, left) zeros `before` it and as many after as it takes.

    w (3, 3, C, O), b (O,) -> (B, rows, columns, O), and as much of a residual is added, if any. The first rows may be
    `skipped`. Each thread takes a block from its inputs to its outputs.
    """
    (h, wd), lead = size, (algorithm.lead + skipped, algorithm.lead)
    A, B, G = (matrix.astype(w.dtype) for matrix in (algorithm.A, algorithm.B, algorithm.G))
    kernels = scratch.again("kernels", w, algorithm, make=lambda: transformed_kernels(G, w, scratch))
    y = fresh((source.shape[0], h, wd, w.shape[3]), w.dtype)

    def compute(block: Block) -> None:
        across = inputs_across(algorithm, B, source, before, block, scratch)
        k, j, n, m = len(block.rows), len(block.columns), algorithm.products, algorithm.outputs
        O = len(b[block.channels])
        # A column of outputs takes the place of the inputs that it is made of, where it is as large.
        half = across[: k * m] if in_place(algorithm, across.shape[3], O) else scratch("half", k * m, n, j, O)
        half = half.reshape(k, m, n, j * O)
        products = scratch("products", n, k * j, O)
        for v in range(n):  # a column of products at a time: they stay in the cache
            np.matmul(
                inputs_down(algorithm, B, across[:, v], k, scratch), kernels[:, v, :, block.channels], out=products
            )
            np.matmul(A.T, products.reshape(n, k, j * O).transpose(1, 0, 2), out=half[:, :, v])
        found = scratch("inputs", k * m, j, m, O)  # those are done with
        np.matmul(A.T, half.reshape(-1, n, j, O).transpose(0, 2, 1, 3), out=found)
        found, where = found.reshape(k * m, j * m, O), (block.item, ..., block.channels)
        more = None if residual is None else residual[where]
        store(found, b[block.channels], more, m, lead, block, y[where])

    share(compute, list(blocks(len(y), algorithm.tiles(h + skipped), algorithm.tiles(wd), len(b))))
    return y


def in_place(algorithm: Algorithm, C: int, O: int) -> bool:
    """Whether a tile's outputs, known along its rows only, are as many as its inputs are, known along the columns."""
    return O == C and algorithm.outputs <= algorithm.step


def scratch_of_tiles(algorithm: Algorithm, C: int, O: int) -> int:
    """Numbers: the kernels, and on every core a block of tiles on its way from inputs to outputs."""
    n, m, step = algorithm.products, algorithm.outputs, algorithm.step
    half = 0 if in_place(algorithm, C, O) else m * n * O
    of_tile = max(step * step * C, m * m * O) + (step * n + n) * C + half + n * O
    return n * n * C * O + cores() * TILES * of_tile


def store(
    found: np.ndarray,
    b: np.ndarray,
    residual: np.ndarray | None,
    m: int,
    lead: tuple[int, int],
    block: Block,
    y: np.ndarray,
) -> None:
    """The outputs of a block, m of a tile, plus b and a residual, to where they belong in y (H, W, its channels).

    `lead` rows and columns of the first tiles lie outside of it, and what is left of the last ones.
    """
    sides = list(zip((block.rows, block.columns), lead, strict=True))
    top, left = (max(0, before - m * part.start) for part, before in sides)
    rows, columns = (slice(max(0, m * part.start - before), m * part.stop - before) for part, before in sides)
    out = y[rows, columns]
    np.add(found[top : top + out.shape[0], left : left + out.shape[1]], b, out=out)
    if residual is not None:
        out += residual[rows, columns]


def transformed_kernels(G: np.ndarray, w: np.ndarray, scratch: Scratch) -> np.ndarray:
    """G w Gᵀ of every pair of channels: w (3, 3, C, O) -> (n, n, C, O)."""
    n, (_, _, C, O) = G.shape[0], w.shape
    kernels = scratch("kernels", n, n, C * O)
    taps = w.reshape(3, 3, C * O)

    def strip(part: slice) -> None:
        columns = np.matmul(G, taps[:, :, part])  # (3, n, part)
        np.matmul(G, columns.transpose(1, 0, 2), out=kernels[:, :, part].transpose(1, 0, 2))

    share(strip, [slice(i, i + KERNEL_ELEMENTS) for i in range(0, C * O, KERNEL_ELEMENTS)])
    return kernels.reshape(n, n, C, O)


def inputs_across(
    algorithm: Algorithm, B: np.ndarray, source: Source, before: tuple[int, int], block: Block, scratch: Scratch
) -> np.ndarray:
    """Bᵀ d along the columns of a block: (rows, n, tiles across, C)."""
    C, span, step = source.shape[3], algorithm.span, algorithm.step
    rows, columns = (step * (len(part) - 1) + span for part in (block.rows, block.columns))
    corner = (step * block.rows.start - before[0], step * block.columns.start - before[1])
    inputs = window(source, block.item, corner, 1, scratch("inputs", rows, columns, C))
    row, pixel, channel = inputs.strides
    tiles = as_strided(inputs, (rows, len(block.columns), span, C), (row, step * pixel, pixel, channel))
    across = scratch("across", rows, algorithm.products, len(block.columns), C)
    np.matmul(B.T, tiles, out=across.transpose(0, 2, 1, 3))
    return across


def inputs_down(algorithm: Algorithm, B: np.ndarray, across: np.ndarray, k: int, scratch: Scratch) -> np.ndarray:
    """Bᵀ d along the rows: (rows, tiles across, C) -> (n, k · tiles across, C)."""
    (_, j, C), (row, _, channel) = across.shape, across.strides
    tiles = as_strided(across, (k, algorithm.span, j * C), (algorithm.step * row, row, channel))
    both = scratch("both", algorithm.products, k, j * C)
    np.matmul(B.T, tiles, out=both.transpose(1, 0, 2))
    return both.reshape(algorithm.products, k * j, C)

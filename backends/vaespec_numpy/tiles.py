"""A convolution as an algorithm of vaespec_numpy.winograd, on blocks of tiles that stay in a core's cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

from vaespec_numpy.sources import Source, window
from vaespec_numpy.strips import Scratch, cores, share
from vaespec_numpy.winograd import Algorithm

TILES = 128  # in a block: as many as the matrix products need to be efficient, and no more
KERNEL_ELEMENTS = 1 << 13  # kernels transformed at a time: such small matrix products go without packing


@dataclass(frozen=True)
class Block:
    """Some tiles of an item: `rows` and `columns` of them."""

    item: int
    rows: range
    columns: range


def blocks(items: int, rows: int, columns: int) -> Iterator[Block]:
    """All tiles, in blocks of about TILES, of much the same size, as many for one core as for another."""
    wide = -(-columns // TILES)
    high = -(-rows // max(1, TILES // -(-columns // wide)))
    while high < rows and items * wide * high % cores():
        high += 1
    for item in range(items):
        for some_rows in _parts(rows, high):
            for some_columns in _parts(columns, wide):
                yield Block(item, some_rows, some_columns)


def _parts(length: int, parts: int) -> Iterator[range]:
    for i in range(parts):
        yield range(length * i // parts, length * (i + 1) // parts)


def tiled_conv2d(
    algorithm: Algorithm,
    source: Source,
    w: np.ndarray,
    b: np.ndarray,
    before: tuple[int, int],
    size: tuple[int, int],
    scratch: Scratch,
) -> np.ndarray:
    """The first `size` outputs from a source with (above, left) zeros `before` it and as many after as it takes.

    w (3, 3, C, O), b (O,) -> (B, rows, columns, O). Each thread takes a block from its inputs to its outputs.
    """
    (h, wd), x = size, source.x
    A, B, G = (matrix.astype(x.dtype) for matrix in (algorithm.A, algorithm.B, algorithm.G))
    kernels = transformed_kernels(G, w, scratch)
    y = np.empty((x.shape[0], h, wd, w.shape[3]), x.dtype)

    def compute(block: Block) -> None:
        tiles = transformed_inputs(algorithm, B, source, before, block, scratch)
        products = scratch("products", *tiles.shape[:3], w.shape[3])
        np.matmul(tiles, kernels, out=products)
        found = outputs(A, products, len(block.rows), len(block.columns), scratch)
        i, j = (max(0, algorithm.outputs * part.start - algorithm.lead) for part in (block.rows, block.columns))
        out = y[block.item, i : algorithm.outputs * block.rows.stop - algorithm.lead]
        out = out[:, j : algorithm.outputs * block.columns.stop - algorithm.lead]
        top, left = (algorithm.lead if part.start == 0 else 0 for part in (block.rows, block.columns))
        np.add(found[top : top + out.shape[0], left : left + out.shape[1]], b, out=out)

    share(compute, list(blocks(x.shape[0], algorithm.tiles(h), algorithm.tiles(wd))))
    return y


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


def transformed_inputs(
    algorithm: Algorithm, B: np.ndarray, source: Source, before: tuple[int, int], block: Block, scratch: Scratch
) -> np.ndarray:
    """Bᵀ d B of each tile d of a block, and of each channel: (n, n, tiles, C)."""
    C, n, span, step = source.x.shape[3], algorithm.products, algorithm.span, algorithm.step
    k, j = len(block.rows), len(block.columns)
    rows, columns = (step * (tiles - 1) + span for tiles in (k, j))
    corner = (step * block.rows.start - before[0], step * block.columns.start - before[1])
    inputs = window(source, block.item, corner, scratch("inputs", rows, columns, C))

    row, pixel, channel = inputs.strides
    tiles = as_strided(inputs, (rows, j, span, C), (row, step * pixel, pixel, channel))
    across = scratch("across", rows, n, j, C)
    np.matmul(B.T, tiles, out=across.transpose(0, 2, 1, 3))

    row, product, pixel, channel = across.strides
    tiles = as_strided(across, (n, k, span, j * C), (product, step * row, row, channel))
    both = scratch("both", n, n, k, j * C)
    np.matmul(B.T, tiles, out=both.transpose(1, 2, 0, 3))
    return both.reshape(n, n, k * j, C)


def outputs(A: np.ndarray, products: np.ndarray, k: int, j: int, scratch: Scratch) -> np.ndarray:
    """Aᵀ M A of each tile: products M (n, n, k · j, O) -> (k · m, j · m, O)."""
    (n, m), O = A.shape, products.shape[3]
    down = scratch("down", k, m, n, j * O)
    np.matmul(A.T, products.reshape(n, n, k, j * O).transpose(2, 1, 0, 3), out=down.transpose(0, 2, 1, 3))
    found = scratch("found", k * m, j, m, O)
    np.matmul(A.T, down.reshape(k * m, n, j, O).transpose(0, 2, 1, 3), out=found)
    return found.reshape(k * m, j * m, O)

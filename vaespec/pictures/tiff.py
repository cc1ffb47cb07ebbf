"""TIFF files whose pixels Pillow cannot hold: floats, and colours of 16 bits. Pillow reads tags and decompresses."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from vaespec.pictures.values import FLOAT, SIXTEEN, straight

if TYPE_CHECKING:
    from typing import BinaryIO

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS, PLANAR = 273, 274, 277, 278, 279, 284
PREDICTOR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = 317, 322, 323, 324, 325
EXTRA, SAMPLE_FORMAT, PROFILE = 338, 339, 34675

UNSIGNED, FLOATING = 1, 3  # of SAMPLE_FORMAT
BLACK_IS_ZERO, COLOURS = 1, 2  # of PHOTOMETRIC
UNKNOWN, MULTIPLIED, ALPHA = 0, 1, 2  # of EXTRA
RAW, SEPARATE = 1, 2  # of COMPRESSION, of PLANAR
COMPRESSIONS = (RAW, 5, 8, 32773, 32946, 50000)  # none, LZW, deflate, PackBits, deflate, Zstandard
DIFFERENCES, FLOAT_DIFFERENCES = 2, 3  # of PREDICTOR
MANY_BLOCKS, SMALL = 4096, 1024  # so many blocks may have fewer pixels: each takes 0.6 ms, however small it is


@dataclass(frozen=True)
class Layout:
    """What the tags say of the pixels: blocks are strips, or tiles."""

    size: tuple[int, int]  # (width, height) before the rotation
    dtype: np.dtype  # of the file, in its order of bytes
    colours: int  # 1 or 3
    extra: int | None  # the meaning of the last sample, if it is no colour
    separate: bool  # each sample has blocks of its own
    compression: int
    predictor: int
    fill_order: int
    block: tuple[int, int]  # (rows, columns)
    tiled: bool
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    orientation: int = 1

    @property
    def samples(self) -> int:
        """The channels of a pixel in the file."""
        return self.colours + (self.extra is not None)

    @property
    def kept(self) -> np.dtype:
        """The dtype of the pixels in memory."""
        return FLOAT if self.dtype.kind == "f" else SIXTEEN

    @property
    def across(self) -> int:
        """Blocks in a row of blocks."""
        return -(-self.size[0] // self.block[1])

    @property
    def down(self) -> int:
        """Rows of blocks."""
        return -(-self.size[1] // self.block[0])

    @property
    def memory(self) -> int:
        """Bytes to hold while a row of blocks is read, as the file has it, decompressed and joined. Measured."""
        rows, columns = self.block
        copies = 2 if self.compression == RAW else 5
        return copies * rows * columns * self.across * self.samples * max(4, self.dtype.itemsize)


@dataclass
class FloatTiff:
    """An open TIFF that Pillow cannot open: it has the names of a Pillow picture that are asked before it is read."""

    fp: BinaryIO
    tag_v2: Any
    size: tuple[int, int]  # after the rotation, as Pillow says it of a TIFF
    mode: str
    info: dict[str, Any] = field(default_factory=dict)
    format: str = "TIFF"
    tile: tuple[str, ...] = ("unread",)

    width = property(lambda self: self.size[0])
    height = property(lambda self: self.size[1])


def opened(file: BinaryIO) -> FloatTiff | None:
    """The picture in a file that Pillow does not open, None if it is no TIFF that is read here."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    file.seek(0)
    head = file.read(8)
    if head[:4] not in (b"II*\0", b"MM\0*"):
        return None
    tags = ImageFileDirectory_v2(head)
    file.seek(tags.next)
    tags.load(file)
    found = layout(tags)
    if found is None:
        return None
    size = found.size if found.orientation < 5 else found.size[::-1]
    info = {"icc_profile": tags[PROFILE]} if PROFILE in tags else {}
    return FloatTiff(file, tags, size, "F" if found.colours == 1 else "RGB", info)


def layout(tags: Mapping[int, Any]) -> Layout | None:
    """Understands the tags, as Pillow gives them; None if the pixels are Pillow's to read, or nobody's."""
    samples, bits, kinds = tags.get(SAMPLES, 1), _all(tags, BITS, 1), _all(tags, SAMPLE_FORMAT, UNSIGNED)
    colours = {BLACK_IS_ZERO: 1, COLOURS: 3}.get(tags.get(PHOTOMETRIC, -1))
    deep = (kinds, bits) == (UNSIGNED, 16) and samples != 1
    if not deep and not (kinds == FLOATING and bits in (16, 32, 64)):
        return None
    if colours is None or samples not in (colours, colours + 1) or tags.get(COMPRESSION, RAW) not in COMPRESSIONS:
        return None
    tiled, width, height = TILE_OFFSETS in tags, tags.get(WIDTH, 0), tags.get(HEIGHT, 0)
    block = (
        (tags.get(TILE_HEIGHT, 0), tags.get(TILE_WIDTH, 0))
        if tiled
        else (min(tags.get(ROWS_PER_STRIP, height), height), width)
    )
    orientation = tags.get(ORIENTATION, 1)
    if not all(isinstance(n, int) and n > 0 for n in (width, height, *block)):
        return None
    return Layout(
        size=(width, height),
        dtype=np.dtype(f"{'<' if tags.prefix == b'II' else '>'}{'f' if kinds == FLOATING else 'u'}{bits // 8}"),  # type: ignore[attr-defined]
        colours=colours,
        extra=None if samples == colours else _extra(tags),
        separate=tags.get(PLANAR, 1) == SEPARATE,
        compression=tags.get(COMPRESSION, RAW),
        predictor=tags.get(PREDICTOR, 1),
        fill_order=tags.get(FILL_ORDER, 1),
        block=block,
        tiled=tiled,
        offsets=tuple(tags.get(TILE_OFFSETS if tiled else STRIP_OFFSETS, ())),
        counts=tuple(tags.get(TILE_COUNTS if tiled else STRIP_COUNTS, ())),
        orientation=orientation if orientation in range(1, 9) else 1,
    )


def _all(tags: Mapping[int, Any], tag: int, default: int) -> Any:
    """The one value of a tag that has a value for each sample; None if they differ."""
    values = tags.get(tag, default)
    values = set(values) if isinstance(values, tuple) else {values}
    return values.pop() if len(values) == 1 else None


def _extra(tags: Mapping[int, Any]) -> int:
    values = tags.get(EXTRA) or (ALPHA,)
    return int(values[0])


def strips(layout: Layout, file: BinaryIO) -> Iterator[tuple[int, np.ndarray]]:
    """The samples (rows, W, C) of each row of blocks, after its first row: uint16, or float32."""
    planes = layout.samples if layout.separate else 1
    blocks, (rows, columns) = layout.across * layout.down * planes, layout.block
    if min(len(layout.offsets), len(layout.counts)) < blocks:
        raise ValueError(f"its tags name {len(layout.offsets)} of {blocks} blocks")
    if blocks > max(MANY_BLOCKS, layout.size[0] * layout.size[1] * planes // SMALL):
        raise ValueError(f"it has {blocks:,} blocks, of fewer than {SMALL:,} pixels each")
    for i in range(layout.down):
        height = min(rows, layout.size[1] - i * rows)
        joined = np.empty((rows if layout.tiled else height, layout.across * columns, layout.samples), layout.kept)
        for plane in range(planes):
            for j in range(layout.across):
                index = (plane * layout.down + i) * layout.across + j
                part = joined[:, j * columns : (j + 1) * columns, plane : plane + 1 if layout.separate else None]
                part[...] = _block(layout, file, index, *part.shape)
        yield i * rows, _meant(layout, joined[:height, : layout.size[0]])


def _meant(layout: Layout, samples: np.ndarray) -> np.ndarray:
    """Samples with an alpha channel that has not been multiplied into the colours, or with none."""
    colours, last = samples[..., : layout.colours], samples[..., layout.colours :]
    if layout.extra == UNKNOWN:
        return colours
    return np.concatenate((straight(colours, last), last), axis=2) if layout.extra == MULTIPLIED else samples


def _block(layout: Layout, file: BinaryIO, index: int, rows: int, columns: int, samples: int) -> np.ndarray:
    """Reads a block (rows, columns, samples)."""
    width = columns * samples * layout.dtype.itemsize  # bytes of a row
    file.seek(layout.offsets[index])
    if layout.compression == RAW:
        content = file.read(min(layout.counts[index], rows * width))
    else:
        most = 2 * rows * width + 1024  # no compression makes more of a block
        content = _decompressed(layout, file.read(min(layout.counts[index], most)), rows, width)
    if len(content) < rows * width:
        raise ValueError(f"block {index} ends early")
    values = np.frombuffer(content, np.uint8).reshape(rows, width)
    if layout.predictor == FLOAT_DIFFERENCES:  # of bytes: first the highest of all values, then the next
        summed = np.cumsum(values.reshape(rows, -1, samples), axis=1, dtype=np.uint8)
        joined = summed.reshape(rows, layout.dtype.itemsize, -1).swapaxes(1, 2).copy()
        return joined.view(layout.dtype.newbyteorder(">")).reshape(rows, columns, samples)
    if layout.predictor == DIFFERENCES:
        unsigned = values.view(np.dtype(f"{layout.dtype.byteorder}u{layout.dtype.itemsize}"))
        native = unsigned.dtype.newbyteorder("=")
        numbers = np.cumsum(unsigned.reshape(rows, columns, samples).astype(native), axis=1, dtype=native)
        return numbers.view(layout.dtype.newbyteorder("="))
    return values.view(layout.dtype).reshape(rows, columns, samples)


def _decompressed(layout: Layout, content: bytes, rows: int, width: int) -> bytes:
    """Decompresses a block by libtiff, in Pillow, to which it is given as a picture of bytes, and their number."""
    from PIL.TiffImagePlugin import TiffImageFile

    tags = {
        WIDTH: width,
        HEIGHT: rows,
        BITS: 8,
        COMPRESSION: layout.compression,
        PHOTOMETRIC: BLACK_IS_ZERO,
        FILL_ORDER: layout.fill_order,
        STRIP_OFFSETS: 8,
        SAMPLES: 1,
        ROWS_PER_STRIP: rows,
        STRIP_COUNTS: len(content),
    }
    end = 8 + len(content) + len(content) % 2
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    file = struct.pack("<2sHI", b"II", 42, end) + content + b"\0" * (end - 8 - len(content))
    with TiffImageFile(BytesIO(file + struct.pack("<H", len(tags)) + directory + b"\0" * 4)) as picture:
        return picture.tobytes()

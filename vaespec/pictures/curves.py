"""Colour profiles of three primaries and a curve, or of a curve of greys, in full depth: ImageCms has 8 bits a channel.

ICC.1:2022, sections 10.6 (curves) and 10.18 (parametric curves), and F.3 (how they make colours).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from vaespec.pictures.values import FLOAT, scaled, split

TABLES = (b"A2B0", b"A2B1")  # a profile with one of them means something else than its curves
PARAMETERS = (1, 3, 4, 5, 7)  # of the types of parametric curves
PRIMARIES = (b"rXYZ", b"gXYZ", b"bXYZ")


@dataclass(frozen=True)
class Curves:
    """A curve for each channel, as a table of the light of 65536 values, and the XYZ (3, 3) of the primaries."""

    light: np.ndarray
    to_xyz: np.ndarray | None  # None: greys

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Converts (H, W, C) of any depth, without alpha or with it as the last channel, to sRGB: clipped to 0..1."""
        colours, alpha = split(scaled(samples, FLOAT))
        colours = np.broadcast_to(colours, (*colours.shape[:2], len(self.light)))
        steps = np.linspace(0, 1, self.light.shape[1])
        light = np.stack([np.interp(colours[..., i], steps, curve) for i, curve in enumerate(self.light)], axis=-1)
        if self.to_xyz is not None:
            light = np.clip(light @ (np.linalg.inv(_srgb_to_xyz()) @ self.to_xyz).T, 0, 1)
        encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055).astype(FLOAT)
        converted = encoded if alpha is None else np.concatenate((encoded, alpha), axis=2)
        return scaled(converted, samples.dtype)


def curves(data: bytes, grey: bool) -> Curves | None:
    """What a valid profile says by curves; None if it does not."""
    tags = _tags(data)
    names = [b"kTRC"] if grey else [b"rTRC", b"gTRC", b"bTRC"]
    primaries = [] if grey else PRIMARIES
    if not tags.keys() >= {*names, *primaries} or not tags.keys().isdisjoint(TABLES):
        return None
    light = [curve for name in names if (curve := _light(tags[name])) is not None]
    if len(light) < len(names):
        return None
    return Curves(np.clip(np.stack(light), 0, 1), None if grey else _to_xyz(tags))


@cache
def _srgb_to_xyz() -> np.ndarray:
    """The XYZ of sRGB's primaries as littlecms rounds them, so that a profile with these primaries mixes no colours."""
    from PIL import ImageCms

    return _to_xyz(_tags(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()))


def _to_xyz(tags: Mapping[bytes, bytes]) -> np.ndarray:
    """The XYZ of the primaries, adapted to the white D50: a column (3, 1) for each."""
    return np.array([struct.unpack(">3i", tags[name][8:20]) for name in PRIMARIES]).T / 65536


def _tags(data: bytes) -> Mapping[bytes, bytes]:
    (count,) = struct.unpack(">I", data[128:132])
    entries = [struct.unpack(">4sII", data[132 + 12 * i : 144 + 12 * i]) for i in range(min(count, 100))]
    return {name: data[offset : offset + size] for name, offset, size in entries}


def _light(tag: bytes) -> np.ndarray | None:
    """The light of 65536 values from 0 to 1."""
    values = np.linspace(0, 1, 65536)
    if tag[:4] == b"curv":
        (count,) = struct.unpack(">I", tag[8:12])
        table = np.frombuffer(tag[12 : 12 + 2 * count], ">u2")
        if count < 2:
            return values ** (table[0] / 256) if count else values
        return np.interp(values, np.linspace(0, 1, count), table / 65535)
    kind = struct.unpack(">H", tag[8:10])[0]
    if tag[:4] != b"para" or kind >= len(PARAMETERS):
        return None
    count = PARAMETERS[kind]
    g, a, b, c, d, e, f = [p / 65536 for p in struct.unpack(f">{count}i", tag[12 : 12 + 4 * count])] + [0] * (7 - count)
    if kind == 0:
        return values**g
    if kind in (1, 2):  # c is added to all, and the power begins where its base is positive
        d, e, f, c = (-b / a if a else 0), (c if kind == 2 else 0), (c if kind == 2 else 0), 0
    power = np.maximum(a * values + b, 0) ** g + e
    return np.where(values >= d, power, c * values + f)

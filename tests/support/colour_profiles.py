"""Colour profiles (ICC) written by hand from published numbers, and their colours in sRGB by published formulas."""

from __future__ import annotations

import struct

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
D65 = (0.3127, 0.3290)
PRIMARIES = {  # (x, y) of red, green and blue
    "sRGB": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
    "Adobe RGB (1998)": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)),
    "Display P3": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
}
ADOBE_GAMMA = 2.19921875
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # the parameters of a curve of type 3
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_xyz(name: str) -> np.ndarray:
    """The matrix (3, 3) from linear colours to XYZ, of white D65."""
    x, y = np.array(PRIMARIES[name]).T
    primaries = np.stack([x / y, np.ones(3), (1 - x - y) / y])
    white = np.array([D65[0] / D65[1], 1.0, (1 - sum(D65)) / D65[1]])
    return primaries * np.linalg.solve(primaries, white)


def linear(name: str, values: np.ndarray) -> np.ndarray:
    """The light of values in [0, 1]."""
    if name == "Adobe RGB (1998)":
        return values**ADOBE_GAMMA
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def in_srgb(name: str, values: np.ndarray) -> np.ndarray:
    """Values (..., 3) in [0, 1] of a colour space in sRGB, clipped."""
    light = linear(name, values) @ to_xyz(name).T @ np.linalg.inv(to_xyz("sRGB")).T
    return encoded_srgb(np.clip(light, 0, 1))


def encoded_srgb(light: np.ndarray) -> np.ndarray:
    """Values of light, both in [0, 1]."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def rgb_profile(name: str, curve: bytes | None = None) -> bytes:
    """A profile of a colour space of PRIMARIES, adapted to D50, and its curve or another one."""
    white = to_xyz(name) @ np.ones(3)
    adapted = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ white)) @ BRADFORD @ to_xyz(name)
    curve = curve or (gamma(ADOBE_GAMMA) if name == "Adobe RGB (1998)" else parametric(3, *SRGB_CURVE))
    colours = {f"{c}XYZ".encode(): xyz(adapted[:, i]) for i, c in enumerate("rgb")}
    return profile(colours | {f"{c}TRC".encode(): curve for c in "rgb"})


def parametric(kind: int, *parameters: float) -> bytes:
    """The content of a curve's tag."""
    values = (round(v * 65536) for v in parameters)
    return b"para" + bytes(4) + struct.pack(f">HH{len(parameters)}i", kind, 0, *values)


def grey_profile(exponent: float) -> bytes:
    """A profile of greys with a gamma."""
    return profile({b"kTRC": gamma(exponent)}, space=b"GRAY")


def gamma(exponent: float) -> bytes:
    """The content of a curve's tag."""
    return b"curv" + bytes(4) + struct.pack(">IHH", 1, round(exponent * 256), 0)


def xyz(values: np.ndarray) -> bytes:
    """The content of a colour's tag."""
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in values))


def profile(tags: dict[bytes, bytes], kind: bytes = b"mntr", space: bytes = b"RGB ") -> bytes:
    """A profile of version 2.4 with these tags and those that all must have."""
    name = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = {b"desc": name, b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": xyz(D50)} | tags
    table, data, start = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    body = struct.pack(">I", len(tags)) + table + data
    head = struct.pack(">I4sI4s4s4s", 128 + len(body), b"none", 0x02400000, kind, space, b"XYZ ")
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + xyz(D50)[8:]
    return head.ljust(128, b"\0") + body


def table_profile(space: bytes, corners: np.ndarray, kind: bytes = b"prtr") -> bytes:
    """A profile of a table: L*a*b* (2**channels, 3) of each corner of a colour space, the last channel fastest."""
    channels = len(corners).bit_length() - 1
    identity = struct.pack(">9i", *(np.eye(3, dtype=int) * 65536).ravel())
    ramp = bytes(range(256))
    lab = np.rint(corners * [2.55, 1, 1] + [0, 128, 128]).astype(np.uint8).tobytes()
    table = b"mft1" + bytes(4) + bytes((channels, 3, 2, 0)) + identity + ramp * channels + lab + ramp * 3
    whole = bytearray(profile({b"A2B0": table}, kind=kind, space=space))
    whole[20:24] = b"Lab "
    return bytes(whole)

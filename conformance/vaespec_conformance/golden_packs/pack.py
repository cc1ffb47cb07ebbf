"""Writes a golden pack: a folder that appears whole or not at all, with the same bytes each time."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vaespec import AutoencoderConfig, __version__, families, parameters
from vaespec.dtypes import storage_dtype
from vaespec.errors import InputError
from vaespec.files import folder_made, written_whole
from vaespec.machine import host_memory
from vaespec.weights import save_folder
from vaespec.weights.containers import write_safetensors
from vaespec_conformance.golden_packs.narrowing import narrowings
from vaespec_conformance.golden_packs.outputs import Output, count, layer_shapes, outputs
from vaespec_conformance.golden_packs.weights import drawn_inputs, drawn_weights
from vaespec_conformance.judging.budgets import WORST_ELEMENT

FORMAT = "vaespec-golden/1"
INPUTS, EXPECTED, MANIFEST = "inputs.safetensors", "expected.safetensors", "manifest.json"
MEASURE = (
    f"relative L2, ‖a - r‖ / ‖r‖, at most the budget, and max |a - r| / rms(r) at most {WORST_ELEMENT:g} times the "
    "budget, where r is expected and a is the answer"
)
NARROW_BYTES = 8_000_000
"""The size that a narrow pack keeps to if any narrowing of the family does."""
SMALLEST = 2
"""Latents of a side: a map of one number has no variance, and norms would hide what came before."""
MAPS_HELD = 48
"""Arrays as large as the largest map that are held at a time: those of one layer, in each of four runs."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a pack is made of. `size` is the image's (height, width) in px; `groups` limits the choice of a narrow one.

    `full_width` takes the family's own widths.
    """

    family: str
    size: tuple[int, int]
    dtype: str = "float32"
    per_layer: bool = False
    full_width: bool = False
    groups: int | None = None
    seed: int = 0

    def config(self) -> AutoencoderConfig:
        """The pack's config. Raises ConfigError for an unknown family, InputError for a dtype, size or group count."""
        storage_dtype(self.dtype)
        family = families.config(self.family)
        least = SMALLEST * family.downsampling_factor
        if min(self.size) < least:
            raise InputError(
                f"--size {_text(self.size)} is too small: {self.family} needs at least {_text([least] * 2)} px."
            )
        if self.full_width:
            if self.groups is not None:
                raise InputError(f"--groups {self.groups} is for a narrow model: leave out --full-width.")
            return family
        choices = [config for config in narrowings(family) if self.groups in (None, config.norm_num_groups)]
        if not choices:
            counts = ", ".join(str(config.norm_num_groups) for config in narrowings(family))
            raise InputError(f"--groups {self.groups}: choose {counts}, or leave it out for the largest that fits.")
        fitting = (config for config in choices if self._bytes(config) <= NARROW_BYTES)
        return next(fitting, choices[-1])

    def _bytes(self, config: AutoencoderConfig) -> int:
        """About how large the pack is; its JSON and the tables of names are estimated."""
        layers = count(layer_shapes(config, self.size)) if self.per_layer else 0
        weights = sum(math.prod(row.shape) for row in parameters(config).values())
        kept = max(4, storage_dtype(self.dtype).itemsize)
        ends = math.prod(self.size) * (config.in_channels + config.out_channels + config.latent_channels)
        return weights * storage_dtype(self.dtype).itemsize + (layers + ends) * kept + 200_000


def _text(size: Any) -> str:
    return "x".join(map(str, size))


def write_pack(out: Path, request: Request) -> dict[str, Any]:
    """Writes the pack to the folder `out`, which must be new or empty, and returns its manifest.

    Raises InputError for a folder with files in it, for a size that needs more memory than is free, and for what
    `Request.config` refuses; OSError if the folder cannot be written to.
    """
    _require_free(out)
    config = request.config()
    _require_memory(config, request)
    weights = drawn_weights(config, request.dtype, request.seed)
    inputs = drawn_inputs(config, request.size, request.dtype, request.seed)
    expected = outputs(config, weights, inputs, request.dtype, request.per_layer)
    kept = np.float64 if request.dtype == "float64" else np.float32
    with _appearing(out) as folder:
        save_folder(folder, config, weights)
        with written_whole(folder / INPUTS) as part:
            write_safetensors(part, inputs, {"format": FORMAT})
        tensors = {f"budget.{output.name}": np.array(output.budget) for output in expected}
        tensors |= {output.name: output.array.astype(kept) for output in expected}
        (folder / EXPECTED).write_bytes(_in_order(tensors))
        manifest = _manifest(request, config, expected, folder)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def _in_order(tensors: Mapping[str, np.ndarray]) -> bytes:
    """A safetensors file whose table and data are in the given order; the library would sort them by name."""
    table: dict[str, Any] = {"__metadata__": {"format": FORMAT}}
    end = 0
    for name, a in tensors.items():
        table[name] = {"dtype": f"F{8 * a.itemsize}", "shape": list(a.shape), "data_offsets": [end, end + a.nbytes]}
        end += a.nbytes
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    data = (np.ascontiguousarray(a, a.dtype.newbyteorder("<")).tobytes() for a in tensors.values())
    return b"".join((len(header).to_bytes(8, "little"), header, *data))


def _manifest(request: Request, config: AutoencoderConfig, expected: list[Output], folder: Path) -> dict[str, Any]:
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return {
        "format": FORMAT,
        "family": families.spelled(request.family),
        "full_width": request.full_width,
        "size": list(request.size),
        "dtype": request.dtype,
        "per_layer": request.per_layer,
        "seed": request.seed,
        "versions": {"vaespec": __version__, "numpy": np.__version__},
        "measure": MEASURE,
        "config": config.to_dict(),
        "outputs": [
            {"name": output.name, "shape": list(output.array.shape), "budget": output.budget} for output in expected
        ],
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        },
    }


def _require_free(out: Path) -> None:
    """Raises InputError unless `out` is a new or an empty folder."""
    if file := next((path for path in (out, *out.parents) if os.path.lexists(path) and not path.is_dir()), None):
        raise InputError(f"{file} is no folder: name a new one.")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} has files in it: name a new folder, or an empty one.")


def _require_memory(config: AutoencoderConfig, request: Request) -> None:
    """Raises InputError if a run in float64 needs more memory than is free."""
    shapes = list(layer_shapes(config, request.size))
    tokens = max(math.prod(n // config.downsampling_factor for n in request.size), 1)
    weights = sum(math.prod(row.shape) for row in parameters(config).values())
    kept = count(iter(shapes)) if request.per_layer else 0
    needed = 8 * (MAPS_HELD * max(map(math.prod, shapes)) + 3 * tokens**2 + 2 * weights + kept)
    if needed > (free := host_memory().free):
        raise InputError(
            f"--size {_text(request.size)} needs about {needed / 2**30:,.0f} GiB of memory, {free / 2**30:.1f} GiB are "
            "free: choose a smaller size."
        )


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """Yields an empty folder beside `out` that takes its place at the end; after an error, neither is left.

    If `out` is there, and empty, it is filled, with the manifest last.
    """
    target = Path(os.path.realpath(out))
    with folder_made(target.parent):
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        part.mkdir()
        try:
            yield part
            if target.is_dir():  # it may be the folder that somebody stands in
                for file in sorted(part.iterdir(), key=lambda file: file.name == MANIFEST):
                    file.rename(target / file.name)
                part.rmdir()
            else:
                part.rename(target)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise

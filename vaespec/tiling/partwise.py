"""A model that works on parts of what it is given: slices of a batch, blended tiles, exact bands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal, Unpack

from array_api_compat import array_namespace

from vaespec.errors import InputError
from vaespec.inputs import Source
from vaespec.model import Model
from vaespec.ops import Array
from vaespec.reference import ReferenceOps
from vaespec.tiling import planner
from vaespec.tiling.banded import BandedOps, Bands
from vaespec.tiling.blend import blended, fits
from vaespec.tiling.geometry import Cut, TileGeometry
from vaespec.tiling.padding import CircularOps
from vaespec.tiling.planner import Estimate, Plan

MODES = (True, False, "blend", "exact", "auto")
PADDINGS = ("zeros", "circular")


class Partwise:
    """What AutoencoderKL has of slicing, tiling and padding: `_model` is what it runs."""

    _model: Model

    def __init__(self) -> None:
        self.use_slicing = self.use_tiling = False
        self.tile_sample_min_size: int | Sequence[int] | None = None
        self.tile_latent_min_size: int | Sequence[int] | None = None
        self.tile_overlap_factor: float | Sequence[float] = 0.25
        self._mode: Literal["blend", "exact", "auto"] = "blend"
        self._bands: Bands = {}
        self._max_memory: int | None = None
        self.padding = ("zeros", "zeros")

    # -- asked for -----------------------------------------------------------------------------------------

    def enable_slicing(self) -> None:
        """Work on one item of the batch at a time: the memory of one, the results of all."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Work on the whole batch at once."""
        self.use_slicing = False

    def enable_tiling(
        self,
        use_tiling: bool | Literal["blend", "exact", "auto"] = True,
        *,
        tile_sample_min_size: int | Sequence[int] | None = None,
        tile_latent_min_size: int | Sequence[int] | None = None,
        tile_overlap_factor: float | Sequence[float] = 0.25,
        max_memory: int | str | None = None,
        **bands: Unpack[Bands],
    ) -> None:
        """Work on parts of an image: the memory of one, or, with "exact", of a few rows, and no seams.

        True or "blend": tiles that are faded into each other, as diffusers does. They are of `tile_sample_min_size` px
        (one number, or height and width; by default the config's sample_size) and share `tile_overlap_factor` of it
        with the next. "exact": bands of rows, with the results of the whole image, without gradients; see `Bands`.
        "auto": no parts where memory allows, else slices of the batch, else bands. `max_memory`, bytes or "2GiB", is
        what the device, or on a CPU the process, may hold at one time, by default most of what is free: with "auto",
        or with "exact" for what `bands` leave open. InputError for tiles that do not join, or bands without rows, and
        when an image is met for which max_memory is too little.
        """
        if use_tiling not in MODES:
            raise InputError(f"tiling {use_tiling!r}: choose True or 'blend', 'exact', 'auto', or False.")
        mode = use_tiling if isinstance(use_tiling, str) else "blend"
        asked = [*bands, *(["max_memory"] if max_memory is not None else [])]
        if mode == "blend" and asked:
            raise InputError(f"{', '.join(asked)}: for bands; say enable_tiling('exact', ...) or 'auto'.")
        limit = None if max_memory is None else planner.as_bytes(max_memory)
        before = vars(self).copy()
        self.tile_sample_min_size, self.tile_latent_min_size = tile_sample_min_size, tile_latent_min_size
        self.tile_overlap_factor = tile_overlap_factor
        self.use_tiling, self._mode, self._bands, self._max_memory = bool(use_tiling), mode, bands, limit
        try:  # refused here, not at the first image
            if mode != "blend":
                BandedOps(self._model.ops, **bands)
            elif use_tiling:
                self._tiles()
        except InputError:
            vars(self).update(before)
            raise

    def disable_tiling(self) -> None:
        """Work on whole images."""
        self.use_tiling = False

    def set_padding(self, padding: str | Sequence[str]) -> None:
        """What lies beyond the border of a map: "zeros", or "circular", the other end, for textures without a seam.

        One word, or two for (height, width). Blended tiles have borders of their own, and are refused with "circular".
        """
        axes = (padding, padding) if isinstance(padding, str) else tuple(padding)
        if len(axes) != 2 or not set(axes) <= set(PADDINGS):
            raise InputError(f"padding {padding!r}: choose 'zeros' or 'circular', or two of them (height, width).")
        if self._blends:
            self._require_borders(axes)
        self.padding = axes
        self._model = self._model.on(self._padded(self._model.ops))

    def estimate_memory(self, shape: Sequence[int], direction: Literal["encode", "decode"] = "decode") -> Estimate:
        """What encoding to, or decoding to, images of that shape (B, C, H, W) would take, in the parts that are set.

        Within 15 % where NumPy's engine computes; elsewhere what kernels need inside is not all known, and left out.
        InputError for another shape, or as the run itself.
        """
        half = {"encode": "encoder", "decode": "decoder"}.get(direction)
        if half is None:
            raise InputError(f"direction={direction!r}: expected encode or decode.")
        config, f = self._model.config, self._model.config.downsampling_factor
        if len(shape) != 4 or min(shape) < 1 or min(shape[2:]) < f:
            raise InputError(f"images of shape {tuple(shape)}: expected (B, C, height, width), at least {f} x {f} px.")
        B, _, H, W = shape
        if half == "encoder":
            return self._estimate(half, (B, config.in_channels, H, W))
        return self._estimate(half, (B, config.latent_channels, H // f, W // f))

    # -- done ----------------------------------------------------------------------------------------------

    def _run(self, half: str, source: Source, tiled: bool = False) -> Array:
        """Slices outside, tiles or bands inside, as diffusers 0.42."""
        if tiled or self._blends:
            slicing, run = self.use_slicing, partial(self._in_tiles, half, tiled)
        else:
            plan = self._plan(half, source.shape)
            slicing, run = plan.slicing, partial(self._planned, half, plan)
        results = [run(item) for item in (source.items() if slicing else [source])]
        return _joined(results, 0)

    def _stream(self, half: str, source: Source) -> Iterator[Array]:
        """What `_run` returns, in bands of rows as they are made; in one where it is not made so."""
        plan = Plan() if self._blends else self._plan(half, source.shape)
        if plan.bands is None or (plan.slicing and source.shape[0] > 1):
            yield self._run(half, source)
        else:
            yield from self._in_bands(half, plan.bands, source)

    def _in_tiles(self, half: str, tiled: bool, source: Source) -> Array:
        """What fits a tile is cut only if that is asked for."""
        cuts, x = self._cuts(half), source[...]
        run = partial(self._model.run, half)
        return blended(run, x, cuts) if tiled or not fits(x, cuts) else run(x)

    def _planned(self, half: str, plan: Plan, source: Source) -> Array:
        if plan.bands is None:
            return self._model.run(half, source[...])
        return _joined(list(self._in_bands(half, plan.bands, source)), 2)

    def _in_bands(self, half: str, bands: Bands, source: Source) -> Iterator[Array]:
        return self._model.stream(half, source, BandedOps(self._model.ops, **bands).bands)

    def _plan(self, half: str, shape: tuple[int, ...]) -> Plan:
        if not self.use_tiling:
            return Plan(self.use_slicing)
        if self._mode == "exact" and self._max_memory is None:
            return Plan(self.use_slicing, self._bands)
        in_bands = self._mode == "exact"
        return planner.choose(
            self._model, half, shape, self._max_memory, self._bands, in_bands=in_bands, slicing=self.use_slicing
        )

    def _estimate(self, half: str, shape: tuple[int, ...]) -> Estimate:
        if not self._blends:
            return planner.estimate(self._model, half, shape, self._plan(half, shape))
        B, C, *sides = shape
        tile = (min(cut.tile, side) for cut, side in zip(self._cuts(half), sides, strict=True))
        of_tile = planner.estimate(self._model, half, (B, C, *tile), Plan(self.use_slicing))
        result = planner.estimate(self._model, half, shape, Plan()).result
        return of_tile._replace(run=of_tile.run + 2 * result)  # in tiles, and joined

    @property
    def _blends(self) -> bool:
        return self.use_tiling and self._mode == "blend"

    def _tiles(self) -> TileGeometry:
        self._require_borders(self.padding)
        return TileGeometry.from_config(
            self._model.config,
            tile_sample_min_size=self.tile_sample_min_size,
            tile_latent_min_size=self.tile_latent_min_size,
            tile_overlap_factor=self.tile_overlap_factor,
        )

    @staticmethod
    def _require_borders(padding: Sequence[str]) -> None:
        if "circular" in padding:
            raise InputError("blended tiles cannot be padded with their other end: use enable_tiling('exact').")

    def _cuts(self, half: str) -> tuple[Cut, Cut]:
        tiles = self._tiles()
        return tiles.encoding if half == "encoder" else tiles.decoding

    def _padded(self, ops: ReferenceOps) -> ReferenceOps:
        """`ops`, with the borders that were asked for."""
        ops = ops.ops if isinstance(ops, CircularOps) else ops
        rows, columns = (padding == "circular" for padding in self.padding)
        return CircularOps(ops, rows, columns) if rows or columns else ops  # type: ignore[return-value]


def _joined(parts: list[Array], axis: int) -> Array:
    return parts[0] if len(parts) == 1 else array_namespace(parts[0]).concat(parts, axis=axis)

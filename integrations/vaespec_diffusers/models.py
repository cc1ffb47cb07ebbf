"""AutoencoderKL, AutoencoderKLFlux2: diffusers' classes, whose encode and decode are computed by vaespec."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Literal, Self, Unpack

import diffusers
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from vaespec.architecture import DECODER, ENCODER, Half
from vaespec.errors import InputError
from vaespec.tiling.banded import Bands
from vaespec.tiling.planner import Estimate, MemoryPlan
from vaespec.tiling.stores import Place
from vaespec_diffusers import running, single_file
from vaespec_diffusers.reasons import reason_for_diffusers
from vaespec_diffusers.reports import Report
from vaespec_diffusers.settings import Settings, Switches
from vaespec_diffusers.single_file import AnyPath, SingleFile
from vaespec_torch.live import is_transformed


class Computed(nn.Module):
    """What the classes share. All else is diffusers' own: modules, parameters, config, files, hooks, outputs.

    A call that vaespec cannot compute is left to diffusers' code, with one warning for each reason: see `report`.
    """

    _vaespec: Settings | None = None

    @classmethod
    def from_single_file(cls, path: AnyPath, **options: Unpack[SingleFile]) -> Self:
        """Load one file of any container and dialect: see `vaespec_diffusers.single_file`, which has the options."""
        return single_file.load(cls, path, **options)

    # -- encode and decode ---------------------------------------------------------------------------------

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Images (B, C, H, W) in [-1, 1] -> AutoencoderKLOutput, with the posterior over latents."""
        return self._routed(ENCODER, x, return_dict, super().encode)  # type: ignore[misc]

    def decode(self, z: Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        """Latents (B, C, h, w) -> DecoderOutput, with images. `generator` is accepted and ignored, as in diffusers."""
        return self._routed(DECODER, z, return_dict, super().decode)  # type: ignore[misc]

    def tiled_encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """`encode` in blended tiles, whether or not tiling is enabled."""
        return self._routed(ENCODER, x, return_dict, super().tiled_encode, tiled=True)  # type: ignore[misc]

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> Any:
        """`decode` in blended tiles, whether or not tiling is enabled."""
        return self._routed(DECODER, z, return_dict, super().tiled_decode, tiled=True)  # type: ignore[misc]

    def _routed(
        self, half: Half, x: Tensor, return_dict: bool, theirs: Callable[..., Any], *, tiled: bool = False
    ) -> Any:
        """The output for x, as vaespec computes it or else as diffusers' method does, `theirs`."""
        if not isinstance(x, Tensor):
            raise InputError(f"{half.verb} of a {type(x).__name__}: expected a tensor of {half.source}.")
        pads = self._vaespec is not None and self._vaespec.pads
        if is_transformed(x) and not pads:  # PyTorch compiles or traces: diffusers' code, as it expects
            return theirs(x, return_dict=return_dict)
        if reason := reason_for_diffusers(self, half, x):
            return running.leave_to_diffusers(self, self._settings, half, x, reason, theirs, return_dict)
        y = running.compute(self, self._settings, half, x, tiled=True) if tiled else self._computed(half, x)
        if half is ENCODER:
            posterior = DiagonalGaussianDistribution(y)
            return AutoencoderKLOutput(posterior) if return_dict else (posterior,)
        return DecoderOutput(y) if return_dict else (y,)

    @apply_forward_hook  # as diffusers' encode and decode have it: a hook of the whole VAE brings it to its device
    def _computed(self, half: Half, x: Tensor) -> Tensor:
        return running.compute(self, self._settings, half, x)

    @property
    def _settings(self) -> Settings:
        if self._vaespec is None:
            self._vaespec = Settings()
        return self._vaespec

    # -- in which parts ------------------------------------------------------------------------------------

    def enable_tiling(
        self,
        use_tiling: bool | Literal["blend", "exact", "auto"] = True,
        *,
        tile_sample_min_size: int | Sequence[int] | None = None,
        tile_latent_min_size: int | Sequence[int] | None = None,
        tile_overlap_factor: float | Sequence[float] | None = None,
        max_memory: int | str | None = None,
        offload_folder: Place | None = None,
        on_plan: Callable[[MemoryPlan], object] | None = None,
        **bands: Unpack[Bands],
    ) -> None:
        """Work on parts of an image; see `vaespec.AutoencoderKL.enable_tiling`, which has the same options.

        "blend": diffusers' tiles. "exact": bands of rows, with the results of the whole image. "auto": the whole image
        if memory allows, else slices of the batch, else bands. True, as in diffusers: the mode that was given before,
        to this method or to `install`, and otherwise blended tiles. Sizes that are not given stay as they are.
        """
        tiling, model = self._settings.tiling_of(self), self._settings.model(self)
        planned = {"max_memory": max_memory, "offload_folder": offload_folder, "on_plan": on_plan}
        options: dict[str, Any] = {name: value for name, value in planned.items() if value is not None} | dict(bands)
        if tile_sample_min_size is not None and tile_latent_min_size is None:
            sizes, f = tile_sample_min_size, model.config.downsampling_factor
            tile_latent_min_size = sizes // f if isinstance(sizes, int) else [size // f for size in sizes]
        tiling = replace(
            tiling,
            tile_sample_min_size=tile_sample_min_size or tiling.tile_sample_min_size,
            tile_latent_min_size=tile_latent_min_size or tiling.tile_latent_min_size,
            tile_overlap_factor=tile_overlap_factor or tiling.tile_overlap_factor,
        )
        if use_tiling is True and not options:
            tiling = replace(tiling, enabled=True)
            tiling.check(model)
        else:
            switches = Switches(model, tiling)
            switches.enable_tiling(
                tiling.mode if use_tiling is True else use_tiling,
                tile_sample_min_size=tiling.tile_sample_min_size,
                tile_latent_min_size=tiling.tile_latent_min_size,
                tile_overlap_factor=tiling.tile_overlap_factor,
                **options,
            )
            tiling = switches.tiling
        self._settings.set_tiling(self, tiling)

    def set_padding(self, padding: str | Sequence[str]) -> None:
        """Pad maps with zeros or otherwise; see `vaespec.AutoencoderKL.set_padding`."""
        switches = Switches(self._settings.model(self), self._settings.tiling_of(self))
        switches.set_padding(padding)
        self._settings.set_tiling(self, switches.tiling)

    @property
    def padding(self) -> Any:
        """The padding of (height, width)."""
        return self._settings.tiling.padding

    def estimate_memory(self, shape: Sequence[int], direction: Literal["encode", "decode"] = "decode") -> Estimate:
        """The memory needed to encode, or decode to, images of this shape; see `vaespec.AutoencoderKL`."""
        return running.switches(self, self._settings, shape).estimate_memory(shape, direction)

    def report(self) -> Report:
        """What the last hundred calls of encode and decode ran, and how long it took."""
        return self._settings.report()

    # -- copies --------------------------------------------------------------------------------------------

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy, or what is unpickled, computes with vaespec too, with the same settings and its own parameters."""
        plain = plain_class(type(self))
        named = computed_class(plain) is type(self)  # and not by its module, which is diffusers'
        return (_blank, (plain,), dict(vars(self))) if named else super().__reduce_ex__(protocol)


class StandsFor(type):
    """The type of our classes. Each is equal to the class of diffusers that it stands for, and has its hash.

    `from_pipe` hands a model to another pipeline only if its class is among those expected, and a subclass is not.
    """

    def __eq__(cls, other: object) -> bool:
        return cls is other or other is plain_class(cls)

    def __hash__(cls) -> int:
        return hash(plain_class(cls))


class AutoencoderKL(Computed, diffusers.AutoencoderKL, metaclass=StandsFor):  # type: ignore[metaclass]
    """diffusers' AutoencoderKL, computed by vaespec: for `from_pretrained(..., vae=)` of a pipeline."""

    # A saved pipeline names the module and the class of its VAE: those of diffusers, for everybody to load.
    __module__ = diffusers.AutoencoderKL.__module__


class AutoencoderKLFlux2(Computed, diffusers.AutoencoderKLFlux2, metaclass=StandsFor):  # type: ignore[metaclass]
    """diffusers' AutoencoderKLFlux2, computed by vaespec."""

    __module__ = diffusers.AutoencoderKLFlux2.__module__


PLAIN = (diffusers.AutoencoderKL, diffusers.AutoencoderKLFlux2)
"""diffusers' classes of this VAE."""


@cache
def computed_class(plain: Any) -> Any:
    """Return the class that computes with vaespec, for one of diffusers' classes or a class made from it."""
    ours = {diffusers.AutoencoderKL: AutoencoderKL, diffusers.AutoencoderKLFlux2: AutoencoderKLFlux2}
    return ours.get(plain) or StandsFor(plain.__name__, (Computed, plain), {"__module__": plain.__module__})


def plain_class(computed: Any) -> Any:
    """Return the class that `computed_class` was given."""
    return next(base for base in computed.__mro__ if not issubclass(base, Computed))


def _blank(plain: Any) -> Any:
    """A VAE without its state."""
    ours = computed_class(plain)
    return ours.__new__(ours)

"""AutoencoderKL: the class that users hold. It loads, encodes, decodes and saves; its settings are in `placed`."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, Unpack

from vaespec import latents, weights
from vaespec.analysis.observe import activations
from vaespec.architecture import DECODER, ENCODER, HALVES
from vaespec.config import AutoencoderConfig
from vaespec.dtypes import dtype_name
from vaespec.errors import BackendError, InputError, WeightFileError
from vaespec.in_memory import config_and_weights, padding_of
from vaespec.initialize import initialize
from vaespec.inputs import as_diffusion_latents, as_images, as_latents, require_finite_scaled
from vaespec.model import Functional
from vaespec.noise import Seed
from vaespec.ops import Array
from vaespec.outputs import AutoencoderKLOutput, DecoderOutput
from vaespec.placed import PlacedModel, Placement, require_known
from vaespec.posterior import DiagonalGaussian
from vaespec.settings import RunSettings
from vaespec.tiling import execution

AnyPath = str | os.PathLike[str]
EMBEDDED = Path(__file__).parent / "assets" / "tiny"


class AutoencoderKL(PlacedModel):
    """The image VAE of Stable Diffusion, SDXL, SD3 and FLUX, with its weights on a backend.

    Names, argument order and defaults are diffusers'. Images are (B, C, H, W) in [-1, 1]; inputs may be arrays of any
    framework, outputs are the backend's own. A result with NaN or infinity raises NonFiniteError.

    A model can be pickled and deep-copied, before and after a run: the copy has the same weights on the same device,
    the same settings, and the same results to the bit, and compiles again if it needs to. Unpickling raises
    BackendError if the framework or the device is missing. `copy.copy` shares the weights.
    """

    # -- loading and saving --------------------------------------------------------------------------------

    @classmethod
    def from_config(
        cls, config: AutoencoderConfig | Mapping[str, Any], *, seed: int = 0, **placement: Unpack[Placement]
    ) -> Self:
        """Create a model with diffusers' initial weights."""
        require_known(cls.from_config, placement)
        if not isinstance(config, AutoencoderConfig):
            config = AutoencoderConfig.from_dict(config)
        return cls(config, initialize(config, seed), **placement)

    @classmethod
    def from_pretrained(
        cls,
        path: AnyPath,
        *,
        subfolder: str | None = None,
        variant: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: AnyPath | None = None,
        local_files_only: bool = False,
        strict: bool = True,
        **placement: Unpack[Placement],
    ) -> Self:
        """Load a diffusers folder (config.json and weights, whole or in shards), or a repository of the hub.

        `path` is a repository, "organization/name" or its address, if there is no such folder; `revision`, `token`,
        `cache_dir` and `local_files_only` are passed to huggingface_hub. If a variant is the only one, it is loaded
        with a warning. `strict` is as in `from_single_file`. Raises WeightFileError for a missing or damaged file,
        WeightMapError for tensors that do not fit the config.
        """
        require_known(cls.from_pretrained, placement)
        folder = weights.as_path(path)
        if os.path.isdir(folder):
            return cls(*weights.load_folder(folder / (subfolder or ""), variant, strict=strict), **placement)
        if os.path.lexists(folder):
            raise WeightFileError(f"{folder} is not a folder: a file is for from_single_file.")
        folder = weights.fetch_named(
            path,
            subfolder=subfolder or "",
            variant=variant,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        return cls(*weights.load_folder(folder, variant, strict=strict), **placement)

    @classmethod
    def from_single_file(
        cls,
        path: AnyPath,
        *,
        config: AutoencoderConfig | Mapping[str, Any] | None = None,
        family: str | None = None,
        prefix: str | None = None,
        dialect: str | None = None,
        use_ema: bool = False,
        strict: bool = True,
        allow_nonfinite: bool = False,
        **placement: Unpack[Placement],
    ) -> Self:
        """Load one file of any container and dialect (see `vaespec.weights`): the VAE alone, or a full checkpoint.

        `path` may be the address of a file on the hub, such as https://huggingface.co/owner/name/blob/main/file.
        The config is inferred from names and shapes. Fields that they do not show (the scaling factor) are read from
        `family` (see vaespec.families), `config`, or the rest of a full checkpoint, or else remain unknown. `prefix`
        chooses among several VAEs, `dialect` a dialect if the names are ambiguous, `use_ema` the moving average.
        Losses, discriminators and other tensors that training leaves beside the model are left out with a warning that
        counts them; `strict=False` leaves out all tensors that are not the model's, but for attention inside it.
        `allow_nonfinite` accepts NaN and infinity. A file with an encoder or a decoder alone makes half a model.
        """
        require_known(cls.from_single_file, placement)
        if config is not None and not isinstance(config, AutoencoderConfig):
            config = AutoencoderConfig.from_dict(config)
        options = weights.Reading(
            prefix=prefix, dialect=dialect, use_ema=use_ema, strict=strict, allow_nonfinite=allow_nonfinite
        )
        return cls(*weights.load_file(weights.single_file(path), config, family, **options), **placement)

    def save_pretrained(self, path: AnyPath, *, dtype: Any = None) -> None:
        """Write a folder that diffusers' from_pretrained loads, in `dtype` (default: the model's).

        Files appear whole. If the process is killed between the two, the folder is refused, by diffusers too, until a
        model is saved there again. A config.json may be edited, and the weights replaced, by hand. Raises
        WeightFileError if the folder has an index of shards, which diffusers would read instead.
        """
        weights.save_folder(
            weights.as_path(path), self.config, self.weights(), None if dtype is None else dtype_name(dtype)
        )

    def save_single_file(
        self, path: AnyPath, *, dialect: str = "diffusers", prefix: str = "", dtype: Any = None, bits: int | None = None
    ) -> None:
        """Write one file in a dialect's names, layout and container: see `vaespec.weights.dialects.DIALECTS`.

        `bits` (4 or 8) quantizes the attention's linear maps, for mflux.
        """
        stored = None if dtype is None else dtype_name(dtype)
        weights.save_file(
            weights.as_path(path), self.config, self.weights(), dialect=dialect, prefix=prefix, dtype=stored, bits=bits
        )

    # -- encode and decode ---------------------------------------------------------------------------------

    def encode(self, x: Any, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussian]:
        """Images (B, in_channels, H, W) in [-1, 1] -> posterior over latents (B, latent_channels, H // f, W // f)."""
        posterior = self._posterior(x)
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def decode(self, z: Any, return_dict: bool = True, generator: None = None) -> DecoderOutput | tuple[Array]:
        """Latents (B, latent_channels, h, w) -> images (B, out_channels, f·h, f·w), about [-1, 1], not clipped.

        `generator` is accepted and ignored, as in diffusers.
        """
        sample = self._images(z)
        return DecoderOutput(sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Any,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: Any = None,
        *,
        seed: Seed | None = None,
        return_posterior: bool = False,
    ) -> DecoderOutput | tuple[Any, ...]:
        """Images -> images through the posterior's mode or a sample, without scaling. Also `vae(images)`.

        Without sample_posterior a generator is ignored, as in diffusers, and a seed raises InputError.
        """
        posterior = self._posterior(sample)
        z = posterior.mode_or_sample(sample_posterior, generator, seed=seed)
        output = DecoderOutput(self._images(z), posterior if return_posterior else None)
        return output if return_dict else output.to_tuple()

    __call__ = forward

    def encode_latents(self, images: Any, *, seed: Seed | None = None) -> Array:
        """Images -> normalized latents for the diffusion model: the mode, or with `seed` a sample."""
        posterior = self._posterior(images)
        z = posterior.mode() if seed is None else posterior.sample(seed=seed)
        z = latents.normalize(z, self.config, self._model.params)
        require_finite_scaled(z, "normalized", self._model.ops)
        return z

    def decode_latents(self, z: Any) -> Array:
        """Normalized latents of the diffusion model -> images: the inverse of `encode_latents`."""
        return self._images(self._denormalized(z))

    def decode_bands(self, z: Any, *, normalized: bool = False) -> Iterator[Array]:
        """`decode(z).sample`, or with `normalized` `decode_latents(z)`, in bands of rows from the top down.

        With exact tiling each band (B, out_channels, rows, f·w) is computed when it is requested; otherwise there is
        one band.
        """
        z = self._denormalized(z) if normalized else z
        return execution.stream(self._model, DECODER, as_latents(z, self._model.config, self._model.ops), self._tiling)

    def activations(self, x: Any, half: str) -> Iterator[tuple[str, Array]]:
        """(name, result) of every layer of the encoder for images x, or of the decoder for latents x, in order.

        Names are diffusers' module names ("decoder.up_blocks.0.resnets.1.conv1", and "decoder.up_blocks.0.resnets.1"
        for what a resnet returns), which its forward hooks see too; an activation is named after the norm before it
        ("….norm1.silu"). Results are arrays of the backend, maps as (B, C, H, W) and attention's tokens as (B, N, C),
        computed when they are requested, by operations of the framework one after the other: on the whole input, with
        the model's padding and processors, without tiling. NaN and infinity in them raise no error; they have the
        model's dtype, so that they may be infinite where a float16 model goes on in float32. `half` is "encoder" or
        "decoder"; raises InputError for any other, and for a wrong input.
        """
        directions = {side.verb: side for side in HALVES.values()}
        if (side := (HALVES | directions).get(half)) is None:
            raise InputError(f"half={half!r}: expected encoder or decoder.")
        check, model = as_images if side is ENCODER else as_latents, self._model.computing(side)
        source = check(x, model.config, model.ops)
        return activations(model.layers(side), source[...], model.params, model.ops)

    def _denormalized(self, z: Any) -> Array:
        z = as_diffusion_latents(z, self._model.config, self._model.ops)[...]
        z = latents.denormalize(z, self.config, self._model.params)
        require_finite_scaled(z, "unscaled", self._model.ops)
        return z

    def tiled_encode(self, x: Any, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussian]:
        """`encode` in blended tiles, whether or not tiling is enabled."""
        posterior = self._posterior(x, tiled=True)
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def tiled_decode(self, z: Any, return_dict: bool = True) -> DecoderOutput | tuple[Array]:
        """`decode` in blended tiles, whether or not tiling is enabled."""
        sample = self._images(z, tiled=True)
        return DecoderOutput(sample) if return_dict else (sample,)

    def _posterior(self, images: Any, tiled: bool = False) -> DiagonalGaussian:
        source = as_images(images, self._model.config, self._model.ops)
        return DiagonalGaussian(execution.run(self._model, ENCODER, source, self._tiling, tiled=tiled))

    def _images(self, z: Any, tiled: bool = False) -> Array:
        source = as_latents(z, self._model.config, self._model.ops)
        return execution.run(self._model, DECODER, source, self._tiling, tiled=tiled)

    def __repr__(self) -> str:
        f, channels = self.config.downsampling_factor, self.config.latent_channels
        place = f"{self.backend} on {self.device}, {self.dtype}"
        return f"AutoencoderKL(f={f}, {channels} latent channels, {self.num_parameters():,} parameters, {place})"

    # -- in the framework's own idiom ----------------------------------------------------------------------

    def functional(self) -> Functional:
        """(params, encode, decode): the weights as a dict and two pure functions of (params, array).

        The functions read nothing else and check nothing, so that they may be traced; images and latents are as in
        `encode` and `decode`. The params are copies of the trained numbers, without FLUX.2's statistics of the latents:
        they may be written to, or donated.
        """
        return self._model.functional()

    def with_params(self, params: Mapping[str, Any]) -> Self:
        """A copy of this model with copies of other parameters: what `functional()` or `module()` has trained.

        `params` are those of `functional()`, a module's `state_dict()` or `parameters()`, or the same in NumPy or
        another framework, flat or nested; they are stored in the model's dtype. Gradients pass to arrays of the
        backend, but not to a module's own parameters. Raises InputError for names or shapes that are not this model's,
        and for what is no array of floats.
        """
        trained = copy.copy(self)
        trained._model = self._model.with_params(params)
        return trained

    def module(self) -> Any:
        """The model as the framework's own module class, with copies of the weights, which it owns.

        What changes the module does not change this model, or another module; `with_params` takes its weights back.
        Padding and processors go along; PyTorch's module takes slicing and tiling too, and has their methods. Raises
        BackendError if the backend has no such class.
        """
        if not hasattr(self._backend, "module"):
            raise BackendError(f"backend {self.backend!r} has no module class: use functional() instead.")
        module = self._backend.module(self._model)
        if isinstance(module, RunSettings):
            module.take_settings(self)
        return module


def load(
    source: Any = "tiny", *, family: str | None = None, strict: bool = True, **placement: Unpack[Placement]
) -> AutoencoderKL:
    """Load "tiny" (the embedded weights), a diffusers folder, a single file, or "owner/name", a repository of the hub.

    `source` may also be a model in memory: diffusers' AutoencoderKL or AutoencoderKLFlux2, a pipeline, which stands for
    its VAE, a module of ours, or an AutoencoderKL. Its weights are copied, and it is padded as it was; the dtype is
    float32 unless one is given. `family` may complete the config of weights without a config.json. Addresses on the
    hub, of a repository, a folder or a file, are fetched too; what is on the disk comes first. `strict=False` leaves
    out tensors that are not the model's (see `AutoencoderKL.from_single_file`).
    """
    require_known(load, placement)
    if isinstance(source, str | os.PathLike):
        return AutoencoderKL(*weights.load_weights(locate(source), family, strict=strict), **placement)
    config, held = config_and_weights(source, strict)
    if family is not None:
        raise InputError(f"family={family!r} is for files without a config: a model in memory has its own.")
    vae = AutoencoderKL(config, held, **placement)
    vae.set_padding(padding_of(source))
    return vae


def locate(source: AnyPath) -> Path:
    """The folder or file that `load` reads for this source. Raises WeightFileError if there is none."""
    return EMBEDDED if source == "tiny" else weights.find(source)

"""AutoencoderKL: a model with weights on a backend; what users hold."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

import numpy as np

from vaespec import families, latents, weights
from vaespec.attention import FusedQKV, LoRA, Processor
from vaespec.config import AutoencoderConfig
from vaespec.dtypes import STORAGE_DTYPES, dtype_name
from vaespec.errors import BackendError, InputError, WeightFileError
from vaespec.initialize import initialize
from vaespec.inputs import as_diffusion_latents, as_images, as_latents
from vaespec.model import Functional, Model
from vaespec.noise import Seed
from vaespec.ops import Array
from vaespec.outputs import AutoencoderKLOutput, DecoderOutput
from vaespec.posterior import DiagonalGaussian
from vaespec.processors import assign
from vaespec.reference import ReferenceOps
from vaespec.registry import choose_backend, make_ops
from vaespec.tiling.partwise import Partwise
from vaespec.weights import require_complete

EMBEDDED = Path(__file__).parent / "assets" / "tiny"


class Where(TypedDict, total=False):
    """Where a model runs: a backend's name (default: the best here), its device (its best), and the dtype (float32).

    `precision`: "default" is what the framework makes of float32 (on some devices TF32 or bfloat16 products),
    "highest" is float32 throughout. `compile`: the framework compiles each half before its first run, PyTorch for a
    family of shapes (on CUDA as CUDA graphs), MLX for each; JAX always does. BackendError where nothing is compiled.
    """

    backend: str | None
    device: str | None
    dtype: Any
    precision: str
    compile: bool


class AutoencoderKL(Partwise):
    """The image VAE of Stable Diffusion, SDXL, SD3 and FLUX, with its weights on a backend.

    Names, argument order and defaults are diffusers'. Images are (B, C, H, W) in [-1, 1]; inputs may be arrays of any
    framework, outputs are the backend's own. A result with NaN or infinity raises NonFiniteError.
    `weights` are canonical: diffusers' names, convolutions OIHW, NumPy; WeightMapError if they are not all there.
    """

    def __init__(
        self,
        config: AutoencoderConfig,
        weights: Mapping[str, np.ndarray],
        *,
        backend: str | None = None,
        device: str | None = None,
        dtype: Any = "float32",
        precision: str = "default",
        compile: bool = False,
    ) -> None:
        super().__init__()
        require_complete(weights, config)
        self.precision, self._compile = precision, compile
        self._backend, self._device = choose_backend(backend), device
        ops = self._ops(dtype)
        self._model = Model.place(config, weights, ops)

    # -- made from -----------------------------------------------------------------------------------------

    @classmethod
    def from_config(
        cls, config: AutoencoderConfig | Mapping[str, Any], *, seed: int = 0, **where: Unpack[Where]
    ) -> Self:
        """A new model with diffusers' initial weights."""
        if not isinstance(config, AutoencoderConfig):
            config = AutoencoderConfig.from_dict(config)
        return cls(config, initialize(config, seed), **where)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        subfolder: str = "",
        variant: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        **where: Unpack[Where],
    ) -> Self:
        """From a diffusers folder (config.json and weights, whole or in shards), or from the hub where there is none.

        `path` is then "organisation/name"; `revision`, `token`, `cache_dir` and `local_files_only` are those of
        huggingface_hub. A variant that is the only one is taken, and named in a warning. Raises WeightFileError for a
        missing or damaged file, WeightMapError for tensors that do not fit the config.
        """
        folder = Path(path)
        if folder.is_dir():
            return cls(*weights.load_folder(folder / subfolder, variant), **where)
        folder = weights.fetch(
            str(path),
            subfolder=subfolder,
            variant=variant,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        return cls(*weights.load_folder(folder, variant), **where)

    @classmethod
    def from_single_file(
        cls,
        path: str | os.PathLike[str],
        *,
        config: AutoencoderConfig | Mapping[str, Any] | None = None,
        family: str | None = None,
        prefix: str | None = None,
        dialect: str | None = None,
        use_ema: bool = False,
        strict: bool = True,
        allow_nonfinite: bool = False,
        **where: Unpack[Where],
    ) -> Self:
        """From one file: any container and dialect (see `vaespec.weights`), the VAE alone or in a full checkpoint.

        The config is read from names and shapes. What they do not tell (the scaling factor) comes from `family`
        (see vaespec.families), from `config`, or from the rest of a full checkpoint, and is otherwise left unknown.
        `prefix` chooses among several VAEs, `dialect` where names do not tell, `use_ema` takes the moving average;
        `strict=False` leaves out what is not the model's, `allow_nonfinite` takes NaN and infinity. A file with an
        encoder or a decoder alone makes half a model.
        """
        if config is not None and not isinstance(config, AutoencoderConfig):
            config = AutoencoderConfig.from_dict(config)
        how: weights.Reading = {
            "prefix": prefix,
            "dialect": dialect,
            "use_ema": use_ema,
            "strict": strict,
            "allow_nonfinite": allow_nonfinite,
        }
        return cls(*weights.load_file(Path(path), config, family, **how), **where)

    def save_pretrained(self, path: str | os.PathLike[str], *, dtype: Any = None) -> None:
        """Write a folder that diffusers' from_pretrained loads, in `dtype` (default: the model's).

        Files appear whole. WeightFileError for a folder with an index of shards, which diffusers would read instead.
        """
        weights.save_folder(Path(path), self.config, self.weights(), None if dtype is None else dtype_name(dtype))

    def save_single_file(
        self,
        path: str | os.PathLike[str],
        *,
        dialect: str = "diffusers",
        prefix: str = "",
        dtype: Any = None,
        bits: int | None = None,
    ) -> None:
        """Write one file in a dialect's names, layout and container: see `vaespec.weights.dialects.DIALECTS`.

        `bits` (4 or 8) quantises the attention's linear maps, for mflux.
        """
        stored = None if dtype is None else dtype_name(dtype)
        weights.save_file(
            Path(path), self.config, self.weights(), dialect=dialect, prefix=prefix, dtype=stored, bits=bits
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
        """Images -> images through the posterior's mode, or a sample of it; no scaling. Also `vae(images)`.

        Without sample_posterior a generator is ignored, as in diffusers, and a seed refused with InputError.
        """
        if seed is not None and not sample_posterior:
            raise InputError(f"seed={seed} is for a sample of the posterior: give sample_posterior=True.")
        posterior = self._posterior(sample)
        z = posterior.sample(generator, seed=seed) if sample_posterior else posterior.mode()
        output = DecoderOutput(self._images(z), posterior if return_posterior else None)
        return output if return_dict else output.to_tuple()

    __call__ = forward

    def encode_latents(self, images: Any, *, seed: Seed | None = None) -> Array:
        """Images -> latents as the diffusion model wants them: the mode, or with `seed` a sample, normalised."""
        posterior = self._posterior(images)
        z = posterior.mode() if seed is None else posterior.sample(seed=seed)
        return latents.normalize(z, self.config, self._model.params)

    def decode_latents(self, z: Any) -> Array:
        """The inverse of `encode_latents`: latents as the diffusion model makes them -> images."""
        return self._images(self._denormalized(z))

    def decode_bands(self, z: Any, *, normalized: bool = False) -> Iterator[Array]:
        """`decode(z).sample`, or with `normalized` `decode_latents(z)`, in bands of rows from the top down.

        Each is (B, out_channels, rows, f·w), made when it is asked for, with exact tiling; else there is one.
        """
        z = self._denormalized(z) if normalized else z
        return self._stream("decoder", as_latents(z, self.config, self._model.ops))

    def _denormalized(self, z: Any) -> Array:
        z = as_diffusion_latents(z, self.config, self._model.ops)[...]
        return latents.denormalize(z, self.config, self._model.params)

    def tiled_encode(self, x: Any, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussian]:
        """`encode` in blended tiles, whether or not tiling is enabled."""
        posterior = self._posterior(x, tiled=True)
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def tiled_decode(self, z: Any, return_dict: bool = True) -> DecoderOutput | tuple[Array]:
        """`decode` in blended tiles, whether or not tiling is enabled."""
        sample = self._images(z, tiled=True)
        return DecoderOutput(sample) if return_dict else (sample,)

    def _posterior(self, images: Any, tiled: bool = False) -> DiagonalGaussian:
        return DiagonalGaussian(self._run("encoder", as_images(images, self.config, self._model.ops), tiled))

    def _images(self, z: Any, tiled: bool = False) -> Array:
        return self._run("decoder", as_latents(z, self.config, self._model.ops), tiled)

    # -- where it runs -------------------------------------------------------------------------------------

    @property
    def config(self) -> AutoencoderConfig:
        """The architecture, and how latents are scaled."""
        return self._model.config

    def register_to_config(self, **fields: Any) -> None:
        """Set fields of the config that weights do not show, such as scaling_factor. InputError for any other."""
        if unknown := sorted(fields.keys() - families.CONVENTION):
            raise InputError(f"{', '.join(unknown)}: only {', '.join(families.CONVENTION)} can be set for a model.")
        self._model = self._model.with_config(self.config.replace(**fields))

    @property
    def backend(self) -> str:
        """The backend's name."""
        return self._backend.name

    @property
    def device(self) -> Any:
        """The device, as the backend calls it."""
        return self._model.ops.device

    @property
    def dtype(self) -> str:
        """The dtype of weights and results."""
        return self._model.ops.dtype

    def to(self, *where: Any, device: Any = None, dtype: Any = None) -> Self:
        """Move this model to another device or dtype, as in `to("cuda", "float16")`; returns itself."""
        for place in where:
            if dtype_name(place) in STORAGE_DTYPES:
                dtype = place
            else:
                device = place
        self._device = self._device if device is None else str(device)
        self._model = self._model.move(self._padded(self._ops(dtype or self.dtype)))
        return self

    def _ops(self, dtype: Any) -> ReferenceOps:
        return make_ops(self._backend, self._device, dtype_name(dtype), self.precision, compile=self._compile)

    def with_backend(
        self,
        backend: str,
        *,
        device: str | None = None,
        dtype: Any = None,
        precision: str | None = None,
        compile: bool = False,
    ) -> AutoencoderKL:
        """The same model on another backend, compiled only if asked for; weights are converted one at a time."""
        moved = copy.copy(self)
        moved.precision, moved._compile = precision or self.precision, compile
        moved._backend, moved._device = choose_backend(backend), device
        moved._model = self._model.move(self._padded(moved._ops(dtype or self.dtype)))
        return moved

    def weights(self) -> dict[str, np.ndarray]:
        """The weights in canonical form: diffusers' names, convolutions OIHW, NumPy; copies.

        InputError where a LoRA has not been put into the weights: it has no place there.
        """
        return self._model.weights()

    def to_numpy(self, array: Array) -> np.ndarray:
        """A result of this model, an array of its backend, as NumPy; bfloat16 as ml_dtypes' type."""
        return self._model.ops.to_numpy(array)

    def __repr__(self) -> str:
        f, channels = self.config.downsampling_factor, self.config.latent_channels
        where = f"{self.backend} on {self.device}, {self.dtype}"
        return f"AutoencoderKL(f={f}, {channels} latent channels, {self.num_parameters():,} parameters, {where})"

    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(math.prod(row.shape) for row in self._model.table().values() if row.trained)

    # -- attention -------------------------------------------------------------------------------------------

    @property
    def attn_processors(self) -> dict[str, Processor]:
        """The processor of each attention layer, by diffusers' path: the layer's name and `.processor`."""
        return {f"{layer.name}.processor": layer.processor for layer in self._model.attention_layers()}

    def set_attn_processor(
        self, processor: str | Processor | Mapping[str, str | Processor], _remove_lora: bool = False
    ) -> None:
        """How attention is computed: "sdpa" (the backend's own), "eager", "chunked", "fused" or "lora".

        Or an object of vaespec.attention (`Chunked(size=256)`, `LoRA(rank=8)`, your own Processor), or one of
        diffusers', or a mapping with one for each key of `attn_processors`. A LoRA that is replaced by another kind is
        left out (see `fuse_lora`). `_remove_lora` is accepted and ignored. InputError for what is not known.
        """
        self._model = self._model.with_processors(assign(processor, self._model.attention_layers()))

    def set_default_attn_processor(self) -> None:
        """Eager attention everywhere, as diffusers understands the default; vaespec's own is "sdpa"."""
        self.set_attn_processor("eager")

    def fuse_qkv_projections(self) -> None:
        """Queries, keys and values from one linear map, attended to as before. InputError for a LoRA."""
        for key, processor in self.attn_processors.items():
            if isinstance(processor, LoRA):
                raise InputError(f"{key} is a LoRA, which updates each projection: fuse_lora() first.")
        given = self.attn_processors.items()
        self.set_attn_processor({key: p if isinstance(p, FusedQKV) else FusedQKV(core=p) for key, p in given})

    def unfuse_qkv_projections(self) -> None:
        """Undo `fuse_qkv_projections`; layers that are not fused stay as they are."""
        given = self.attn_processors.items()
        self.set_attn_processor({key: p.core if isinstance(p, FusedQKV) else p for key, p in given})

    def fuse_lora(self) -> None:
        """Add every LoRA to the weights, and go on without it."""
        self._model = self._model.with_fused_lora()

    # -- in the framework's own idiom ----------------------------------------------------------------------

    def functional(self) -> Functional:
        """(params, encode, decode): the weights as a dict and two pure functions of (params, array).

        The functions look at nothing else and check nothing, so that they may be traced; images and latents are as in
        `encode` and `decode`. The params are what is trained: FLUX.2's statistics of the latents are not among them.
        """
        return self._model.functional()

    def with_params(self, params: Mapping[str, Array]) -> Self:
        """The same model with other parameters: those of `functional()`, after training.

        InputError for names or shapes that are not this model's.
        """
        trained = copy.copy(self)
        trained._model = self._model.with_params(params)
        return trained

    def module(self) -> Any:
        """The model as the framework's own module class, sharing these weights; BackendError if it has none."""
        if not hasattr(self._backend, "module"):
            raise BackendError(f"backend {self.backend!r} has no module class: use functional() instead.")
        if "circular" in self.padding:
            raise InputError("a module pads with zeros: set_padding('zeros') first, or use functional().")
        return self._backend.module(self._model)


def load(
    source: str | os.PathLike[str] = "tiny",
    *,
    family: str | None = None,
    **where: Unpack[Where],
) -> AutoencoderKL:
    """A model from "tiny" (the embedded weights), a diffusers folder, or a single file, to which `family` may add."""
    return AutoencoderKL(*weights.load_weights(locate(source), family), **where)


def locate(source: str | os.PathLike[str]) -> Path:
    """The folder or file that `load` reads for this source; WeightFileError if there is none."""
    path = EMBEDDED if source == "tiny" else Path(source)
    if not path.exists():
        raise WeightFileError(f"no file or folder {path}: download weights first, or say tiny for the embedded ones.")
    return path

"""PlacedModel: a model on a backend, and the settings that say how it is run."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any, Literal, Self, TypedDict, Unpack

import numpy as np

from vaespec import families
from vaespec.architecture import half_of
from vaespec.attention import FusedQKV, LoRA, Processor
from vaespec.config import AutoencoderConfig
from vaespec.copying import Portable
from vaespec.dtypes import STORAGE_DTYPES, dtype_name
from vaespec.errors import InputError
from vaespec.model import Model
from vaespec.namespace import device_name
from vaespec.ops import Array
from vaespec.processors import assign
from vaespec.reference import ReferenceOps
from vaespec.registry import as_portable, choose_backend, default_dtype, make_ops
from vaespec.tiling import execution
from vaespec.tiling.banded import Bands
from vaespec.tiling.planner import Estimate, MemoryPlan, as_bytes
from vaespec.tiling.settings import Tiling
from vaespec.tiling.stores import Place
from vaespec.weights import require_complete


class Placement(TypedDict, total=False):
    """Where a model runs: the backend (default: the best here), its device (its best), the dtype (float32).

    `backend` is a name that `vaespec.backends()` lists, or any namespace of the Array API, such as array_api_strict or
    cupy: the module, or its import path. "reference" and namespaces compute in their widest float, float64 for most.
    `precision`: "default" is what the framework makes of float32 (on some devices TF32 or bfloat16 products),
    "highest" is float32 throughout. `compile`: the framework compiles each half before its first run, PyTorch for a
    family of shapes (on CUDA as CUDA graphs), MLX for each shape; JAX always compiles. On a CPU it pays for gradients
    with PyTorch; results without gradients come from vaespec's engine, which is faster, unless the framework itself
    computes (precision="highest", float64). Raises BackendError if the backend has no compiler.
    """

    backend: Any
    device: Any
    dtype: Any
    precision: str
    compile: bool


RENAMED = {"torch_dtype": "dtype", "device_map": "device"}  # diffusers' name -> ours


def require_known(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raises InputError for a keyword that neither the function nor Placement has."""
    for name in sorted(given.keys() - Placement.__annotations__.keys()):
        if name in RENAMED:
            raise InputError(f"{function.__name__} has no {name}=: give {RENAMED[name]}=.")
        names = [name for name, row in signature(function).parameters.items() if row.kind is not row.VAR_KEYWORD]
        known = ", ".join([*names, *Placement.__annotations__])
        raise InputError(f"{function.__name__} has no {name}=: it takes {known}.")


def _setting(name: str, doc: str) -> property:
    """An attribute that reads a field of the model's Tiling, and replaces it when set, as in diffusers."""

    def put(vae: PlacedModel, value: Any) -> None:
        vae._tiling = replace(vae._tiling, **{name: value})

    return property(lambda vae: getattr(vae._tiling, name), put, doc=doc)


class PlacedModel(Portable):
    """A model with weights on a backend: where it runs, in which parts, with which padding and attention.

    `weights` are canonical: diffusers' names, convolutions OIHW, NumPy. Raises WeightMapError if any is missing.
    """

    def __init__(
        self,
        config: AutoencoderConfig,
        weights: Mapping[str, np.ndarray],
        *,
        backend: Any = None,
        device: Any = None,
        dtype: Any = None,
        precision: str = "default",
        compile: bool = False,
    ) -> None:
        require_complete(weights, config)
        self.precision, self._compile = precision, compile
        self._backend, self._device = choose_backend(backend), device_name(device)
        self._tiling = Tiling()
        self._model = Model.place(config, weights, self._ops(dtype, default_dtype(self._backend)))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_backend": as_portable(self._backend)}

    # -- where it runs -------------------------------------------------------------------------------------

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

    def to(self, *places: Any, device: Any = None, dtype: Any = None) -> Self:
        """Move this model to another device or dtype, as in `to("cuda", "float16")`; returns itself."""
        for place in places:
            if dtype_name(place) in STORAGE_DTYPES:
                dtype = place
            else:
                device = place
        self._device = self._device if device is None else device_name(device)
        self._model = self._model.move(self._ops(dtype, self.dtype))
        return self

    def with_backend(
        self,
        backend: Any,
        *,
        device: Any = None,
        dtype: Any = None,
        precision: str | None = None,
        compile: bool = False,
    ) -> Self:
        """A copy of this model on another backend, compiled only if `compile`; weights are converted one at a time.

        The dtype stays, but for the reference and namespaces, which compute in their widest float unless one is given.
        """
        moved = copy.copy(self)
        moved.precision, moved._compile = precision or self.precision, compile
        moved._backend, moved._device = choose_backend(backend), device_name(device)
        moved._model = self._model.move(moved._ops(dtype, default_dtype(moved._backend, self.dtype)))
        return moved

    def _ops(self, dtype: Any, default: str) -> ReferenceOps:
        """The operations for a dtype, `default` if it is None."""
        name = default if dtype is None else dtype_name(dtype)
        ops = make_ops(self._backend, self._device, name, self.precision, compile=self._compile)
        return self._tiling.padded(ops)

    # -- in which parts ------------------------------------------------------------------------------------

    use_slicing = _setting("slicing", "Whether to work on one item of the batch at a time.")
    use_tiling = _setting("enabled", "Whether to work on parts of an image.")
    tile_sample_min_size = _setting("tile_sample_min_size", "The size of blended tiles in px; None: sample_size.")
    tile_latent_min_size = _setting("tile_latent_min_size", "The size of blended tiles in latents; None: px // f.")
    tile_overlap_factor = _setting("tile_overlap_factor", "The share of a blended tile that the next one overlaps.")

    def enable_slicing(self) -> None:
        """Work on one item of the batch at a time: the memory of one item, the results of the whole batch."""
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
        offload_folder: Place | None = None,
        on_plan: Callable[[MemoryPlan], object] | None = None,
        **bands: Unpack[Bands],
    ) -> None:
        """Work on parts of an image: with the memory of one tile, or, with "exact", of a few rows, and no seams.

        True or "blend": tiles that are faded into each other, as in diffusers. Tiles have `tile_sample_min_size` px
        (one number, or height and width; by default the config's sample_size) and share `tile_overlap_factor` of that
        with the next. "exact": bands of rows, with the results of the whole image, without gradients; see `Bands`.
        "auto": the whole image if memory allows, else slices of the batch, else bands. `max_memory`, bytes or "2GiB",
        is the most that the device, or on a CPU the process, may hold at one time, by default most of the free memory:
        for "auto", and for the options of "exact" that `bands` leave open. Bands that memory cannot hold go to
        temporary files in `offload_folder` (by default TMPDIR, or /tmp); files in a folder that is memory, a tmpfs,
        count as memory. `on_plan(plan)` is called before each run with the MemoryPlan, whose text and `folder` say
        where. Raises InputError for tiles that do not join, bands without rows, and a folder that does not exist; a
        run raises MemoryLimitError, an InputError, if an image needs more than max_memory.
        """
        mode: Any = "blend" if use_tiling in (True, False) else use_tiling
        tiling = replace(
            self._tiling,
            enabled=bool(use_tiling),
            mode=mode,
            tile_sample_min_size=tile_sample_min_size,
            tile_latent_min_size=tile_latent_min_size,
            tile_overlap_factor=tile_overlap_factor,
            max_memory=None if max_memory is None else as_bytes(max_memory),
            offload_folder=offload_folder,
            on_plan=on_plan,
            bands=bands,
        )
        tiling.check(self._model)  # before the first image
        self._tiling = tiling

    def disable_tiling(self) -> None:
        """Work on whole images."""
        self.use_tiling = False

    def set_padding(self, padding: str | Sequence[str]) -> None:
        """Pad maps with "zeros", or with "circular", the rows or columns of the other end, for textures without a seam.

        One word, or two for (height, width). Raises InputError for "circular" with blended tiles, whose borders are not
        those of the image.
        """
        self._tiling = replace(self._tiling, padding=padding)
        self._model = self._model.replace(ops=self._tiling.padded(self._model.ops))

    padding = property(lambda self: self._tiling.padding, set_padding, doc="The padding of (height, width).")

    def estimate_memory(self, shape: Sequence[int], direction: Literal["encode", "decode"] = "decode") -> Estimate:
        """The memory needed to encode, or decode to, images of this shape (B, C, H, W), in the parts that are set.

        Its `plan` says where bands are stored: `plan.folder` is the folder of temporary files, None without files.
        Within 15 % if NumPy's engine computes; on other backends the memory inside kernels is partly unknown and left
        out. Raises InputError for another shape, and wherever the run would.
        """
        half, f = half_of(direction), self.config.downsampling_factor
        if len(shape) != 4 or min(shape) < 1 or min(shape[2:]) < f:
            raise InputError(f"images of shape {tuple(shape)}: expected (B, C, height, width), at least {f} x {f} px.")
        B, _, H, W = shape
        return execution.estimate(self._model, half, half.input_shape(self.config, B, H, W), self._tiling)

    # -- config and weights ----------------------------------------------------------------------------------

    @property
    def config(self) -> AutoencoderConfig:
        """The architecture, and how latents are scaled."""
        return self._model.config

    def register_to_config(self, **fields: Any) -> None:
        """Set fields of the config that weights do not show, such as scaling_factor. InputError for any other."""
        if unknown := sorted(fields.keys() - families.CONVENTION):
            raise InputError(f"{', '.join(unknown)}: only {', '.join(families.CONVENTION)} can be set for a model.")
        self._model = self._model.replace(config=self.config.replace(**fields))

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of the weights in canonical form: diffusers' names, convolutions OIHW, NumPy.

        Raises InputError if a LoRA has not been added to the weights (`fuse_lora`).
        """
        return self._model.weights()

    def num_parameters(self) -> int:
        """The number of trained numbers."""
        return sum(math.prod(row.shape) for row in self._model.table().values() if row.trained)

    def to_numpy(self, array: Array) -> np.ndarray:
        """A result of this model, an array of its backend, as NumPy; bfloat16 as ml_dtypes' type."""
        return self._model.ops.to_numpy(array)

    # -- attention -------------------------------------------------------------------------------------------

    @property
    def attn_processors(self) -> dict[str, Processor]:
        """The processor of each attention layer, by diffusers' path: the layer's name and `.processor`."""
        return {f"{layer.name}.processor": layer.processor for layer in self._model.attention_layers()}

    def set_attn_processor(
        self, processor: str | Processor | Mapping[str, str | Processor], _remove_lora: bool = False
    ) -> None:
        """Choose how attention is computed: "sdpa" (the backend's own), "eager", "chunked", "fused" or "lora".

        Or an object of vaespec.attention (`Chunked(size=256)`, `LoRA(rank=8)`, your own Processor), or a processor of
        diffusers, or a mapping with one for each key of `attn_processors`. A LoRA that is replaced by another kind is
        left out (see `fuse_lora`). `_remove_lora` is accepted and ignored. Raises InputError for an unknown processor.
        """
        self._model = self._model.with_processors(assign(processor, self._model.attention_layers()))

    def set_default_attn_processor(self) -> None:
        """Use eager attention in every layer, diffusers' default; vaespec's own default is "sdpa"."""
        self.set_attn_processor("eager")

    def fuse_qkv_projections(self) -> None:
        """Compute queries, keys and values by one linear map, and attention as before. Raises InputError for a LoRA."""
        for key, processor in self.attn_processors.items():
            if isinstance(processor, LoRA):
                raise InputError(f"{key} is a LoRA, which updates each projection: fuse_lora() first.")
        processors = self.attn_processors.items()
        self.set_attn_processor({key: p if isinstance(p, FusedQKV) else FusedQKV(core=p) for key, p in processors})

    def unfuse_qkv_projections(self) -> None:
        """Undo `fuse_qkv_projections`; layers that are not fused stay as they are."""
        processors = self.attn_processors.items()
        self.set_attn_processor({key: p.core if isinstance(p, FusedQKV) else p for key, p in processors})

    def fuse_lora(self) -> None:
        """Add every LoRA to the weights, and compute without it from then on."""
        self._model = self._model.with_fused_lora()

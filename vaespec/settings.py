"""RunSettings: in which parts a model is run, with which padding and attention. Shared by all that users hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Unpack

from vaespec.architecture import half_of
from vaespec.attention import FusedQKV, LoRA, Processor
from vaespec.errors import InputError
from vaespec.model import Model
from vaespec.processors import assign
from vaespec.tiling import execution
from vaespec.tiling.banded import Bands
from vaespec.tiling.planner import Estimate, MemoryPlan, as_bytes
from vaespec.tiling.settings import Tiling
from vaespec.tiling.stores import Place


def _setting(name: str, doc: str) -> property:
    """An attribute that reads a field of the model's Tiling, and replaces it when set, as in diffusers."""

    def put(vae: RunSettings, value: Any) -> None:
        vae._tiling = replace(vae._tiling, **{name: value})

    return property(lambda vae: getattr(vae._tiling, name), put, doc=doc)


class RunSettings:
    """The settings of a run, as methods of what users hold: a `_model` and its `_tiling`."""

    _model: Model
    _tiling: Tiling

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
        """Choose how feature maps continue beyond their borders, where convolutions pad: one word, or (height, width).

        "zeros"; "reflect", mirrored at the border row, which is not repeated; "replicate", with the border row
        repeated; "circular", with the rows of the other end, for textures without a seam. Weights do not show with
        which padding they were trained. As with PyTorch's `padding_mode` in diffusers' model, the zeros below and right
        of convolutions of stride 2 stay, unless the padding is "circular", and each blended tile is padded at its own
        borders. Raises InputError for any other word, and for "circular" with blended tiles; a run raises InputError if
        "reflect" has fewer than 2 rows or columns to mirror.
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
        half, f = half_of(direction), self._model.config.downsampling_factor
        if len(shape) != 4 or min(shape) < 1 or min(shape[2:]) < f:
            raise InputError(f"images of shape {tuple(shape)}: expected (B, C, height, width), at least {f} x {f} px.")
        B, _, H, W = shape
        return execution.estimate(self._model, half, half.input_shape(self._model.config, B, H, W), self._tiling)

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

"""AutoencoderKLModule: the model as PyTorch users expect it, with diffusers' state-dict names and its methods."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from vaespec import latents
from vaespec.architecture import DECODER, ENCODER, HALVES, Half
from vaespec.config import AutoencoderConfig
from vaespec.copying import Guarded
from vaespec.dtypes import dtype_name
from vaespec.inputs import as_diffusion_latents
from vaespec.model import Model
from vaespec.noise import Seed
from vaespec.outputs import AutoencoderKLOutput, DecoderOutput
from vaespec.posterior import DiagonalGaussian
from vaespec.settings import RunSettings
from vaespec.tiling.settings import Tiling
from vaespec.weights import as_path, save_folder
from vaespec_torch.live import is_transformed
from vaespec_torch.names import find_in_wrappers, leave_out_wrappers
from vaespec_torch.owners import CheckpointingOps, ModuleOps
from vaespec_torch.parts import LiveParts, Part, through
from vaespec_torch.registered import register, replace_parameters


class AutoencoderKLModule(Guarded, RunSettings, nn.Module):
    """An `nn.Module` around the specification: its parameters train, its state_dict is diffusers'.

    It owns its parameters: copies of the model's, which `vae.with_params(module.state_dict())` gives back. If no
    gradient is wanted, it computes what the model computes, to the bit and as fast; otherwise by autograd. Slicing,
    tiling, padding and attention processors are set as those of the model. Where a diffusers pipeline has its VAE, it
    can be assigned: `pipe.vae = module`.

    A result with NaN or infinity is returned; a NonFiniteWarning names the layer if no gradient is recorded.
    """

    def __init__(self, model: Model, tiling: Tiling | None = None) -> None:
        super().__init__()
        self._tiling, self._outline = tiling or Tiling(), model.replace(params={})
        self._live = LiveParts(self, model)
        ops = ModuleOps.like(model.ops)
        halves = (getattr(model, name) for name in HALVES)
        parts = {name: Part(layers, ops) for half in halves for name, layers in half.parts().items()}
        table = model.table()
        for name, tensor in model.params.items():
            register(self, name, model.ops.copy(tensor.detach()), parts, trains=table[name].trained)
        self._update_parts(ModuleOps)
        self.register_state_dict_post_hook(leave_out_wrappers)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(find_in_wrappers)  # type: ignore[no-untyped-call]

    # -- encode and decode ---------------------------------------------------------------------------------------

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussian]:
        """Images (B, C, H, W) in [-1, 1] -> posterior."""
        posterior = self._posterior(x)
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: Any = None) -> DecoderOutput | tuple[Tensor]:
        """Latents -> images. `generator` is accepted and ignored, as in diffusers."""
        sample = self._run(DECODER, z)
        return DecoderOutput(sample) if return_dict else (sample,)

    def tiled_encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussian]:
        """`encode` in blended tiles, whether or not tiling is enabled."""
        posterior = self._posterior(x, tiled=True)
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """`decode` in blended tiles, whether or not tiling is enabled."""
        sample = self._run(DECODER, z, tiled=True)
        return DecoderOutput(sample) if return_dict else (sample,)

    def encode_latents(self, images: Tensor, *, seed: Seed | None = None) -> Tensor:
        """Images -> normalized latents for the diffusion model: the mode, or with `seed` a sample."""
        posterior = self._posterior(images)
        z = posterior.mode() if seed is None else posterior.sample(seed=seed)
        return latents.normalize(z, self.config, self._model.params)

    def decode_latents(self, z: Tensor) -> Tensor:
        """Normalized latents of the diffusion model -> images: the inverse of `encode_latents`."""
        model = self._model
        z = as_diffusion_latents(z, model.config, model.ops).x
        return self._run(DECODER, latents.denormalize(z.to(self.device, self.dtype), model.config, model.params))

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: Any = None,
        *,
        seed: Seed | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Images -> images, through the posterior's mode or a sample; the output holds the posterior, a tuple does not.

        Without sample_posterior a generator is ignored, as in diffusers, and a seed raises InputError.
        """
        posterior = self._posterior(sample)
        images = self._run(DECODER, posterior.mode_or_sample(sample_posterior, generator, seed=seed))
        return DecoderOutput(images, posterior) if return_dict else (images,)

    def _posterior(self, x: Tensor, tiled: bool = False) -> DiagonalGaussian:
        return DiagonalGaussian(self._run(ENCODER, x, tiled))

    def _run(self, half: Half, x: Tensor, tiled: bool = False) -> Tensor:
        """Run a half. What PyTorch traces calls the parts alone. Raises InputError if the model does not have it."""
        self._outline.layers(half)
        hook: Any = getattr(self, "_hf_hook", None)
        if hasattr(hook, "pre_forward"):
            hook.pre_forward(self)  # accelerate's hooks are for forward alone; diffusers calls them here too
        whole = not (tiled or self._tiling.enabled or self._tiling.slicing)
        if not (whole and is_transformed(x)):
            return self._live.run(self._outline, half, x, self._tiling, tiled=tiled)
        return through(self._live.parts(half), x)

    # -- where it is, and what it holds --------------------------------------------------------------------------

    @property
    def config(self) -> AutoencoderConfig:
        """The architecture, and how latents are scaled."""
        return self._outline.config

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters now."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:
        """The device of the parameters now."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def num_parameters(self, only_trainable: bool = False) -> int:
        """How many numbers the parameters hold, or those that train."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def save_pretrained(self, path: str | os.PathLike[str], *, dtype: Any = None, **_: Any) -> None:
        """Write a folder that diffusers' from_pretrained loads, in `dtype` (default: the parameters').

        Other options of diffusers' save_pretrained are accepted and ignored. See vaespec.AutoencoderKL.save_pretrained.
        """
        save_folder(as_path(path), self.config, self._model.weights(), None if dtype is None else dtype_name(dtype))

    # -- gradient checkpointing ----------------------------------------------------------------------------------

    def enable_gradient_checkpointing(self) -> None:
        """Keep only the layers' inputs for the gradient, and compute the rest again."""
        self._update_parts(CheckpointingOps)

    def disable_gradient_checkpointing(self) -> None:
        """Keep every activation for the gradient."""
        self._update_parts(ModuleOps)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether gradient checkpointing is enabled."""
        return any(part.kind is CheckpointingOps for part in self.modules() if isinstance(part, Part))

    # -- settings ------------------------------------------------------------------------------------------------

    @property
    def _model(self) -> Model:
        """The model on the parameters as they are now: what the settings of RunSettings read, and replace."""
        return self._live.placed(self._outline, self._tiling)

    @_model.setter
    def _model(self, model: Model) -> None:
        replace_parameters(self, self._live, model)
        self._outline = model.replace(params={}, ops=self._outline.ops)
        self._update_parts()

    def _update_parts(self, kind: type[ModuleOps] | None = None) -> None:
        """Tell every part the layers, the padding and the dtype of its run, and whether to checkpoint."""
        layers = {name: part for half in HALVES for name, part in getattr(self._outline, half).parts().items()}
        for name in layers:
            part = self._live.part(name)
            if isinstance(part, Part):
                part.update(layers[name], self._tiling, self.config.force_upcast, kind or part.kind)

"""AutoencoderKLModule: the model as PyTorch users expect it, with diffusers' state-dict names."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vaespec.architecture import DECODER, ENCODER, HALVES, Half
from vaespec.copying import Guarded
from vaespec.model import Model
from vaespec.noise import Seed
from vaespec.outputs import AutoencoderKLOutput, DecoderOutput
from vaespec.posterior import DiagonalGaussian
from vaespec_torch.names import find_in_wrappers, leave_out_wrappers
from vaespec_torch.owners import CheckpointingOps, ModuleOps
from vaespec_torch.parts import Part, Weights


class AutoencoderKLModule(Guarded, nn.Module):
    """An `nn.Module` around the specification: its parameters train, its state_dict is diffusers'.

    It owns its parameters: copies of the model's, which `vae.with_params(module.state_dict())` gives back.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.config = model.config
        halves = {half: getattr(model, half.name).parts() for half in HALVES.values()}
        self._parts = {half.verb: tuple(parts) for half, parts in halves.items()}
        ops = ModuleOps.like(model.ops)
        parts = {name: Part(layers, ops) for half in halves.values() for name, layers in half.items()}
        table = model.table()
        for name, tensor in model.params.items():
            _register(self, name, model.ops.copy(tensor.detach()), parts, trains=table[name].trained)
        self.register_state_dict_post_hook(leave_out_wrappers)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(find_in_wrappers)  # type: ignore[no-untyped-call]

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussian]:
        """Images (B, C, H, W) in [-1, 1] -> posterior."""
        posterior = self._posterior(x)
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: Any = None) -> DecoderOutput | tuple[Tensor]:
        """Latents -> images. `generator` is accepted and ignored, as in diffusers."""
        sample = self._run(DECODER, z)
        return DecoderOutput(sample) if return_dict else (sample,)

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

    def enable_gradient_checkpointing(self) -> None:
        """Keep only the layers' inputs for the gradient, and compute the rest again."""
        self._compute_with(CheckpointingOps)

    def disable_gradient_checkpointing(self) -> None:
        """Keep every activation for the gradient."""
        self._compute_with(ModuleOps)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether gradient checkpointing is enabled."""
        return any(isinstance(part.ops, CheckpointingOps) for part in self.modules() if isinstance(part, Part))

    def _compute_with(self, kind: type[ModuleOps]) -> None:
        for part in self.modules():
            if isinstance(part, Part):
                part.ops = kind.like(part.ops)

    def _posterior(self, x: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(self._run(ENCODER, x))

    def _run(self, half: Half, x: Tensor) -> Tensor:
        """Call the parts of a half, whatever wraps them. Raises InputError if the model does not have it."""
        if not self._parts[half.verb]:
            raise half.absent()
        for part in self._parts[half.verb]:
            x = getattr(self, part)(x)
        return x


def _register(root: nn.Module, name: str, tensor: Tensor, parts: dict[str, Part], *, trains: bool) -> None:
    """Register a tensor under its dotted name, with a module for each word of the name."""
    *path, leaf = name.split(".")
    for word in path:
        if word not in root._modules:
            root.add_module(word, parts[word] if word in parts else Weights())
        root = root.get_submodule(word)
    if trains:
        root.register_parameter(leaf, nn.Parameter(tensor))
    else:
        root.register_buffer(leaf, tensor)

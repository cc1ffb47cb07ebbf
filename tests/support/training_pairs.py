"""One training step of diffusers' VAE and of ours: with the same weights, picture and loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from support.pipelines import make_vae, picture
from torch import nn

import vaespec
import vaespec_diffusers


def installed() -> nn.Module:
    """diffusers' VAE, computed by vaespec."""
    vae = make_vae()
    vaespec_diffusers.install(vae)
    return vae


def our_class() -> nn.Module:
    """The subclass of diffusers' VAE, with the same weights."""
    theirs = make_vae()
    vae = vaespec_diffusers.AutoencoderKL(**{k: v for k, v in theirs.config.items() if not k.startswith("_")})
    vae.load_state_dict(theirs.state_dict(), strict=True)
    return vae


def our_module() -> nn.Module:
    """The module of a model that was loaded from diffusers'."""
    return vaespec.load(make_vae(), backend="torch").module()


SUBJECTS: dict[str, Callable[[], nn.Module]] = {"installed": installed, "class": our_class, "module": our_module}


def wide(make: Callable[[], nn.Module]) -> nn.Module:
    """The VAE in float64: in float32 the rounding of either side is as large as what gradients may differ by."""
    return make().double()


def pictures(batch: int = 2, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """(batch, 3, 32, 32) in [-1, 1]; each is another part of one picture."""
    whole = (picture(64) * 2 - 1).to(dtype)
    return torch.cat([whole[..., 8 * item : 8 * item + 32, 4 * item : 4 * item + 32] for item in range(batch)])


def loss(vae: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """How far the picture is from itself after both halves: what one call of the module computes."""
    return (vae(x).sample - x).square().mean()


def gradients(vae: nn.Module) -> dict[str, torch.Tensor]:
    """Gradients by name, without the words that a wrapper adds."""
    return {name.removeprefix("module."): p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None}


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The relative L2 distance of all gradients together. Both must have the same names."""
    assert ours.keys() == theirs.keys()
    gap = sum((ours[name].double() - gradient.double()).square().sum() for name, gradient in theirs.items())
    size = sum(gradient.double().square().sum() for gradient in theirs.values())
    return float((gap / size).sqrt())


def step(vae: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradients of one step."""
    loss(vae, x).backward()
    return gradients(vae)


PROCESSES = 2


def one_rank(rank: int, folder: str) -> None:
    """A process of two: trains each VAE on its own picture and saves the gradients that both agreed on."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"  # no port that could be in use
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES)
    found = {}
    for name, make in {"diffusers": make_vae, **SUBJECTS}.items():
        vae = nn.parallel.DistributedDataParallel(wide(make))
        found[name] = step(vae, pictures(PROCESSES)[rank : rank + 1])
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()

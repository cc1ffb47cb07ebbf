"""One process of two that train together: `python -m support.replica RANK FOLDER` in tests/. Starts quickly."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from support.configs import TINY, images

from vaespec import AutoencoderKL


def module() -> torch.nn.Module:
    return AutoencoderKL.from_config(TINY, backend="torch", device="cpu", dtype="float64").module()


def batch() -> torch.Tensor:
    return torch.tensor(images(TINY, 16, 16, batch=2))


def gradients(module: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradients of a loss that reads the sample and the posterior of the output, by the names of the parameters."""
    output = module(x)
    ((output.sample - x).square().mean() + 1e-3 * output.posterior.kl().mean()).backward()
    return {name.removeprefix("module."): p.grad for name, p in module.named_parameters()}


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    parallel = torch.nn.parallel.DistributedDataParallel(module())
    torch.save(gradients(parallel, batch()[rank : rank + 1]), folder / f"gradients{rank}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

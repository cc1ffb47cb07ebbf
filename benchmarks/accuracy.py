"""How far from diffusers in float64? Full-width models, every backend and dtype; prints a table.

    python benchmarks/accuracy.py [FAMILY ...] [--backends torch jax] [--device cuda] [--precision highest]

Weights are diffusers' initial ones, the same for all; the error is relative L2 of the moments of a random image and of
the image of random latents. Needs the `test` extra; about two minutes per family on two cores.
"""

import argparse

import diffusers
import numpy as np
import torch

import vaespec
from vaespec import families

SIZE = 64  # px
DTYPES = {  # JAX has float64 only where a process asks for it
    "reference": ("float64",),
    "numpy": ("float64", "float32", "bfloat16", "float16"),
    "torch": ("float64", "float32", "bfloat16", "float16"),
    "jax": ("float32", "bfloat16", "float16"),
    "mlx": ("float32", "bfloat16", "float16"),
}


class Reference:
    """The specification itself as a backend, on NumPy."""

    name = "reference"
    framework = "numpy"
    dtypes = ("float64",)

    def devices(self):
        """Where NumPy is."""
        return ("cpu",)

    def ops(self, device, dtype, precision):
        """The specification's own operations."""
        return vaespec.ReferenceOps(np, dtype, device)


def oracle(config):
    """diffusers' model in float64 and its weights."""
    fields = {name: value for name, value in config.to_dict().items() if not name.startswith("_")}
    if config.patch_size:
        fields.pop("force_upcast")  # stands in FLUX.2's config.json, but is no argument of its class
    torch.manual_seed(0)
    model = getattr(diffusers, config.class_name)(**fields).double().eval()
    return model, {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def error(actual, expected):
    """‖actual - expected‖ / ‖expected‖."""
    return np.linalg.norm(actual.astype(np.float64) - expected) / np.linalg.norm(expected)


@torch.no_grad()
def measure(family, backends, device, precision):
    """A row for each backend and dtype."""
    config = families.config(family)
    model, weights = oracle(config)
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (1, config.in_channels, SIZE, SIZE))
    z = rng.standard_normal((1, config.latent_channels, SIZE // 8, SIZE // 8))
    moments = model.encode(torch.tensor(x)).latent_dist.parameters.numpy()
    images = model.decode(torch.tensor(z)).sample.numpy()
    for backend, dtype in [(name, dtype) for name in backends for dtype in DTYPES[name]]:
        where = {"backend": backend, "device": device, "dtype": dtype, "precision": precision}
        vae = vaespec.AutoencoderKL(config, weights, **where)
        encoded = vae.to_numpy(vae.encode(x).latent_dist.parameters)
        decoded = vae.to_numpy(vae.decode(z).sample)
        print(f"| {family} | {backend} | {dtype} | {error(encoded, moments):.1e} | {error(decoded, images):.1e} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", default=("sd1", "flux1", "flux2"))
    parser.add_argument("--backends", nargs="+", choices=DTYPES, default=tuple(DTYPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("default", "highest"), default="default")
    asked = parser.parse_args()
    vaespec.register_backend(Reference())
    print("| family | backend | dtype | encode | decode |\n|---|---|---|---|---|")
    for name in asked.families:
        measure(name, asked.backends, asked.device, asked.precision)

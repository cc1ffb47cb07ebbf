"""How far from diffusers in float64? Full-width models, every backend and dtype; prints a table.

    python benchmarks/accuracy.py [FAMILY ...]

Weights are diffusers' initial ones, the same for all; the error is relative L2 of the moments of a random image and of
the image of random latents. Needs the `test` extra; about a minute per family on two cores.
"""

import sys

import diffusers
import numpy as np
import torch

import vaespec
from vaespec import families

SIZE = 64  # px
SUBJECTS = (
    ("reference", "float64"),
    ("numpy", "float64"),
    ("torch", "float64"),
    ("numpy", "float32"),
    ("torch", "float32"),
    ("numpy", "float16"),
    ("numpy", "bfloat16"),
    ("torch", "bfloat16"),
)


class Reference:
    """The specification itself as a backend, on NumPy."""

    name = "reference"
    framework = "numpy"
    dtypes = ("float64",)

    def devices(self):
        """Where NumPy is."""
        return ("cpu",)

    def ops(self, device, dtype):
        """The specification's own operations."""
        import array_api_compat.numpy as xp

        return vaespec.ReferenceOps(xp, dtype, device)


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
def measure(family):
    """A row per subject."""
    config = families.config(family)
    model, weights = oracle(config)
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (1, config.in_channels, SIZE, SIZE))
    z = rng.standard_normal((1, config.latent_channels, SIZE // 8, SIZE // 8))
    moments = model.encode(torch.tensor(x)).latent_dist.parameters.numpy()
    images = model.decode(torch.tensor(z)).sample.numpy()
    for backend, dtype in SUBJECTS:
        vae = vaespec.AutoencoderKL(config, weights, backend=backend, device="cpu", dtype=dtype)
        encoded = vae.to_numpy(vae.encode(x).latent_dist.parameters)
        decoded = vae.to_numpy(vae.decode(z).sample)
        print(f"| {family} | {backend} | {dtype} | {error(encoded, moments):.1e} | {error(decoded, images):.1e} |")


if __name__ == "__main__":
    vaespec.register_backend(Reference())
    print("| family | backend | dtype | encode | decode |\n|---|---|---|---|---|")
    for name in sys.argv[1:] or ("sd1", "flux1", "flux2"):
        measure(name)
